"""The DiT's training task at micro size."""

import jax
import numpy as np
import pytest

from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.tasks import presets
from tests.integration import micro

CLIPS, FRAMES = 8, 4


def config(**frame_times):
  result = micro.get_config()
  result.dit_training.context_field_weight = 0.0
  result.dit_training.temporal_dropout = 0.0
  result.dit_training.frame_times.update(frame_times)
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
def losses():
  results = {}
  for name, shares in {
    "off": {},
    "nearly off": dict(known=1e-9),
    "known": dict(known=1.0),
  }.items():
    task = presets.dit(preset_lib.from_config(config(**shares)))
    params = task.init_params()
    results[name] = jax.jit(task.loss)(params, batch(), jax.random.key(1))
  return results


def test_equal_times_of_frames_have_the_loss_of_one_time(losses):
  loss, metrics = losses["off"]
  other, _ = losses["nearly off"]
  np.testing.assert_allclose(other, loss, rtol=1e-6)
  weights = [m.weight for n, m in metrics.items() if n.startswith("flow_loss_")]
  assert sum(weights) == CLIPS


def test_known_frames_are_left_out_of_the_loss(losses):
  loss, metrics = losses["known"]
  assert np.isfinite(loss)
  weights = [m.weight for n, m in metrics.items() if n.startswith("flow_loss_")]
  # One or two of four frames are known.
  assert 2 * CLIPS <= sum(weights) <= 3 * CLIPS
