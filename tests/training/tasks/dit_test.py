"""The DiT's training task at micro size."""

import jax
import numpy as np
import pytest

from sculpt4d_jax import errors
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
    draws = task.draw(batch(), jax.random.key(1))
    results[name] = jax.jit(task.loss)(params, batch(), draws)
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


class _Numbered:
  """Batches whose frames are numbered."""

  num_frames = 5

  def batch(self, step, rows=None):
    frames = np.arange(CLIPS * 5).reshape(CLIPS, 5)
    return {"images": frames if rows is None else frames[rows]}


def test_windows_are_consecutive_and_the_same_for_any_rows():
  options = config()
  options.dit_training.update(batch_size=CLIPS, num_frames=3)
  task = presets.dit(preset_lib.from_config(options), _Numbered())
  whole = [task.batch(step)["images"] for step in range(20)]
  for images in whole:
    assert images.shape == (CLIPS, 3)
    assert (np.diff(images, axis=1) == 1).all()
  starts = np.stack(whole)[..., 0] % 5
  assert set(starts.ravel()) == {0, 1, 2}
  assert (starts[0] != starts[1]).any()
  rows = np.array([6, 1])
  np.testing.assert_array_equal(task.batch(3, rows)["images"], whole[3][rows])


def test_more_frames_than_a_clip_has_are_refused():
  options = config()
  options.dit_training.num_frames = 6
  with pytest.raises(errors.UserError, match="5 frames"):
    presets.dit(preset_lib.from_config(options), _Numbered())
