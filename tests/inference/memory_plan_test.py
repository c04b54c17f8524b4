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

GIB = memory_plan.GIB


@pytest.fixture(scope="module")
def planner():
  return memory_plan.Planner(
    preset_lib.from_config(sculpt4d.get_config()).model
  )


@pytest.fixture(scope="module")
def settings():
  preset = preset_lib.from_config(sculpt4d.get_config())
  return memory_plan.settings_of(preset.sampling, preset.surface)


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


def test_what_is_copied_from_the_host_by_hand(planner, settings):
  assert planner.link_bytes(settings) == 0
  offloaded = dataclasses.replace(settings, offload=True)
  copied = 2 * 327_746_177 + 2 * (304_368_640 - 1024)
  assert planner.link_bytes(offloaded) == copied == 1_264_227_586
  table = list(memory_plan.format_plan(planner, offloaded))
  assert any("1.26 GB, 0.05 s" in line for line in table)


def test_every_saving_saves(planner, settings):
  peaks = [planner.plan(s).peak for s in memory_plan._savings(settings)]
  assert peaks == sorted(peaks, reverse=True) and len(set(peaks)) == 6


def test_eight_bits_by_hand(planner, settings):
  """A byte a number and four for 64 of them, but for what is not packed."""
  packed = dataclasses.replace(settings, weights="int8")
  stored = planner.plan(settings).stages["denoise"]["DiT weights"]
  found = planner.plan(packed).stages["denoise"]["DiT weights"]
  rest = stored - 2 * planner.kernels
  assert 0 < rest < 0.02 * stored  # The time MLP, embeddings, norms, biases.
  assert found == rest + planner.kernels + planner.kernels // 16


def test_auto_takes_the_savings_that_a_device_needs(settings):
  preset = preset_lib.from_config(sculpt4d.get_config())
  auto = dataclasses.replace(preset.sampling, memory="auto")
  choose = lambda size: memory_plan.choose(
    preset.model, auto, preset.surface, size and size * GIB
  )
  assert choose(80) == auto  # Nothing is needed.
  assert choose(None) == auto  # Unknown memory.
  less = choose(12)
  assert less.offload and less.frames_at_a_time and less.guidance_in_turns
  assert less.weights == "int8"
  assert (less.num_steps, less.guidance_scale) == (50, 5.0)
  with pytest.raises(ValueError, match="sample at most"):
    choose(8)
  as_set = memory_plan.choose(
    preset.model, preset.sampling, preset.surface, 8 * GIB
  )
  assert as_set == preset.sampling


def test_an_interval_has_keys_and_values_once_more(planner, settings):
  part = lambda s: planner.plan(s).stages["denoise"]["keys and values"]
  interval = dataclasses.replace(settings, guides_always=False)
  assert 2 * part(interval) == 3 * part(settings)
  turns = dict(guidance_in_turns=True)
  assert part(dataclasses.replace(interval, **turns)) == part(
    dataclasses.replace(settings, **turns)
  )


def test_more_memory_means_more_frames_and_fewer_savings(planner, settings):
  sizes = [8, 12, 16, 24, 40, 80]
  frames = [planner.most_frames(settings, size * GIB) for size in sizes]
  assert frames == sorted(frames) and frames[-1] > 64
  for size, most in zip(sizes, frames):
    last = list(memory_plan._savings(settings))[-1]
    fits = lambda n: planner.plan(dataclasses.replace(last, num_frames=n)).fits(
      size * GIB
    )
    assert not fits(most + 1) and (most == 0 or fits(most))
  assert planner.best(settings, 8 * GIB) is None
  assert planner.best(settings, 80 * GIB).settings == settings


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
