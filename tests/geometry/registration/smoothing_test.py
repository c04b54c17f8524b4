import numpy as np
import pytest

from sculpt4d_jax.geometry.registration import smoothing

UP = np.array([0.0, 0.0, 1.0])


def _along_up(positions):
  return np.broadcast_to(UP, positions.shape)


def test_cubic_motion_is_kept():
  time = np.linspace(-1, 1, 9)
  path = np.stack([time**3, 2 * time**2, time], -1)[:, None]
  smoothed = smoothing.smooth(path, _along_up(path), 5)
  np.testing.assert_allclose(smoothed, path, atol=1e-12)


def test_shaking_along_the_surface_is_reduced_and_heights_stay():
  rng = np.random.default_rng(0)
  noise = rng.normal(size=(32, 50, 3))
  smoothed = smoothing.smooth(noise, _along_up(noise), 5)
  np.testing.assert_allclose(smoothed[..., 2], noise[..., 2], atol=1e-12)
  assert smoothed[..., :2].std() < 0.75 * noise[..., :2].std()


def test_short_clips_stay():
  positions = np.random.default_rng(0).normal(size=(4, 2, 3))
  smoothed = smoothing.smooth(positions, _along_up(positions), 5)
  np.testing.assert_array_equal(smoothed, positions)


def test_windows_that_do_nothing_are_refused():
  with pytest.raises(ValueError, match="window=4 must be odd"):
    smoothing.smooth(np.zeros((9, 1, 3)), np.zeros((9, 1, 3)), 4)
