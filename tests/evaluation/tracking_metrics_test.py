import numpy as np
import pytest

from sculpt4d_jax.evaluation import tracking_metrics
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import mesh as mesh_lib
from tests.geometry.registration import shapes

DeformingMesh = deforming_mesh.DeformingMesh


def _moving(mesh, *shifts):
  return DeformingMesh(
    np.stack([mesh.vertices + np.float32(s) for s in shifts]), mesh.faces
  )


def test_points_keep_their_place_on_the_surface():
  cube = shapes.box()
  moving = _moving(cube, [0, 0, 0], [1, 0, 0])
  points = np.array([[0.5, 0.1, 0.2], [-0.1, 0.5, 0.3]])
  carried = tracking_metrics.carry(moving, points, 0)
  np.testing.assert_allclose(carried[0], points, atol=1e-6)
  np.testing.assert_allclose(carried[1], points + [1, 0, 0], atol=1e-6)


def test_correspondence_error_by_hand():
  """The mesh stays, the truth moves by 1; the truth's box is 2 long."""
  cube = shapes.box()
  points = cube.vertices.astype(float)
  truth = np.stack([points, points + [1, 0, 0]])
  found = tracking_metrics.correspondence(
    _moving(cube, [0, 0, 0], [0, 0, 0]), truth, 0
  )
  assert found.mean == pytest.approx(0.5, abs=1e-6)
  assert found.p95 == pytest.approx(0.5, abs=1e-6)
  assert found.motion == pytest.approx(0.5)
  np.testing.assert_allclose(found.by_frame, [0, 0.5], atol=1e-6)


def test_the_key_frame_does_not_make_the_mean_better():
  cube = shapes.box()
  points = cube.vertices.astype(float)
  truth = np.stack([points + [x, 0, 0] for x in (1, 0, 1)])
  still = _moving(cube, [0, 0, 0], [0, 0, 0], [0, 0, 0])
  found = tracking_metrics.correspondence(still, truth, 1)
  assert found.mean == pytest.approx(0.5, abs=1e-6)


def test_jitter_by_hand():
  """One point that goes 0, 1, 0: its second difference is -2."""
  path = np.array([0, 1, 0.0])[:, None, None] * [1, 0, 0]
  assert tracking_metrics.jitter(path) == pytest.approx(2)
  assert tracking_metrics.jitter(path[:2]) == 0
  even = np.arange(5.0)[:, None, None] * [1, 0, 0]
  assert tracking_metrics.jitter(even) == pytest.approx(0)


def test_the_same_surface_has_no_distance_and_nothing_is_turned():
  cube = shapes.box()
  found = tracking_metrics.surface(
    _moving(cube, [0, 0, 0], [0, 0, 0]), [cube, cube]
  )
  assert found.worst_hausdorff99 < 1e-6
  assert found.turned == 0 and found.stretched == 0


def test_a_mesh_inside_out_is_turned_all_over():
  cube = shapes.box()
  inside_out = DeformingMesh(cube.vertices[None], cube.faces[:, ::-1])
  found = tracking_metrics.surface(inside_out, [cube])
  assert found.turned > 0.99


@pytest.mark.parametrize(
  "factor, share", [(1.9, 0.0), (2.1, 1.0), (0.6, 0.0), (0.45, 1.0)]
)
def test_stretch_is_counted_beyond_twice_and_half(factor, share):
  cube = shapes.box()
  scaled = mesh_lib.TriangleMesh(cube.vertices * factor, cube.faces)
  mesh = DeformingMesh(scaled.vertices[None], cube.faces, cube.vertices)
  found = tracking_metrics.surface(mesh, [scaled])
  assert found.stretched == pytest.approx(share)


def test_frames_must_match():
  cube = shapes.box()
  moving = _moving(cube, [0, 0, 0], [1, 0, 0])
  with pytest.raises(ValueError, match="truth must be"):
    tracking_metrics.correspondence(moving, np.zeros((3, 4, 3)), 0)
  with pytest.raises(ValueError, match="expected 2 targets, got 1"):
    tracking_metrics.surface(moving, [cube])
