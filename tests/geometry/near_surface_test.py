"""Lean refinement: the dense grid's surface, from few points."""

import numpy as np
import pytest

from sculpt4d_jax.geometry import isosurface
from sculpt4d_jax.geometry import near_surface

WIDTH = 0.05  # The field is a distance over this, cut at +-1.


def field_of(distance):
  return lambda p: np.clip(-distance(p) / WIDTH, -1, 1).astype(np.float32)


def ball(p, centre=(0.1, -0.2, 0.05), radius=0.55):
  return np.linalg.norm(p - np.array(centre), axis=-1) - radius


def rod(p, radius=0.03):
  """A thin rod across the cube, askew."""
  axis = np.array([0.8, 0.5, 0.33]) / np.linalg.norm([0.8, 0.5, 0.33])
  along = np.clip(p @ axis, -0.8, 0.8)
  return np.linalg.norm(p - along[..., None] * axis, axis=-1) - radius


def sheet(p):
  """Thinner than a cell of every grid but the finest."""
  size = np.abs(p - np.array([0.0, 0.0, 0.011])) - np.array([0.6, 0.5, 0.012])
  return np.maximum(size[..., 0], np.maximum(size[..., 1], size[..., 2]))


SHAPES = {
  "ball": ball,
  "rod": rod,
  "sheet": sheet,
  "two balls": lambda p: np.minimum(
    ball(p, (-0.4, 0, 0), 0.35), ball(p, (0.45, 0.1, 0), 0.4)
  ),
}


@pytest.mark.parametrize("resolution", [48, 50, 96])
@pytest.mark.parametrize("name", SHAPES)
def test_surface_is_the_dense_grids(name, resolution):
  field = field_of(SHAPES[name])
  meshes, counts = {}, {}
  for mode in ("dense", "exact", "lean"):
    if mode == "dense":
      grid = isosurface.dense_field(field, resolution)
    else:
      grid = isosurface.coarse_to_fine_field(
        field, resolution, mode=mode, min_resolution=12
      )
    meshes[mode] = isosurface.extract_surface(grid.values)
    counts[mode] = grid.num_evaluations
  for mode in ("exact", "lean"):
    np.testing.assert_array_equal(meshes[mode].faces, meshes["dense"].faces)
    np.testing.assert_array_equal(
      meshes[mode].vertices, meshes["dense"].vertices
    )
  assert counts["lean"] < 0.8 * counts["exact"] < counts["dense"]


def test_no_point_is_evaluated_twice():
  seen = []

  def field(p):
    seen.append(p)
    return field_of(ball)(p)

  isosurface.coarse_to_fine_field(
    field, 32, mode="lean", min_resolution=8, chunk_size=1
  )
  points = np.concatenate(seen)
  assert len(np.unique(points.round(5), axis=0)) == len(points)


def test_interpolation_by_hand():
  values = np.zeros((3, 3, 3), np.float32)
  values[1, :, :] = 2.0
  fine = near_surface.interpolate(values, 4)
  np.testing.assert_allclose(fine[:, 0, 0], [0, 1, 2, 1, 0])
  odd = near_surface.interpolate(values, 3)
  np.testing.assert_allclose(odd[:, 1, 1], [0, 4 / 3, 4 / 3, 0], rtol=1e-6)


@pytest.mark.parametrize("resolution", [4, 5, 6])
def test_common_points_keep_values_and_marks(resolution):
  values = np.random.default_rng(0).normal(size=(3, 3, 3)).astype(np.float32)
  fine = near_surface.interpolate(values, resolution)
  marks = near_surface.on_finer_grid(np.ones((3, 3, 3), bool), resolution)
  step = resolution // 2
  if resolution % 2:  # The corners alone.
    assert marks.sum() == 8 and marks[0, 0, 0] and marks[-1, -1, -1]
    step = resolution
    values = values[::2, ::2, ::2]
  np.testing.assert_array_equal(fine[::step, ::step, ::step], values)
  assert marks[::step, ::step, ::step].all()


def test_a_known_surface_puts_no_suspicion_on_the_points_around_it():
  values = -ball(isosurface.grid_points(24)).astype(np.float32)
  marks = near_surface.hiding_places(values, 0.0, 0.95, 48)
  assert not marks.any()


def test_a_hidden_piece_is_suspected_and_a_far_one_is_not():
  """A sheet between two planes of points, of a field not cut off there."""
  x = np.linspace(-1, 1, 9)
  values = np.broadcast_to(-np.abs(x - 0.125)[:, None, None], (9, 9, 9)).astype(
    np.float32
  )
  marks = near_surface.hiding_places(values, 0.0, 0.95, 16)
  assert marks[8:11].all()  # Around the sheet at x = 0.125.
  assert not marks[:4].any() and not marks[14:].any()
  assert not near_surface.hiding_places(values, 0.0, 0.1, 16).any()
