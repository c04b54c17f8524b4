"""Polygons cut into triangles: their area, their winding, their edges."""

import numpy as np
import pytest

from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import polygons

pytest.importorskip("mapbox_earcut", reason="needs the extra `usd`")

# An L, counter-clockwise; its fifth corner is turned inwards.
L_SHAPE = np.array([[0, 0], [3, 0], [3, 1], [1, 1], [1, 3], [0, 3]], float)


def _areas(points, triangles):
  a, b, c = (points[triangles[:, i]] for i in range(3))
  return np.cross(b - a, c - a) / 2


def _in_space(flat, seed):
  """Flat points in a random plane, and its normal."""
  rng = np.random.default_rng(seed)
  axes, _ = np.linalg.qr(rng.standard_normal((3, 3)))
  axes[:, 2] = np.cross(axes[:, 0], axes[:, 1])
  return flat @ axes[:, :2].T + rng.standard_normal(3), axes[:, 2]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("shift", range(6))
@pytest.mark.parametrize("turned", [False, True])
def test_a_concave_polygon_keeps_its_area_and_winding(seed, shift, turned):
  flat = np.roll(L_SHAPE, shift, axis=0)
  points, normal = _in_space(flat, seed)
  corners = np.arange(6)
  if turned:
    corners, normal = corners[::-1], -normal
  triangles = polygons.triangulate(np.array([6]), corners, points)
  assert triangles.shape == (4, 3)
  areas = _areas(points, triangles) @ normal
  # No triangle is turned over or covers what another one covers.
  assert (areas > 0).all()
  assert areas.sum() == pytest.approx(5.0)


def test_a_fan_would_be_wrong_and_convex_ones_stay_fans():
  points = np.pad(np.roll(L_SHAPE, 1, axis=0), ((0, 0), (0, 1)))
  fan = polygons.fan_triangles(np.array([6]), np.arange(6), 6)
  assert (_areas(points, fan)[:, 2] < 0).any()
  angle = np.linspace(0, 2 * np.pi, 7, endpoint=False)
  round_ = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
  counts, corners = np.array([7, 3]), np.r_[np.arange(7), 0, 2, 1]
  np.testing.assert_array_equal(
    polygons.triangulate(counts, corners, round_),
    polygons.fan_triangles(counts, corners, 7),
  )


def test_several_polygons_stay_in_order():
  points = np.pad(np.concatenate([L_SHAPE, L_SHAPE + 5]), ((0, 0), (0, 1)))
  counts = np.array([3, 6, 2, 6])
  corners = np.r_[0, 1, 5, np.arange(6), 0, 1, np.arange(6, 12)]
  triangles = polygons.triangulate(counts, corners, points)
  assert len(triangles) == 1 + 4 + 0 + 4
  np.testing.assert_array_equal(triangles[0], [0, 1, 5])
  assert triangles[1:5].max() < 6 <= triangles[5:].min()


def test_a_polygon_is_cut_once_for_all_frames():
  points = np.pad(L_SHAPE, ((0, 0), (0, 1)))
  faces = polygons.Faces()
  first = faces.triangles("a", np.array([6]), np.arange(6), points)
  later = faces.triangles("a", np.array([6]), np.arange(6), points[::-1])
  np.testing.assert_array_equal(first, later)


def test_what_does_not_fit_is_refused():
  with pytest.raises(asset_files.AssetError, match="do not match"):
    polygons.triangulate(np.array([4]), np.arange(3), np.zeros((3, 3)))
  with pytest.raises(asset_files.AssetError, match="does not exist"):
    polygons.triangulate(np.array([4]), np.arange(4), np.zeros((3, 3)))
  # Polygons without area keep their fan.
  flat = polygons.triangulate(np.array([5]), np.arange(5), np.zeros((5, 3)))
  assert flat.shape == (3, 3)
