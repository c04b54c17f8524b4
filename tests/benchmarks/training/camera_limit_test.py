"""True shapes that another camera places."""

import numpy as np
import pytest

from benchmarks.training import camera_limit
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.inference import outlines


def _view(elevation, extent, centre=(0.0, 0.0)):
  return outlines.as_view(np.array([elevation, *centre, np.log(extent)]))


def test_the_true_camera_costs_nothing():
  clip = solids.make_clip(0, 2)
  numbers = np.array([0.3, 0.05, -0.02, np.log(0.9)])
  found = camera_limit.iou(clip, outlines.as_view(numbers), numbers)
  assert found == pytest.approx(1.0, abs=1e-3)


def test_points_turn_by_the_error_of_the_elevation():
  # Seen from straight ahead, the top of a camera that looks down by 90 degrees
  # is what it sees at the upper edge: far away, at -z.
  points = np.array([[0.0, 0.0, 0.0], [0.2, 0.3, 0.0]])
  found = camera_limit.moved(points, _view(0.0, 1.0), _view(np.pi / 2, 1.0))
  np.testing.assert_allclose(found, [[0, 0, 0], [0.2, 0.0, -0.3]], atol=1e-6)


def test_points_shrink_by_the_error_of_the_scale():
  # A picture of half the extent shows an object of half the size.
  points = np.array([[0.4, 0.2, 0.0], [0.0, 0.0, 0.2]])
  found = camera_limit.moved(points, _view(0.0, 1.0), _view(0.0, 0.5))
  np.testing.assert_allclose(found, points / 2, atol=1e-6)


def test_a_shift_of_the_picture_shifts_points():
  points = np.zeros((1, 3))
  found = camera_limit.moved(
    points, _view(0.0, 1.0, (0.1, 0.0)), _view(0.0, 1.0)
  )
  np.testing.assert_allclose(found, [[-0.1, 0, 0]], atol=1e-6)
