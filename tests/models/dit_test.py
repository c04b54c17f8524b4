import functools

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.models import dit
from sculpt4d_jax.models import frame_tokens
from sculpt4d_jax.models import streaming
from sculpt4d_jax.models import time_embedding

SMALL = dict(
  depth=3,
  width=16,
  num_heads=2,
  latent_channels=4,
  context_width=6,
  mlp_ratio=2,
  num_moe_blocks=1,
  num_experts=3,
  temporal_block_size=2,
)


def small(**changes):
  return dit.DiTConfig(**(SMALL | changes))


@functools.cache
def model(temporal="zero", **changes):
  """A small DiT; `temporal="random"` fills the zero output projections."""
  module = dit.DiT(small(**changes), rngs=nnx.Rngs(0))
  if temporal == "random":
    for stage in module.stages:
      kernel = stage.temporal_attention.out.kernel
      kernel[...] = jax.random.normal(jax.random.key(9), kernel.shape)
  return module


def inputs(num_clips=2, num_frames=4, num_tokens=8):
  keys = jax.random.split(jax.random.key(0), 3)
  latents = jax.random.normal(keys[0], (num_clips, num_frames, num_tokens, 4))
  context = jax.random.normal(keys[1], (num_clips, num_frames, 3, 6))
  return latents, jax.random.uniform(keys[2], (num_clips,)), context


@functools.partial(jax.jit, static_argnames=("graphdef", "mode"))
def _call(graphdef, params, args, mode):
  return nnx.merge(graphdef, params)(*args, temporal_mode=mode)


def run(module, args, mode=None):
  graphdef, params = nnx.split(module)
  return _call(graphdef, params, args, mode)


@functools.partial(jax.jit, static_argnames=("graphdef", "mode"))
def _call_block(graphdef, params, x, context, skip, mode):
  return nnx.merge(graphdef, params)(x, context, skip, temporal_mode=mode)


def block_by_block(module, latents, time, context, mode):
  """The stack written out, last in first out, in natural order."""
  x, skips = module.embed(latents, time), []
  for index, kind in enumerate(module.config.block_kinds):
    skip = skips.pop() if kind.has_skip else None
    graphdef, params = nnx.split(module.block(index))
    x = _call_block(graphdef, params, x, context, skip, mode).x
    if kind.pushes:
      skips.append(x)
  return module.final_linear(module.final_norm(x)[:, :, 1:])


def _value_and_gradients(module, args):
  graphdef, params = nnx.split(module)

  def loss(params, latents):
    out = nnx.merge(graphdef, params)(latents, *args[1:])
    return (out.velocity**2).sum() + out.aux_losses.sum()

  return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(params, args[0])


# By plain loops, without and with recomputation, and by the U with two policies.
@pytest.mark.parametrize(
  "remat_policy", [None, "offload_inputs", "full", "keep_attention"]
)
def test_a_time_token_apart_changes_nothing(monkeypatch, remat_policy):
  module = model(
    temporal="random", depth=5, num_moe_blocks=2, remat_policy=remat_policy
  )
  args = inputs()
  joined = _value_and_gradients(module, args)
  lead = frame_tokens.lead
  monkeypatch.setattr(frame_tokens, "lead", functools.partial(lead, apart=True))
  apart = _value_and_gradients(module, args)
  # Sums in another order round otherwise, by how much depends on the processor: at
  # most one rounding (1.2e-7) in each of some hundred operations in a row.
  for ours, theirs in zip(*map(jax.tree.leaves, (apart, joined)), strict=True):
    size = np.abs(theirs).max()
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * max(1.0, size))


@pytest.mark.parametrize("on_host", [(), ("skips",)])
def test_sampling_with_a_time_token_apart(monkeypatch, on_host):
  module = model(temporal="random", depth=5, num_moe_blocks=2)
  graphdef, params = nnx.split(module)
  latents, time, context = inputs()

  def sample(**kwargs):
    call = lambda params: nnx.merge(graphdef, params)(
      latents, time, context, inference=True, **kwargs
    )
    return jax.jit(call)(params).velocity

  joined = sample()
  monkeypatch.setattr(
    frame_tokens, "lead", functools.partial(frame_tokens.lead, apart=True)
  )
  kept = streaming.OnHost(**dict.fromkeys(on_host, True))
  apart = sample(frames_at_a_time=2, on_host=kept)
  np.testing.assert_allclose(apart, joined, atol=3e-6)


def test_full_size_has_the_reference_number_of_parameters():
  count = lambda config: sum(
    param.size
    for param in jax.tree.leaves(
      nnx.state(
        nnx.eval_shape(lambda: dit.DiT(config, rngs=nnx.Rngs(0))),
        nnx.Param,
      )
    )
  )
  assert count(dit.DiTConfig(temporal_mode="none")) == 3_050_758_720
  temporal = 4 * 2048**2 + 2048 + 2 * 128 + 2 * 2048  # Attention and norm.
  assert count(dit.DiTConfig()) == 3_050_758_720 + 21 * temporal


def test_full_size_has_four_stages():
  stages = dit.DiTConfig().stages
  assert [stage.num_blocks for stage in stages] == [10, 1, 4, 6]
  assert stages[3].kind == dit.BlockKind(False, True, True)


def test_even_depth_has_a_skip_that_nobody_takes():
  kinds = dit.DiTConfig(depth=6, num_moe_blocks=3).block_kinds
  assert [kind.pushes for kind in kinds] == [True] * 3 + [False] * 3
  assert [kind.has_skip for kind in kinds] == [False] * 4 + [True] * 2
  assert [kind.is_moe for kind in kinds] == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
  "depth, num_moe_blocks", [(1, 0), (2, 2), (5, 4), (6, 1)]
)
def test_stages_equal_the_plain_stack(depth, num_moe_blocks):
  module = model(depth=depth, num_moe_blocks=num_moe_blocks, temporal="random")
  args = inputs(num_clips=1)
  out = run(module, args)
  expected = block_by_block(module, *args, "sparse")
  np.testing.assert_allclose(out.velocity, expected, atol=2e-5)
  assert out.aux_losses.shape == (num_moe_blocks,)
  assert out.router_load.shape == (num_moe_blocks, 3)


def test_zero_init_adds_nothing_in_a_block():
  latents, time, context = inputs(num_clips=1)
  block = model().block(0)
  x = model().embed(latents, time)
  # Not under jit, where XLA may fuse the two differently: bit for bit.
  for mode in ("sparse", "full", "token"):
    np.testing.assert_array_equal(
      block(x, context, temporal_mode=mode).x,
      block(x, context, temporal_mode="none").x,
    )


def test_zero_init_equals_per_frame_model():
  latents, time, context = inputs()
  out = run(model(), (latents, time, context))
  without = run(model(), (latents, time, context), mode="none")
  np.testing.assert_array_equal(out.velocity, without.velocity)
  per_frame = model(temporal_mode="none")
  fresh = nnx.split(per_frame)[1]
  params = dict(nnx.to_flat_state(nnx.split(model())[1]))
  shared = {path: params[path] for path, _ in nnx.to_flat_state(fresh)}
  nnx.update(per_frame, nnx.from_flat_state(shared))
  separate = run(per_frame, (latents, time, context))
  np.testing.assert_array_equal(out.velocity, separate.velocity)
  frame = run(model(), (latents[:, 2:3], time, context[:, 2:3]))
  np.testing.assert_allclose(out.velocity[:, 2:3], frame.velocity, atol=2e-6)


def test_frames_are_independent_without_temporal_attention():
  latents, time, context = inputs()
  changed = latents.at[:, 1].add(1.0)
  module = model(temporal="random")
  run_without = lambda x: run(module, (x, time, context), mode="none").velocity
  before, after = run_without(latents), run_without(changed)
  np.testing.assert_array_equal(before[:, 2:], after[:, 2:])
  assert np.abs(before - after)[:, 1].max() > 1e-3


def test_temporal_weight_turns_temporal_attention_off_by_clip():
  args = inputs()
  module = model(temporal="random")
  graphdef, params = nnx.split(module)
  weighted = jax.jit(
    lambda *xs: (
      nnx.merge(graphdef, params)(
        *xs, temporal_weight=jnp.array([0.0, 1.0])
      ).velocity
    )
  )(*args)
  with_it = run(module, args).velocity
  without = run(module, args, mode="none").velocity
  np.testing.assert_allclose(weighted[0], without[0], atol=2e-6)
  np.testing.assert_allclose(weighted[1], with_it[1], atol=2e-6)
  assert np.abs(with_it - without)[0].max() > 1e-3


@pytest.mark.parametrize("mode", ["sparse", "full", "token"])
def test_temporal_modes_tie_frames_together(mode):
  latents, time, context = inputs()
  module = model(temporal="random")
  run_mode = lambda x: run(module, (x, time, context), mode=mode).velocity
  changed = latents.at[:, 0].add(1.0)
  difference = np.abs(run_mode(latents) - run_mode(changed))
  assert difference[:, 3].max() > 1e-4


def test_full_schedule_equals_full_attention():
  args = inputs()
  dense = model(temporal="random", temporal_schedule=(1,))
  np.testing.assert_allclose(
    run(dense, args).velocity,
    run(model(temporal="random"), args, mode="full").velocity,
    atol=2e-5,
  )


def test_permuting_tokens_within_blocks_permutes_the_velocity():
  latents, time, context = inputs()
  module = model(temporal="random")
  order = np.array([1, 0, 3, 2, 5, 4, 7, 6])
  permuted = run(module, (latents[:, :, order], time, context)).velocity
  velocity = run(module, (latents, time, context)).velocity
  np.testing.assert_allclose(permuted, velocity[:, :, order], atol=2e-5)


def test_encoded_context_equals_context():
  latents, time, context = inputs()
  encoded = model().encode_context(context)
  out = run(model(), (latents, time, context))
  again = run(model(), (latents, time, encoded))
  np.testing.assert_allclose(out.velocity, again.velocity, atol=1e-6)


@functools.cache
def gradient(**changes):
  """Of a model whose first stage has two blocks."""
  args = inputs(num_clips=1, num_frames=2)
  changes = dict(depth=4, num_moe_blocks=1) | changes
  graphdef, params = nnx.split(model(temporal="random", **changes))

  def objective(params):
    out = nnx.merge(graphdef, params)(*args)
    return jnp.square(out.velocity).mean() + out.aux_losses.sum()

  return jax.tree.leaves(jax.jit(jax.grad(objective))(params))


@pytest.mark.parametrize(
  "policy,unroll",
  [
    ("full", 1),
    ("full", True),
    ("keep_attention", 1),
    ("keep_products", 1),
    ("offload_inputs", 1),
    ("offload_inputs", True),
  ],
)
def test_rematerialised_and_unrolled_gradients_are_the_same(policy, unroll):
  kept = gradient()
  again = gradient(remat_policy=policy, scan_unroll=unroll)
  for a, b in zip(kept, again, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * max(1, np.abs(b).max()))


def test_bfloat16_stays_close_and_returns_the_dtype_of_the_latents():
  args = inputs()
  exact = run(model(), args).velocity
  half = run(model(dtype="bfloat16"), args).velocity
  assert half.dtype == jnp.float32
  np.testing.assert_allclose(half, exact, atol=0.1)


def test_time_features_are_sines_then_cosines():
  features = time_embedding.time_features(jnp.array([0.0, 1.0]), 4)
  expected = [
    [0, 0, 1, 1],
    [np.sin(1), np.sin(0.01), np.cos(1), np.cos(0.01)],
  ]
  np.testing.assert_allclose(features, expected, atol=1e-6)


def test_every_parameter_names_its_axes():
  state = nnx.to_flat_state(nnx.state(model(), nnx.Param))
  for path, param in state:
    stacked = path[0] == "stages"
    axes = param.get_metadata()["logical_axes"]
    assert len(axes) + stacked == param.get_value().ndim, path


@pytest.mark.parametrize(
  "changes, message",
  [
    (dict(depth=0), "depth=0"),
    (dict(num_heads=3), "num_heads=3"),
    (dict(num_moe_blocks=6), "num_moe_blocks=6"),
    (dict(num_experts_per_token=4), "num_experts_per_token=4"),
    (dict(temporal_mode="causal"), "causal"),
    (dict(temporal_schedule=()), "temporal_schedule"),
    (dict(temporal_schedule=(1, 0)), "temporal_schedule"),
    (dict(width=6, num_heads=2), "3 wide"),
    (dict(dtype="float16"), "float16"),
    (dict(moe_implementation="capacity"), "capacity"),
    (dict(remat_policy="half"), "remat_policy='half'"),
  ],
)
def test_config_refuses(changes, message):
  with pytest.raises(ValueError, match=message):
    small(**changes)


def test_config_takes_lists_and_is_hashable():
  config = small(temporal_schedule=[1, 2], temporal_anchor_frames=[0])
  assert config == small(temporal_schedule=(1, 2))
  assert hash(config) == hash(small(temporal_schedule=(1, 2)))


@pytest.mark.wrong_shapes
def test_call_refuses_shapes_that_do_not_fit():
  module = model()
  latents, time, context = inputs()
  with pytest.raises(ValueError, match="7 latent tokens.*block_size=2"):
    module(latents[:, :, :7], time, context)
  with pytest.raises(ValueError, match="latents must be"):
    module(latents[0], time, context)
  with pytest.raises(ValueError, match="time must be"):
    module(latents, time[:1], context)
  with pytest.raises(ValueError, match="context must be"):
    module(latents, time, context[..., :5])
  with pytest.raises(ValueError, match="context is for"):
    module(latents, time, context[:, :2])
  with pytest.raises(ValueError, match="no temporal parameters"):
    model(temporal_mode="none")(latents, time, context, temporal_mode="full")
  with pytest.raises(ValueError, match="causal"):
    module(latents, time, context, temporal_mode="causal")


@pytest.mark.parametrize("block_size", [1, 2])
def test_known_indices_break_the_symmetry_of_tokens_and_only_that(block_size):
  plain = model("random", temporal_block_size=block_size)
  config = small(num_token_indices=8, temporal_block_size=block_size)
  knowing = dit.DiT(config, rngs=nnx.Rngs(0))
  for name, value in vars(plain).items():
    if isinstance(value, (nnx.Module, nnx.List)):
      setattr(knowing, name, value)
  latents, time, context = inputs()
  # Indices start at zero: nothing is different yet.
  before = run(plain, (latents, time, context)).velocity
  np.testing.assert_array_equal(
    run(knowing, (latents, time, context)).velocity, before
  )
  # Adding to a token's index is adding to its embedded latent.
  embedding = plain.latent_embedding
  kernel = embedding.kernel[...]
  change = jax.random.normal(jax.random.key(1), (8, 4))
  knowing.token_indices[...] = change @ kernel
  np.testing.assert_allclose(
    run(knowing, (latents, time, context)).velocity,
    run(plain, (latents + change, time, context)).velocity,
    atol=1e-4,
  )
  with pytest.raises(ValueError, match="8 tokens a frame by their index"):
    run(knowing, inputs(num_tokens=4))


def test_equal_times_of_frames_change_no_bit():
  module = model("random")
  latents, time, context = inputs()
  frames = jnp.broadcast_to(time[:, None], latents.shape[:2])
  one = run(module, (latents, time, context))
  many = run(module, (latents, frames, context))
  np.testing.assert_array_equal(one.velocity, many.velocity)


def test_a_frame_has_its_own_time():
  module = model("random")
  latents, time, context = inputs()
  frames = jnp.broadcast_to(time[:, None], latents.shape[:2])
  changed = frames.at[0, 2].set(1.0)
  one = run(module, (latents, frames, context), "none").velocity
  other = run(module, (latents, changed, context), "none").velocity
  differs = np.abs(one - other).max((2, 3)) > 1e-4
  assert differs[0, 2] and differs.sum() == 1


@pytest.mark.wrong_shapes
def test_times_of_other_frames_are_refused():
  latents, time, context = inputs()
  frames = jnp.broadcast_to(time[:, None], (2, latents.shape[1] - 1))
  with pytest.raises(ValueError, match="or a frame"):
    model("random")(latents, frames, context)


def test_a_fresh_step_embedding_changes_no_bit():
  plain, told = model("random"), model("random", step_embedding=True)
  latents, time, context = inputs()
  step = jnp.array([0.0, 0.5])
  graphdef, params = nnx.split(told)
  call = jax.jit(
    lambda p: nnx.merge(graphdef, p)(latents, time, context, step=step)
  )
  np.testing.assert_array_equal(
    call(params).velocity, run(plain, (latents, time, context)).velocity
  )
  with pytest.raises(ValueError, match="no step embedding"):
    plain(latents, time, context, step=step)


@pytest.mark.parametrize("frames", [1, 2, 3])
def test_some_frames_at_a_time_are_all_frames(frames):
  module = model("random")
  latents, time, context = inputs()
  graphdef, params = nnx.split(module)
  key_values = module.encode_context(context)

  @jax.jit
  def sampled(params):
    return nnx.merge(graphdef, params)(
      latents, time, key_values, frames_at_a_time=frames, inference=True
    )

  whole = run(module, (latents, time, context))
  np.testing.assert_allclose(
    sampled(params).velocity, whole.velocity, atol=2e-5
  )


def test_inference_takes_the_same_skips():
  module = model("random", depth=5)
  latents, time, context = inputs()
  graphdef, params = nnx.split(module)
  one, other = (
    jax.jit(
      lambda p, flag=flag: nnx.merge(graphdef, p)(
        latents, time, context, inference=flag
      )
    )(params).velocity
    for flag in (False, True)
  )
  np.testing.assert_allclose(one, other, atol=1e-6)
