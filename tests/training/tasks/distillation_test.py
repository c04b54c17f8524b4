"""Distillation at micro size: what is learned, and from whom."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.diffusion import paths
from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import state as state_lib
from sculpt4d_jax.training import step as step_lib
from sculpt4d_jax.training.tasks import presets
from tests.inference import small_models
from tests.integration import micro

CLIPS, FRAMES = 4, 3


def config(**changes):
  result = micro.get_config()
  result.model.dit.step_embedding = True
  result.distillation.update(
    dict(batch_size=CLIPS, guidance_scale=2.0, shortcut_start=0.5) | changes
  )
  result.distillation.optimizer.update(
    dict(num_steps=40, warmup_steps=1, learning_rate=3e-3, weight_decay=0.0)
  )
  return result


def batch():
  rng = np.random.default_rng(0)
  sizes = micro.get_config().model
  shape = (CLIPS, FRAMES, sizes.vae.num_latents, sizes.vae.latent_channels)
  side = sizes.image_encoder.image_size
  return {
    "mean": rng.normal(size=shape).astype(np.float32),
    "log_variance": np.full(shape, -4.0, np.float32),
    "images": rng.integers(0, 255, (CLIPS, FRAMES, side, side, 3), np.uint8),
  }


@pytest.fixture(scope="module")
def teacher():
  model = small_models.random_model()
  return {"dit": model._dit, "image_encoder": model._encoder}


def start(task, optimizer):
  """A state that starts from the teacher, as the loop makes it."""
  params = task.init_params()
  given = dict(nnx.to_flat_state(nnx.State(dict(task.warm_start))))
  flat = {
    path: variable.replace(jnp.array(given[path][...]))
    if path in given
    else variable
    for path, variable in nnx.to_flat_state(params)
  }
  assert given.keys() <= flat.keys()
  params = nnx.from_flat_state(flat)
  tx = optimizer_lib.make_optimizer(optimizer)
  return state_lib.create(params, tx, task.is_trained)


def run(options, teacher, num_steps):
  """Metrics of every step, the task and the last state."""
  preset = preset_lib.from_config(options)
  task = presets.distillation(preset, teacher=teacher)
  optimizer = preset.distillation.optimizer
  step, _ = step_lib.make_step(task.loss, optimizer, sees_progress=True)
  state = start(task, optimizer)
  metrics = []
  for _ in range(num_steps):
    state, values = step(state, batch(), jax.random.key(0))
    metrics.append(jax.device_get(values))
  return metrics, task, state


@pytest.fixture(scope="module")
def trained(teacher):
  return run(config(), teacher, 40)


def test_the_student_starts_as_its_teacher(teacher):
  """With guidance 1 the first error is none at all."""
  preset = preset_lib.from_config(config(guidance_scale=1.0))
  task = presets.distillation(preset, teacher=teacher)
  state = start(task, preset.distillation.optimizer)
  params = state_lib.join(state.params, state.fixed)
  progress = step_lib.Progress(state.step, params)
  _, metrics = jax.jit(task.loss)(params, batch(), jax.random.key(0), progress)
  assert metrics["guidance_loss"] < 1e-10


def test_the_noise_has_the_temperatures_of_sampling(teacher, monkeypatch):
  lowest = []
  cool = paths.cool
  monkeypatch.setattr(
    paths, "cool", lambda *args: lowest.append(args[2]) or cool(*args)
  )
  preset = preset_lib.from_config(config(min_temperature=0.25))
  task = presets.distillation(preset, teacher=teacher)
  state = start(task, preset.distillation.optimizer)
  params = state_lib.join(state.params, state.fixed)
  progress = step_lib.Progress(state.step, params)
  jax.eval_shape(task.loss, params, batch(), jax.random.key(0), progress)
  assert lowest == [0.25]


@pytest.mark.long  # Compiles a step of three networks.
def test_guidance_is_learned(trained):
  metrics, _, _ = trained
  losses = [float(m["guidance_loss"]) for m in metrics]
  assert losses[0] > 1e-6
  assert np.mean(losses[-5:]) < 0.7 * np.mean(losses[:5])


@pytest.mark.long  # Compiles a step of three networks.
def test_shortcuts_count_from_their_start_on(trained):
  metrics, _, _ = trained
  share = 1 / CLIPS
  for number, m in enumerate(metrics):
    is_on = number >= 20
    expected = (1 - share) * m["guidance_loss"] + m["router_aux_loss"]
    expected += share * m["shortcut_loss"] * is_on
    np.testing.assert_allclose(m["loss"], expected, rtol=1e-5)


@pytest.mark.long  # Compiles a step of three networks.
def test_the_step_embedding_learns_and_the_others_do_not_change(
  trained, teacher
):
  _, task, state = trained
  params = state_lib.join(state.params, state.fixed)
  for name in ("image_encoder", "teacher"):
    kept = teacher["dit" if name == "teacher" else name]
    for (_, a), (_, b) in zip(
      nnx.to_flat_state(params[name]), nnx.to_flat_state(kept)
    ):
      np.testing.assert_array_equal(a[...], b[...])
  embedding = params["dit"]["step_embedding"]["fc2"]["kernel"][...]
  assert np.abs(embedding).max() > 0
  # One model at all lengths of a step.
  graphdef = nnx.split(
    nnx.eval_shape(lambda: dit_lib.DiT(task.dit_config, rngs=nnx.Rngs(0)))
  )[0]
  dit = nnx.merge(graphdef, params["dit"])
  x = jnp.ones((1, FRAMES, 8, 4))
  context = jnp.ones((1, FRAMES, 5, 16))
  time = jnp.zeros(1)
  answers = [
    dit(x, time, context, step=jnp.full(1, s)).velocity for s in (0.0, 0.5, 1.0)
  ]
  assert np.abs(answers[0] - answers[1]).max() > 1e-6
  np.testing.assert_array_equal(answers[0], dit(x, time, context).velocity)


@pytest.mark.long  # Compiles a step of three networks.
def test_adapters_have_the_student_without_them_as_teacher(teacher):
  options = config(guidance_scale=1.0)
  options.distillation.lora.update(dict(rank=2, modules=("mlp",)))
  metrics, task, state = run(options, teacher, 2)
  assert metrics[0]["guidance_loss"] < 1e-10
  names = {path for path, _ in nnx.to_flat_state(state.params)}
  assert all("adapter" in p or "step_embedding" in p for p in names)
  whole = task.exported(state_lib.join(state.ema, state.fixed))
  assert not any("adapter" in p for p, _ in nnx.to_flat_state(whole))


def test_what_cannot_work_is_refused():
  plain = config()
  plain.model.dit.step_embedding = False
  with pytest.raises(ValueError, match="step_embedding=True"):
    presets.distillation(preset_lib.from_config(plain))
  options = preset_lib.from_config(config()).distillation.task
  for changes, message in (
    (dict(shortcut_share=1.0), "shortcut_share"),
    (dict(batch_size=1), "batch_size=1"),
    (dict(min_temperature=1.5), "min_temperature=1.5"),
  ):
    with pytest.raises(ValueError, match=message):
      dataclasses.replace(options, **changes)
  lora = dataclasses.replace(options.lora, also_train=("temporal",))
  with pytest.raises(ValueError, match="also_train"):
    dataclasses.replace(options, lora=lora)
