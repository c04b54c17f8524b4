"""A step in micro-batches is the step of the whole batch, for every task."""

import jax
import numpy as np
import pytest

from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import state as state_lib
from sculpt4d_jax.training import step as step_lib
from sculpt4d_jax.training.tasks import presets
from tests.integration import micro

CLIPS, FRAMES = 4, 2


def _preset():
  config = micro.get_config()
  config.dit_training.update(context_dropout=0.3, temporal_dropout=0.3)
  config.dit_training.frame_times.update(known=0.4, independent=0.3)
  # The balancing loss is not a mean over clips.
  config.model.dit.router_aux_loss_weight = 0.0
  return preset_lib.from_config(config)


def _batch(preset):
  rng = np.random.default_rng(0)
  vae, sizes = preset.model.vae, preset.data.sizes
  lead = (CLIPS, FRAMES)
  latents = (*lead, vae.num_latents, vae.latent_channels)
  side = sizes.image_size
  points = sizes.num_uniform + sizes.num_sharp
  return {
    "mean": rng.normal(size=latents).astype(np.float32),
    "log_variance": np.full(latents, -1.0, np.float32),
    "images": rng.integers(0, 255, (*lead, side, side, 3), np.uint8),
    "surface": rng.normal(size=(*lead, points, 7)).astype(np.float32),
    "samples": rng.uniform(-1, 1, (*lead, 16, 4)).astype(np.float32),
  }


def _take(task, batch, parts):
  """State and metrics after one step."""
  config = optimizer_lib.OptimizerConfig(
    learning_rate=1.0,
    num_steps=10,
    warmup_steps=0,
    accumulation_steps=parts,
    # Far above the gradients: the update is then proportional to them, where
    # AdamW's first one is their sign, also of gradients that are rounding.
    epsilon=1e3,
    max_grad_norm=1e9,
    weight_decay=0.0,
  )
  step, tx = step_lib.make_step(task.loss, config, draw=task.draw)
  params = jax.jit(task.init_params)()
  before = jax.device_get(params)
  after, metrics = step(state_lib.create(params, tx), batch, jax.random.key(5))
  updates = jax.tree.map(np.subtract, jax.device_get(after.params), before)
  return updates, jax.device_get(metrics)


@pytest.mark.slow  # Compiles six training steps.
@pytest.mark.parametrize("name", ["vae", "pictures", "dit"])
def test_micro_batches_give_the_update_of_the_whole_batch(name):
  preset = _preset()
  task, batch = getattr(presets, name)(preset), _batch(preset)
  (whole, metrics), (parts, others) = (_take(task, batch, n) for n in (1, 2))
  np.testing.assert_allclose(others["loss"], metrics["loss"], rtol=1e-5)
  np.testing.assert_allclose(
    others["grad_norm"], metrics["grad_norm"], rtol=1e-4
  )
  # Some gradients are zero but for rounding (the keys' biases): what they are
  # then is in proportion to the terms that cancel.
  rounding = (
    10
    * np.finfo(np.float32).eps
    * max(np.abs(a).max() for a in jax.tree.leaves(whole))
  )
  for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
    largest = np.abs(a).max()
    np.testing.assert_allclose(b, a, rtol=0, atol=1e-3 * largest + rounding)
