import numpy as np
import pytest

from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry.registration import result

TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])
CORNERS = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1.0]])
# A quarter turn about z: x becomes y.
QUARTER = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])


def _report(frame):
  return result.FrameReport(
    frame, 0, result.Verdict.REGISTERED, 0.0, 0.0, 0.0, 0.0
  )


def _registered(vertices, **changes):
  mesh = deforming_mesh.DeformingMesh(vertices, TETRAHEDRON)
  values = dict(
    mesh=mesh,
    key=0,
    reports=[_report(frame) for frame in range(len(vertices))],
    trajectory=result.fit_trajectory(vertices, vertices[0]),
    segments=result.one_segment(mesh),
  )
  return result.Registered(**(values | changes))


def test_trajectory_of_a_rigid_motion_is_that_motion():
  moved = CORNERS @ QUARTER.T + [1, 2, 3]
  transform = result.fit_trajectory(np.stack([CORNERS, moved]), CORNERS)
  np.testing.assert_allclose(transform[0], np.eye(4), atol=1e-12)
  np.testing.assert_allclose(transform[1, :3, :3], QUARTER, atol=1e-12)
  np.testing.assert_allclose(transform[1, :3, 3], [1, 2, 3], atol=1e-12)


def test_trajectory_never_mirrors():
  mirrored = CORNERS * [-1, 1, 1]
  transform = result.fit_trajectory(mirrored[None], CORNERS)
  assert np.linalg.det(transform[0, :3, :3]) == pytest.approx(1)


def test_deformation_of_a_rigid_motion_is_still():
  moved = CORNERS @ QUARTER.T + [1, 2, 3]
  registered = _registered(np.stack([CORNERS, moved]))
  still = registered.deformation().vertices
  np.testing.assert_allclose(still, np.stack([CORNERS, CORNERS]), atol=1e-6)


def test_segments_must_cover_all_frames():
  vertices = np.stack([CORNERS] * 3)
  part = deforming_mesh.DeformingMesh(vertices[:2], TETRAHEDRON)
  with pytest.raises(ValueError, match="cover 2 frames"):
    _registered(vertices, segments=[result.Segment(0, 1, part)])
  with pytest.raises(ValueError, match="continue at frame 0"):
    _registered(vertices, segments=[result.Segment(1, 2, part)])


def test_reports_must_be_one_a_frame():
  with pytest.raises(ValueError, match="one report"):
    _registered(np.stack([CORNERS] * 2), reports=[_report(0)])
