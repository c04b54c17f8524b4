"""Placements: applied, undone, and what a camera sees of a placed object."""

import numpy as np
import pytest

from sculpt4d_jax.geometry import placement as placement_lib
from sculpt4d_jax.rendering import sphere_tracer


def _view(elevation=0.4, centre=(0.2, -0.1)):
  return sphere_tracer.View(
    azimuth=np.float32(0),
    elevation=np.float32(elevation),
    centre=np.array(centre, np.float32),
    extent=np.float32(1),
    light=np.zeros(3, np.float32),
  )


def _placement(view):
  axes = np.stack([np.asarray(x) for x in sphere_tracer.camera_axes(view)])
  return placement_lib.in_picture(axes, view.centre)


def test_a_camera_that_looks_down_looks_level_at_the_placed_object():
  placement = _placement(_view(elevation=np.pi / 2, centre=(0, 0)))
  # From straight above, what points up in the world points at the viewer, and
  # the front side is at the lower edge of the picture.
  up_and_front = np.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
  np.testing.assert_allclose(
    placement.points(up_and_front), [[0, 0, 1], [0, -1, 0]], atol=1e-6
  )


def test_the_middle_of_the_picture_is_the_middle_of_the_cube():
  view = _view()
  right, up, _ = map(np.asarray, sphere_tracer.camera_axes(view))
  middle = view.centre[0] * right + view.centre[1] * up
  placed = _placement(view).points(middle[None])
  np.testing.assert_allclose(placed, [[0, 0, 0]], atol=1e-6)


def test_the_inverse_undoes_a_placement():
  points = np.random.default_rng(0).uniform(-1, 1, (9, 3))
  placement = placement_lib.within(_placement(_view()), 2 * points)
  assert placement.scale < 1
  back = placement.inverse().points(placement.points(points))
  np.testing.assert_allclose(back, points, atol=1e-6)


def test_distances_of_a_sphere_remain_true():
  rng = np.random.default_rng(1)
  normals = rng.normal(size=(5, 3))
  normals /= np.linalg.norm(normals, axis=1, keepdims=True)
  surface = np.concatenate([2 * normals, normals, np.ones((5, 1))], 1)
  at = rng.uniform(-1, 1, (7, 3))
  samples = np.concatenate([at, 2 - np.linalg.norm(at, axis=1)[:, None]], 1)
  placement = placement_lib.within(_placement(_view()), surface[:, :3])
  surface, samples = placement.surface(surface), placement.samples(samples)
  radius, middle = 2 * placement.scale, placement.shift
  np.testing.assert_allclose(
    surface[:, :3], middle + radius * surface[:, 3:6], atol=1e-6
  )
  np.testing.assert_allclose(
    samples[:, 3],
    radius - np.linalg.norm(samples[:, :3] - middle, axis=1),
    atol=1e-6,
  )


@pytest.mark.parametrize("size", [0.5, 3.0])
def test_objects_shrink_to_their_cube_and_never_grow(size):
  points = size * np.array([[1.0, 0, 0], [-1, 0.5, 0]])
  placed = placement_lib.within(placement_lib.UPRIGHT, points)
  expected = min(size, placement_lib.EXTENT)
  assert np.abs(placed.points(points)).max() == pytest.approx(expected)
