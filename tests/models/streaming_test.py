"""Blocks on the host give the results of blocks on the device."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.models import dit
from sculpt4d_jax.models import dit_config
from sculpt4d_jax.models import quantization
from sculpt4d_jax.models import streaming

FRAMES = 2


def make(**changes):
  config = dit_config.DiTConfig(
    **dict(
      depth=7,
      width=16,
      num_heads=2,
      latent_channels=4,
      context_width=6,
      num_moe_blocks=2,
      num_experts=3,
      temporal_block_size=2,
    )
    | changes
  )
  module = dit.DiT(config, rngs=nnx.Rngs(0))
  # Temporal attention and biases start at zero; they must matter.
  rng = np.random.default_rng(1)
  graphdef, params = nnx.split(module)
  params = jax.tree.map(
    lambda x: x + 0.1 * rng.normal(size=x.shape).astype(x.dtype), params
  )
  return nnx.merge(graphdef, params)


def inputs():
  key = jax.random.key(2)
  shapes = ((1, FRAMES, 8, 4), (1, FRAMES, 3, 6))
  latents, context = (jax.random.normal(key, shape) for shape in shapes)
  return latents, jnp.full((1,), 0.3), context


def call(module, on_host, cached=False, **options):
  graphdef, params = nnx.split(module)
  if on_host.layers:
    params = streaming.place_kernels(params)
    kinds = [leaf.sharding.memory_kind for leaf in jax.tree.leaves(params)]
    assert {"pinned_host", "device"} == set(kinds)

  @jax.jit
  def run(params, latents, time, context):
    module = nnx.merge(graphdef, params)
    if cached:
      context = module.encode_context(context, on_host)
    return module(
      latents, time, context, inference=True, on_host=on_host, **options
    ).velocity

  return run(params, *inputs())


@pytest.mark.parametrize(
  "layers, skips, cached",
  [
    (True, True, False),
    pytest.param(True, False, True, marks=pytest.mark.slow),
    pytest.param(False, True, True, marks=pytest.mark.slow),
  ],
)
def test_velocity_is_that_of_resident_blocks(layers, skips, cached):
  """Stages of 3, 1, 1 and 2 blocks: one, and several, blocks of a kind."""
  module = make()
  expected = call(module, streaming.NOTHING, cached)
  found = call(module, streaming.OnHost(layers, skips), cached)
  assert float(jnp.abs(expected).max()) > 0.1
  np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
  "depth, experts",
  [
    (2, 1),
    pytest.param(1, 0, marks=pytest.mark.slow),
    pytest.param(6, 0, marks=pytest.mark.slow),
    pytest.param(5, 5, marks=pytest.mark.slow),
  ],
)
def test_every_shape_of_the_u(depth, experts):
  """An even depth, experts on the way down, and no skip at all."""
  module = make(depth=depth, num_moe_blocks=experts)
  expected = call(module, streaming.NOTHING)
  found = call(module, streaming.OnHost(True, True))
  np.testing.assert_allclose(found, expected, atol=1e-5)


def test_packed_weights_are_streamed_packed():
  module = make(width=64)
  quantization.quantize(module.stages)
  expected = call(module, streaming.NOTHING, frames_at_a_time=1)
  found = call(module, streaming.OnHost(True, True), frames_at_a_time=1)
  np.testing.assert_allclose(found, expected, atol=1e-5)
  leaves = jax.tree.leaves(
    streaming.place_kernels(nnx.split(module)[1])["stages"]
  )
  assert any(leaf.dtype == jnp.int8 for leaf in leaves)


def test_the_next_block_is_copied_before_the_current_one_works():
  """In a loop's body, a copy depends on no product of the block."""
  module = make(num_moe_blocks=0)
  graphdef, params = nnx.split(module)
  on_host = streaming.OnHost(True, False)
  run = lambda params, *args: (
    nnx.merge(graphdef, params)(*args, inference=True, on_host=on_host).velocity
  )
  program = jax.make_jaxpr(run)(
    streaming.place_kernels(params), *inputs()
  ).jaxpr
  loops = [e for e in program.eqns if e.primitive.name == "scan"]
  assert len(loops) == 2  # Three blocks on the way down, three up.
  for loop in loops:
    equations = loop.params["jaxpr"].jaxpr.eqns
    products = [e for e in equations if "dot_general" in str(e)]
    copies = [
      e
      for e in equations
      if e.primitive.name == "device_put"
      and e.invars[0].aval.memory_space == jax.memory.Space.Host
    ]
    assert products and copies
    made = {id(v): e for e in equations for v in e.outvars}
    pending, seen = list(copies), set()
    while pending:
      equation = pending.pop()
      assert equation not in products
      for variable in equation.invars:
        source = made.get(id(variable))
        if source is not None and id(source) not in seen:
          seen.add(id(source))
          pending.append(source)


def test_no_buffer_of_all_skips_is_made_on_the_device():
  """Not even to put zeros into the host's buffer."""
  module = make(num_moe_blocks=0)
  graphdef, params = nnx.split(module)
  on_host = streaming.OnHost(False, True)
  run = lambda params, *args: (
    nnx.merge(graphdef, params)(*args, inference=True, on_host=on_host).velocity
  )
  program = jax.make_jaxpr(run)(params, *inputs()).jaxpr
  whole = (3, 1, FRAMES, 9, 16)  # Three skips.
  makers = [
    equation.primitive.name
    for equation in program.eqns
    for out in equation.outvars
    if getattr(out.aval, "shape", None) == whole
    and out.aval.memory_space == jax.memory.Space.Device
  ]
  assert makers == ["empty"]  # Allocates where its only reader wants it.


def test_a_device_without_such_memory_is_refused():
  class Device:
    def addressable_memories(self):
      return []

  with pytest.raises(ValueError, match="sampling.stream_layers"):
    streaming.place(np.zeros(2), Device())
