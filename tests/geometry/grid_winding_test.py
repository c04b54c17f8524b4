"""Winding numbers by columns equal those of single points."""

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.geometry import grid_winding
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import mesh_distance

CENTRES = (np.arange(16) + 0.5) / 8 - 1


def mesh_of(body):
  return mesh_lib.TriangleMesh(body.vertices, body.faces)


def by_points(mesh):
  """Winding numbers at the grid, and whether each point is off the surface."""
  grid = np.stack(np.meshgrid(*[CENTRES] * 3, indexing="ij"), -1).reshape(-1, 3)
  clear = mesh_distance.unsigned_distance(mesh, grid) > 1e-6
  return np.rint(mesh_distance.winding_number(mesh, grid)), clear


def check(mesh):
  expected, clear = by_points(mesh)
  found = grid_winding.grid_winding(mesh, CENTRES).reshape(-1)
  assert clear.mean() > 0.8
  np.testing.assert_array_equal(found[clear], expected[clear])
  return found


def test_cells_of_a_box_by_hand():
  box = trimesh.creation.box((1.0, 0.5, 0.25))
  found = grid_winding.grid_winding(mesh_of(box), CENTRES)
  assert found.sum() == 8 * 4 * 2
  assert found[4:12, 6:10, 7:9].all()


def test_a_column_through_edges_and_corners_crosses_once():
  # All corners, edges and diagonals of its faces lie on columns.
  side = CENTRES[12] - CENTRES[3]
  box = trimesh.creation.box((side, side, 0.9))
  box.apply_translation([*[(CENTRES[12] + CENTRES[3]) / 2] * 2, 0])
  found = grid_winding.grid_winding(mesh_of(box), CENTRES)
  assert set(np.unique(found)) == {0.0, 1.0}
  assert found[4:12, 4:12, 7].all()
  for turned in np.eye(3)[[1, 2, 0]], np.eye(3)[[2, 0, 1]]:
    check(mesh_lib.TriangleMesh(box.vertices @ turned, box.faces))


@pytest.mark.parametrize("seed", range(4))
def test_turned_bodies(seed):
  rng = np.random.default_rng(seed)
  body = trimesh.creation.torus(0.55, 0.25, 24, 12)
  body.apply_transform(
    trimesh.transformations.random_rotation_matrix(rng.random(3))
  )
  found = check(mesh_of(body))
  assert found.any()


def test_overlapping_parts_add_and_a_reversed_one_subtracts():
  a = trimesh.creation.icosphere(3, 0.5)
  b = trimesh.creation.icosphere(2, 0.5).apply_translation([0.2, 0.1, 0])
  assert check(mesh_of(trimesh.util.concatenate([a, b]))).max() == 2
  b.invert()
  assert check(mesh_of(trimesh.util.concatenate([a, b]))).min() == -1


def test_parts_of_a_mesh_outside_of_the_grid_do_not_count():
  far = trimesh.creation.icosphere(2, 0.5).apply_translation([5, 0, 0])
  assert not grid_winding.grid_winding(mesh_of(far), CENTRES).any()
  above = trimesh.creation.icosphere(2, 0.5).apply_translation([0, 0, 1.4])
  check(mesh_of(above))


def test_many_candidates_are_worked_off_in_portions(monkeypatch):
  mesh = mesh_of(trimesh.creation.icosphere(3, 0.7))
  whole = grid_winding.grid_winding(mesh, CENTRES)
  monkeypatch.setattr(grid_winding, "_CANDIDATES", 50)
  np.testing.assert_array_equal(grid_winding.grid_winding(mesh, CENTRES), whole)


def test_columns_that_do_not_end_outside_are_decided_point_by_point():
  body = trimesh.creation.icosphere(3, 0.7)
  open_body = mesh_lib.TriangleMesh(body.vertices, body.faces[1:])
  expected, clear = by_points(open_body)
  found = grid_winding.grid_winding(open_body, CENTRES).reshape(-1)
  assert ((found > 0.5) == (expected > 0.5))[clear].mean() > 0.999
