"""Plans of memory: by hand at small sizes, against XLA at the released one."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import pytest

from configs import sculpt4d
from configs import tiny
from sculpt4d_jax.inference import memory_plan
from sculpt4d_jax.models import attention
from sculpt4d_jax.training import preset as preset_lib


def test_weights_are_counted(planner):
  assert planner.params["vae"] == 2 * 327_746_177
  assert planner.params["image_encoder"] == 2 * (304_368_640 - 1024)
  wide = memory_plan.Planner(
    preset_lib.from_config(tiny.get_config()).model, param_bytes=4
  )
  narrow = memory_plan.Planner(preset_lib.from_config(tiny.get_config()).model)
  assert wide.params["dit"] == 2 * narrow.params["dit"]


def test_keys_and_values_by_hand(planner, settings):
  stage = planner.plan(settings).stages["denoise"]
  # Key and value, 21 blocks, 2048 wide, 2 bytes, for both halves of a batch.
  assert stage["keys and values"] == 2 * 21 * 2048 * 2 * 16 * 1370 * 2
  once = dataclasses.replace(settings, cache_context=False)
  assert planner.plan(once).stages["denoise"]["keys and values"] == (
    stage["keys and values"] // 21
  )


def test_eight_bits_by_hand(planner, settings):
  """A byte a number and four for 64 of them, but for what is not packed."""
  packed = dataclasses.replace(settings, weights="int8")
  stored = planner.plan(settings).stages["denoise"]["DiT weights"]
  found = planner.plan(packed).stages["denoise"]["DiT weights"]
  rest = stored - 2 * planner.kernels
  assert 0 < rest < 0.02 * stored  # The time MLP, embeddings, norms, biases.
  assert found == rest + planner.kernels + planner.kernels // 16


def test_streamed_layers_by_hand(planner, settings):
  """The kernels are on the host, but for two blocks of them."""
  streams = dataclasses.replace(settings, stream_layers=True)
  resident = planner.plan(settings).stages["denoise"]
  streamed = planner.plan(streams).stages["denoise"]
  blocks = resident["DiT weights"] - streamed["DiT weights"]
  assert blocks == 2 * planner.kernels
  assert streamed["DiT weights"] < 0.02 * resident["DiT weights"]
  assert streamed["weights of a block"] == 2 * resident["weights of a block"]


def test_skips_on_the_host_by_hand(planner, settings):
  """Ten skips of 16 frames of 4097 tokens, of which two are on the device."""
  skips = dataclasses.replace(settings, skips_on_host=True)
  one = 16 * 4097 * 2048 * 2
  step = lambda s: planner.plan(s).stages["denoise"]["a step of the DiT"]
  assert step(settings) - step(skips) == 8 * 2 * one  # Both branches.


def test_an_interval_has_keys_and_values_once_more(planner, settings):
  part = lambda s: planner.plan(s).stages["denoise"]["keys and values"]
  interval = dataclasses.replace(settings, guides_always=False)
  assert 2 * part(interval) == 3 * part(settings)
  turns = dict(guidance_in_turns=True)
  assert part(dataclasses.replace(interval, **turns)) == part(
    dataclasses.replace(settings, **turns)
  )


@pytest.mark.slow  # Compiles the released size, without allocating it.
@pytest.mark.parametrize("frames", [4, 16])
def test_estimates_are_near_xlas_own_accounting(settings, frames):
  """In float32, as XLA on a CPU keeps float32 copies of anything else."""
  config = sculpt4d.get_config()
  for part in config.model.values():
    part.dtype = "float32"
  model = preset_lib.from_config(config).model
  planner = memory_plan.Planner(model, param_bytes=4)
  single = dataclasses.replace(settings, num_frames=frames, guided=False)
  stages = planner.plan(single).stages
  parts = model.parts()
  shape = jax.ShapeDtypeStruct

  def temporary(name, function, *arguments):
    kind, part_config = parts[name]
    part = nnx.eval_shape(lambda: kind(part_config, rngs=nnx.Rngs(0)))
    graphdef, params = nnx.split(part)
    call = lambda p, *a: function(nnx.merge(graphdef, p), *a)
    compiled = jax.jit(call).lower(params, *arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes

  kind, dit_config = parts["dit"]
  dit = nnx.eval_shape(lambda: kind(dit_config, rngs=nnx.Rngs(0)))
  graphdef, params = nnx.split(dit)
  key_values = jax.eval_shape(
    lambda p, c: nnx.merge(graphdef, p).encode_context(c),
    params,
    shape((1, frames, 1370, 1024), jnp.float32),
  )
  step = temporary(
    "dit",
    lambda m, *a: m(*a, inference=True).velocity,
    shape((1, frames, 4096, 64), jnp.float32),
    shape((1,), jnp.float32),
    key_values,
  )
  planned = stages["denoise"]
  planned = planned["a step of the DiT"] + planned["weights of a block"]
  assert 0.95 < planned / step < 1.3
  encode = temporary(
    "image_encoder",
    lambda m, x: m(x),
    shape((min(frames, 8), 518, 518, 3), jnp.float32),
  )
  assert 0.95 < stages["encode"]["frames being encoded"] / encode < 3
  vae_config = parts["vae"][1]
  heads = (1, 4096, vae_config.num_heads, 64)
  field = temporary(
    "vae",
    lambda m, k, p: m.query_field(attention.KeyValues(*k), p),
    (shape(heads, jnp.float32),) * 2,
    shape((1, settings.chunk_size, 3), jnp.float32),
  )
  assert 0.95 < stages["decode"]["a frame being decoded"] / field < 1.5
