import numpy as np
import pytest

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry.registration import alignment
from sculpt4d_jax.geometry.registration import own_mesh
from sculpt4d_jax.geometry.registration import settings as settings_lib
from tests.geometry.registration import shapes

TriangleMesh = mesh_lib.TriangleMesh
SMALL = settings_lib.Settings(
  graph=settings_lib.GraphSettings(num_nodes=30, num_samples=400),
  num_candidates=1,
)


def _wedge(points):
  """Breaks a bar's symmetry: thin at one end, and heavy below."""
  x, y, z = points.T
  return np.stack([x, y * (1 + x), z * (1 + 0.5 * y)], 1)


def test_a_mesh_of_any_size_place_and_direction_is_aligned():
  rng = np.random.default_rng(0)
  bar = shapes.box((1, 0.4, 0.2), (20, 8, 4))
  points = _wedge(bar.vertices.astype(float))[rng.permutation(bar.num_vertices)]
  turn = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
  far = 40 * points @ turn.T + [100, 0, 5]
  found = alignment.align(far, points)
  np.testing.assert_allclose(found.apply(far), points, atol=1e-3)
  assert found.scale == pytest.approx(1 / 40, rel=1e-3)


def test_cube_rotations_are_24_and_proper():
  turns = np.array(alignment.cube_rotations())
  assert turns.shape == (24, 3, 3)
  assert len(np.unique(turns.reshape(24, 9), axis=0)) == 24
  np.testing.assert_allclose(np.linalg.det(turns), 1)
  np.testing.assert_array_equal(turns[0], np.eye(3))


def test_topology_and_order_are_kept_and_seams_stay_closed():
  bar = shapes.box((1, 0.2, 0.15), (20, 4, 3))
  frames = [
    TriangleMesh(shapes.bend(bar.vertices, angle), bar.faces)
    for angle in (0.0, 0.3, 0.6)
  ]
  # Split into loose triangles, as flat shading does.
  loose = TriangleMesh(
    3 * bar.vertices[bar.faces].reshape(-1, 3) + np.float32([5, 0, 0]),
    np.arange(3 * bar.num_faces).reshape(-1, 3),
  )
  found = own_mesh.register_mesh(loose, frames, SMALL)
  np.testing.assert_array_equal(found.mesh.faces, loose.faces)
  together = frames[2].vertices[bar.faces].reshape(-1, 3)
  error = np.linalg.norm(found.mesh.vertices[2] - together, axis=1)
  # A bar is the same from four sides: compare surfaces, not corners.
  assert found.reports[2].hausdorff99 < 0.015
  assert np.isfinite(error).all()
  for vertices in found.mesh.vertices:
    seams = {}
    for place, moved in zip(loose.vertices.tolist(), vertices.tolist()):
      assert seams.setdefault(tuple(place), moved) == moved


def test_a_mesh_without_faces_is_refused():
  bar = shapes.box()
  with pytest.raises(ValueError, match="no faces"):
    own_mesh.register_mesh(
      TriangleMesh(bar.vertices, np.zeros((0, 3), int)), [bar], SMALL
    )
