import dataclasses
import functools

import jax
import numpy as np
import pytest

from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.evaluation import tracking_metrics
from sculpt4d_jax.geometry import cleanup
from sculpt4d_jax.geometry import isosurface
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import signed_distance
from sculpt4d_jax.geometry.registration import result
from sculpt4d_jax.geometry.registration import sequence
from sculpt4d_jax.geometry.registration import settings as settings_lib
from tests.geometry.registration import shapes

TriangleMesh = mesh_lib.TriangleMesh
Verdict = result.Verdict

# Small shapes need few nodes and samples.
SMALL = settings_lib.Settings(
  graph=settings_lib.GraphSettings(num_nodes=40, num_samples=500)
)
EMPTY = TriangleMesh(np.zeros((0, 3)), np.zeros((0, 3), int))


def _moved(mesh, turn, shift):
  return TriangleMesh(mesh.vertices @ turn.T + shift, mesh.faces)


def _bars(angles):
  """A bar that bends, meshed anew in every frame, and points on it."""
  meshes = []
  for index, angle in enumerate(angles):
    bar = shapes.box((1, 0.2, 0.15), (20 + index % 3, 4, 3), shift=0.3 * index)
    meshes.append(TriangleMesh(shapes.bend(bar.vertices, angle), bar.faces))
  rest = shapes.box((1, 0.2, 0.15), (17, 3, 2)).vertices
  return meshes, np.stack([shapes.bend(rest, angle) for angle in angles])


def test_rigidly_moving_cube_registers_exactly():
  cube = shapes.box()
  steps = [
    (shapes.turn(0.15 * i), np.array([0.05, 0.02, 0.0]) * i) for i in range(4)
  ]
  meshes = [_moved(cube, *step) for step in steps]
  found = sequence.register(meshes, SMALL)
  assert found.key == 0
  assert found.frames_with(Verdict.REGISTERED) == [0, 1, 2, 3]
  side = np.ptp(np.concatenate([m.vertices for m in meshes]), axis=0).max()
  for frame, (mesh, (turn, shift)) in enumerate(zip(meshes, steps)):
    error = np.linalg.norm(found.mesh.vertices[frame] - mesh.vertices, axis=1)
    assert error.max() < 0.004 * side, frame
    np.testing.assert_allclose(
      found.trajectory[frame, :3, :3], turn, atol=0.005
    )
    np.testing.assert_allclose(
      found.trajectory[frame, :3, 3], shift, atol=0.005
    )
  still = found.deformation().vertices
  assert np.abs(still - still[0]).max() < 0.006


def test_bending_bar_is_followed_though_it_is_meshed_anew():
  meshes, truth = _bars([0.0, 0.3, 0.6, 0.9])
  found = sequence.register(meshes, SMALL)
  assert found.frames_with(Verdict.REGISTERED) == [0, 1, 2, 3]
  errors = tracking_metrics.correspondence(found.mesh, truth, found.key)
  # Square ends stop a bar from sliding along itself; its middle may, a little.
  assert errors.mean < 0.006
  assert errors.motion > 0.02
  surface = tracking_metrics.surface(found.mesh, meshes, found.key)
  assert surface.hausdorff99 < 0.006
  assert surface.turned < 0.005


def test_the_result_does_not_depend_on_units_and_place():
  meshes, _ = _bars([0.0, 0.3])
  far = [
    TriangleMesh(128 * m.vertices + np.float32([256, 0, -512]), m.faces)
    for m in meshes
  ]
  near, other = (sequence.register(s, SMALL, key=0) for s in (meshes, far))
  np.testing.assert_allclose(
    (other.mesh.vertices - [256, 0, -512]) / 128,
    near.mesh.vertices,
    atol=2e-3,
  )


def test_any_frame_may_be_the_key_and_is_kept_as_it_is():
  meshes, _ = _bars([0.0, 0.3, 0.6])
  found = sequence.register(meshes, SMALL, key=1)
  assert found.key == 1
  np.testing.assert_allclose(
    found.mesh.vertices[1], meshes[1].vertices, atol=1e-6
  )
  np.testing.assert_array_equal(found.mesh.faces, meshes[1].faces)
  np.testing.assert_allclose(found.trajectory[1], np.eye(4), atol=1e-6)


@functools.cache
def _walk():
  """A third of a quadruped's walk, every frame meshed anew."""
  solid = clip_records.trim(solids.make_clip(1012, 16).solid)
  field = jax.jit(signed_distance.signed_distance)
  meshes = []
  for index in range(6):
    frame = jax.tree.map(lambda leaf: leaf[index], solid)
    grid = isosurface.coarse_to_fine_field(
      lambda points: np.asarray(field(frame, points.astype(np.float32))),
      56,
      band_cells=1.0,
      min_resolution=20,
    )
    surface = isosurface.extract_surface(grid.values)
    meshes.append(cleanup.simplify(surface, 3000))
  return meshes


def _worst_distance(settings):
  alone = dataclasses.replace(
    settings, num_candidates=1, max_extra_keys=0, find_segments=False
  )
  found = sequence.register(_walk(), alone)
  return max(report.hausdorff99 for report in found.reports)


def test_the_schedule_is_soft_enough_for_swinging_legs():
  graph = settings_lib.GraphSettings(num_nodes=80, num_samples=700)
  assert _worst_distance(settings_lib.Settings(graph=graph)) < 0.01
  stiff = [(10, 0.42, 5), (3, 0.26, 5), (1, 0.16, 5), (0.3, 0.105, 5)]
  graph = dataclasses.replace(
    graph,
    rounds=tuple(settings_lib.Round(*row, 0.1) for row in stiff),
    robust_scale=0.3,
  )
  assert _worst_distance(settings_lib.Settings(graph=graph)) > 0.02


def test_a_lost_limb_is_never_silent():
  body = shapes.ball(0.5)
  limb = shapes.box((0.7, 0.1, 0.1), (12, 2, 2))
  at = [
    _moved(limb, np.eye(3), [0.75, 0, 0]),
    _moved(limb, np.eye(3), [-0.75, 0, 0]),
  ]
  whole, maimed = shapes.joined(body, *at), shapes.joined(body, at[0])
  found = sequence.register(
    [whole, whole, maimed],
    dataclasses.replace(SMALL, find_segments=False),
    key=0,
  )
  verdicts = [report.verdict for report in found.reports]
  assert verdicts[:2] == [Verdict.REGISTERED] * 2
  assert verdicts[2] == Verdict.FAILED
  assert "of the box away" in found.reports[2].reason


def test_parts_that_split_become_segments_with_a_topology_each():
  one = shapes.box((1.6, 0.5, 0.5), (16, 5, 5))
  halves = [
    shapes.joined(
      _moved(
        shapes.box((0.8, 0.5, 0.5), (8, 5, 5)), np.eye(3), [-0.4 - gap, 0, 0]
      ),
      _moved(
        shapes.box((0.8, 0.5, 0.5), (8, 5, 5)), np.eye(3), [0.4 + gap, 0, 0]
      ),
    )
    for gap in (0.25, 0.35)
  ]
  found = sequence.register([one, one, *halves], SMALL, key=0)
  assert Verdict.FAILED in [report.verdict for report in found.reports]
  spans = [(s.first_frame, s.last_frame) for s in found.segments]
  assert spans == [(0, 1), (2, 3)]
  assert found.segments[1].mesh.num_vertices == halves[0].num_vertices
  assert [r.verdict for r in found.segment_reports] == [Verdict.REGISTERED] * 4


def test_a_frame_without_surface_fails_and_others_do_not():
  meshes, _ = _bars([0.0, 0.1, 0.2])
  found = sequence.register([meshes[0], EMPTY, meshes[2]], SMALL)
  verdicts = [report.verdict for report in found.reports]
  assert verdicts == [Verdict.REGISTERED, Verdict.FAILED, Verdict.REGISTERED]
  assert np.isfinite(found.mesh.vertices).all()


def test_one_frame_is_its_own_registration():
  cube = shapes.box()
  found = sequence.register([cube], SMALL)
  np.testing.assert_allclose(found.mesh.vertices[0], cube.vertices, atol=1e-6)
  assert found.frames_with(Verdict.REGISTERED) == [0]


def test_bad_requests_say_what_is_wrong():
  cube = shapes.box()
  with pytest.raises(ValueError, match="none of the frames has a surface"):
    sequence.register([EMPTY], SMALL)
  with pytest.raises(ValueError, match=r"key=7 .* 0\.\.0"):
    sequence.register([cube], SMALL, key=7)
  broken = TriangleMesh(cube.vertices * np.nan, cube.faces)
  with pytest.raises(ValueError, match="frame 1 .* not finite"):
    sequence.register([cube, broken], SMALL)
