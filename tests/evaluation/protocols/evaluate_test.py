"""The protocols against closed forms and independent implementations."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy import spatial
import trimesh

from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation import sequences
from sculpt4d_jax.evaluation.protocols import clip_pair
from sculpt4d_jax.evaluation.protocols import evaluate
from sculpt4d_jax.evaluation.protocols import metric_table
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.evaluation.protocols import scores
from sculpt4d_jax.evaluation.protocols.metrics import point_to_surface
from sculpt4d_jax.io.meshes import ply_obj
from tests.evaluation import shapes
from tests.evaluation.protocols import actionbench_reference

WORST = 2 * math.sqrt(3)


def quick(name, metrics=None, **changes):
  """A protocol with few points."""
  protocol = protocol_table.find(name)
  changes = {"num_points": 4000, "alignment_points": 1000, **changes}
  return dataclasses.replace(
    protocol,
    metrics=metrics or protocol.metrics,
    conventions=dataclasses.replace(protocol.conventions, **changes),
  )


def score(prediction, truth, protocol):
  return evaluate.score_clip(
    shapes.sequence(prediction), shapes.sequence(truth), protocol, name="clip"
  )


@pytest.mark.parametrize("radius", [0.4, 0.6, 0.75])
def test_spheres_are_apart_by_their_radii(radius):
  protocol = quick("sculpt4d", ("cd", "cd_sum"), alignment="none")
  protocol = dataclasses.replace(
    protocol,
    conventions=dataclasses.replace(protocol.conventions, num_points=30_000),
  )
  spheres = [shapes.sphere(r, subdivisions=5) for r in (0.5, radius)]
  found = score([spheres[0]], [spheres[1]], protocol)
  difference = abs(radius - 0.5)
  assert found.mean("cd") == pytest.approx(difference, rel=0.01)
  assert found.mean("cd_sum") == pytest.approx(2 * difference, rel=0.01)
  # Independent samples and trees.
  a, b = (
    trimesh.sample.sample_surface(shapes.as_trimesh(s), 30_000, seed=i)[0]
    for i, s in enumerate(spheres)
  )
  other = (
    spatial.KDTree(a).query(b)[0].mean() + spatial.KDTree(b).query(a)[0].mean()
  )
  assert found.mean("cd_sum") == pytest.approx(other, rel=0.005)


def test_surface_against_itself_is_at_the_floor():
  ball = shapes.sphere(0.5, subdivisions=4)
  protocol = quick("actionbench", ("cd_4d", "f_0.01"), alignment="none")
  count = 100_000
  protocol = dataclasses.replace(
    protocol,
    conventions=dataclasses.replace(protocol.conventions, num_points=count),
  )
  found = score([ball], [ball], protocol)
  floor = 0.5 * math.sqrt(math.pi * 0.5**2 * 4 / count)
  assert found.mean("cd_4d") == pytest.approx(2 * floor, rel=0.1)
  assert found.mean("f_0.01") > 0.99


def test_motion_at_half_speed():
  # The distance of surfaces apart by d is about d for tracked points.
  step = np.array([0.04, 0.0, 0.0])
  ball = shapes.sphere(0.5, subdivisions=4)
  truth = [shapes.moved(ball, 2 * t * step) for t in range(3)]
  prediction = [shapes.moved(ball, t * step) for t in range(3)]
  protocol = quick("actionbench", num_points=20_000, alignment_points=4000)
  found = score(prediction, truth, protocol)
  offset = np.linalg.norm(step) * np.arange(3).mean()
  floor = math.sqrt(math.pi / 20_000)
  assert found.mean("cd_3d") < 1.5 * floor
  # CD-M pairs points of frame 0, which are a floor apart.
  assert found.mean("cd_m") / 2 == pytest.approx(offset, abs=floor)
  # The mean of ||p + d| - r| over a sphere is d / 2 exactly, a direction.
  direct = score(
    prediction,
    truth,
    dataclasses.replace(
      protocol,
      conventions=dataclasses.replace(protocol.conventions, alignment="none"),
      metrics=("cd_4d", "cd_m"),
    ),
  )
  assert offset < direct.mean("cd_4d") < offset + floor
  assert found.mean("cd_4d") == pytest.approx(direct.mean("cd_4d"), abs=0.005)
  assert found.mean("cd_m") == pytest.approx(direct.mean("cd_m"), abs=0.005)
  assert found.mean("vertex_jitter") < 1e-5


def test_sliding_points_show_in_cd_m_alone():
  ball = shapes.as_trimesh(shapes.sphere(0.5, subdivisions=4))
  angles = np.radians([0.0, 20.0, 40.0, 60.0])
  turning = []
  for angle in angles:
    turned = ball.copy()
    turned.apply_transform(
      trimesh.transformations.rotation_matrix(angle, [0, 1, 0])
    )
    turning.append(shapes.TriangleMesh(turned.vertices, turned.faces))
  still = [turning[0]] * 4
  protocol = quick("actionbench", num_points=20_000, alignment_points=2000)
  found = score(turning, still, protocol)
  floor = math.sqrt(math.pi / 20_000)
  assert found.mean("cd_4d") < 1.5 * floor
  # A point at distance rho from the axis moves along a chord of 2 rho
  # sin(angle / 2); over a sphere rho has the mean r pi / 4.
  chords = 2 * 0.5 * math.pi / 4 * np.sin(angles / 2)
  assert found.mean("cd_m") / 2 == pytest.approx(chords.mean(), abs=floor)


@pytest.mark.slow  # Aligns twice.
def test_actionbench_equals_an_independent_transcription():
  truth = np.random.default_rng(0).normal(size=(3, 15_000, 3)) * 0.2
  meshes = [shapes.moved(shapes.body(0), [0.02 * t, 0, 0]) for t in range(3)]
  protocol = protocol_table.find("actionbench")
  protocol = dataclasses.replace(
    protocol,
    metrics=("cd_3d", "cd_4d", "cd_m"),
    conventions=dataclasses.replace(
      protocol.conventions,
      num_points=20_000,
      num_queries=5_000,
      alignment_points=500,
    ),
  )
  pair = clip_pair.ClipPair(
    shapes.sequence(meshes),
    sequences.ShapeSequence(cloud=truth.astype(np.float32)),
    protocol.conventions,
  )
  expected = {
    "cd_3d": np.mean(
      [
        actionbench_reference.chamfer(*pair.points(f, per_frame=True), 5_000)
        for f in range(3)
      ]
    ),
    "cd_4d": np.mean(
      [actionbench_reference.chamfer(*pair.points(f), 5_000) for f in range(3)]
    ),
    "cd_m": actionbench_reference.motion_chamfer(*pair.tracked),
  }
  for name, value in expected.items():
    found = metric_table.METRICS[name].scores(pair).mean()
    assert found == pytest.approx(value, abs=1e-6), name
  # The points themselves are those of the description.
  theirs, _ = trimesh.sample.sample_surface(
    shapes.as_trimesh(meshes[1]), 20_000, seed=45
  )
  np.testing.assert_allclose(pair.predicted_clouds[1], theirs, atol=1e-6)


def test_changed_topology_has_no_cd_m():
  prediction = [shapes.sphere(subdivisions=s) for s in (2, 3, 2)]
  truth = [shapes.sphere()] * 3
  found = score(prediction, truth, quick("actionbench", alignment="none"))
  assert found.notes["cd_m"] == "the topology of the prediction changes"
  assert math.isnan(found.mean("cd_m"))
  assert found.mean("cd_4d") < 0.05
  report = scores.summarise(quick("actionbench"), [found])
  assert scores.format_notes(report)[0] == (
    "CD-M not defined: the topology of the prediction changes (1 clip)."
  )


@pytest.mark.parametrize("name", ["project", "motion324"])
def test_an_open_surface_of_three_faces_is_scored(name):
  corner = np.array([[0, 0, 0], [0.4, 0, 0], [0, 0.4, 0], [0, 0, 0.4]])
  faces = np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2]])
  truth = [shapes.body(1)] * 3
  prediction = [shapes.TriangleMesh(corner, faces)] * 3
  found = score(prediction, truth, quick(name, num_points=300))
  assert found.num_empty == 0 and not found.notes
  for key in found.values:
    assert np.isfinite(found.values[key]).all(), key
    if key.startswith("cd"):
      assert (found.values[key] > 0).all(), key


@pytest.mark.parametrize("name", protocol_table.PROTOCOLS)
def test_frames_without_surface_score_the_worst_and_are_counted(name):
  truth = [shapes.body(1)] * 3
  prediction = [truth[0], shapes.EMPTY, truth[2]]
  protocol = quick(name, alignment="none", num_points=500)
  found = score(prediction, truth, protocol)
  assert found.num_empty == 1
  for key in protocol.metrics:
    metric = metric_table.METRICS[key]
    if metric.of_frame is not None:
      assert found.values[key][1] == metric.worst
      assert metric.worst in (WORST, 2 * WORST, 0.0)
      assert found.values[key][0] != metric.worst
  assert (
    "1 predicted frame without a surface"
    in scores.summarise(protocol, [found]).describe()
  )


@pytest.mark.slow  # Two million faces.
def test_two_million_faces_are_scored():
  ball = trimesh.creation.uv_sphere(radius=0.5, count=[1024, 1024])
  dense = shapes.TriangleMesh(ball.vertices, ball.faces)
  assert dense.num_faces > 2_000_000
  protocol = quick("actionbench", ("cd_4d",), alignment="none")
  found = score([dense], [shapes.sphere(0.6, subdivisions=5)], protocol)
  assert found.mean("cd_4d") == pytest.approx(0.2, abs=0.02)
  assert not found.notes


def test_failed_clips_count_or_leave_as_the_protocol_says(tmp_path):
  truth = [shapes.body(1)] * 2
  for folder in ("truth/a", "truth/b", "predicted/a"):
    ply_obj.write_mesh_sequence(tmp_path / folder, truth)
  for name, mean in (
    ("motion324", WORST),
    ("motion324:reference", 0.0),
  ):
    report = evaluate.evaluate(
      tmp_path / "predicted", tmp_path / "truth", quick(name, num_points=300)
    )
    assert report.num_failed == 1
    assert report.estimates["cd_sum"].mean == pytest.approx(mean, abs=0.2)
    assert "2 clips, 1 failed" in report.describe()


def test_project_is_what_the_evaluator_gives():
  truth = [shapes.sphere(0.5, (0.02 * t, 0, 0)) for t in range(4)]
  prediction = [shapes.sphere(0.45, (0.03 * t, 0, 0)) for t in range(4)]
  found = score(prediction, truth, protocol_table.find("project"))
  other = evaluator.evaluate_sequence(
    prediction, truth, geometry_metrics.Conventions()
  ).means()
  for ours, theirs in (
    ("cd", "chamfer"),
    ("iou_64", "iou"),
    ("f_0.05", "f_score"),
    ("jitter", "jitter"),
  ):
    assert found.mean(ours) == pytest.approx(other[theirs], rel=1e-9), ours


def test_overlap_of_boxes_by_closed_form():
  # Faces on borders of cells: the grid is exact.
  a = shapes.box([1.0, 0.75, 0.625])
  b = shapes.box([0.75, 0.75, 0.875], [0.25, 0.125, 0.0])
  inside = 0.625 * 0.625 * 0.625
  expected = inside / (1.0 * 0.75 * 0.625 + 0.75 * 0.75 * 0.875 - inside)
  protocol = quick("sculpt4d", ("iou_64", "iou_128"), alignment="none")
  found = score([a], [b], protocol)
  assert found.mean("iou_64") == pytest.approx(expected, rel=0.01)
  assert found.mean("iou_128") == pytest.approx(expected, rel=0.01)
  # Elsewhere 128 cells are near.
  a, b = shapes.box([1.0, 0.8, 0.6]), shapes.box([0.7, 0.8, 0.9], [0.2, 0.1, 0])
  inside = 0.65 * 0.7 * 0.6
  expected = inside / (1.0 * 0.8 * 0.6 + 0.7 * 0.8 * 0.9 - inside)
  found = score([a], [b], dataclasses.replace(protocol, metrics=("iou_128",)))
  assert found.mean("iou_128") == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("resolution", [16, 64])
def test_blocks_of_cells_are_decided_as_single_cells(resolution):
  open_body = shapes.body(4)
  open_body = shapes.TriangleMesh(open_body.vertices, open_body.faces[7:])
  inside_out = shapes.TriangleMesh(
    shapes.body(3).vertices, shapes.body(3).faces[:, ::-1]
  )
  cells = geometry_metrics.grid_points(resolution)
  for mesh in (shapes.body(2), open_body, inside_out, shapes.EMPTY):
    np.testing.assert_array_equal(
      geometry_metrics.grid_occupancy(mesh, resolution),
      geometry_metrics.occupancy(mesh, cells),
    )


def test_point_to_surface_equals_trimesh():
  mesh = shapes.body(6)
  points = np.random.default_rng(0).uniform(-1, 1, (1000, 3))
  _, expected, _ = trimesh.proximity.closest_point_naive(
    shapes.as_trimesh(mesh), points
  )
  found = point_to_surface.distances(points, mesh)
  np.testing.assert_allclose(found, expected, atol=1e-6)
  pair = clip_pair.ClipPair(
    shapes.sequence([mesh]),
    shapes.sequence([shapes.TriangleMesh(*subdivided(mesh))]),
    quick("morphos", alignment="none", normalisation="none").conventions,
  )
  # No floor: the same surface with other faces.
  assert point_to_surface.point_to_surface(pair, 0) < 1e-6


def subdivided(mesh):
  return trimesh.remesh.subdivide(mesh.vertices, mesh.faces)


def test_motion324_finds_a_small_pose_where_the_reference_does_worse():
  truth = [shapes.body(2)] * 2
  turn = spatial.transform.Rotation.from_rotvec([0.05, 0.25, -0.1]).as_matrix()
  moved = truth[0].vertices @ turn.T
  prediction = [shapes.TriangleMesh(moved, truth[0].faces)] * 2
  ours = score(prediction, truth, quick("motion324", num_points=10_000))
  theirs = score(
    prediction, truth, quick("motion324:reference", num_points=10_000)
  )
  assert ours.mean("cd_sum") < 0.6 * theirs.mean("cd_sum")


def test_processes_give_the_same_report(tmp_path):
  for index, name in enumerate("abc"):
    truth = [shapes.body(index)] * 2
    ply_obj.write_mesh_sequence(tmp_path / "truth" / name, truth)
    prediction = [shapes.moved(mesh, [0.05, 0, 0]) for mesh in truth]
    ply_obj.write_mesh_sequence(tmp_path / "predicted" / name, prediction)
  paths = (tmp_path / "predicted", tmp_path / "truth")
  protocol = quick("project", num_points=500)
  one, two = (evaluate.evaluate(*paths, protocol, processes=n) for n in (1, 2))
  # As text: a mean that nothing determines is NaN, which equals nothing.
  assert repr(one.estimates) == repr(two.estimates)
  assert [clip.name for clip in two.clips] == ["a", "b", "c"]
  (tmp_path / "predicted" / "b" / "frame_0001.ply").write_bytes(b"ply\n")
  with pytest.raises(ValueError, match="frame_0001.ply"):
    evaluate.evaluate(*paths, protocol, processes=2)


def test_json_has_conventions_versions_and_every_row():
  truth = [shapes.body(1)] * 3
  protocol = quick("sculpt4d", ("cd", "jitter"), num_points=300)
  report = scores.summarise(
    protocol,
    [score(truth, truth, protocol), score(truth[:2], truth[:2], protocol)],
  )
  document = json.loads(
    json.dumps(scores.to_json({"a": report}), allow_nan=False)
  )
  assert document["protocol"] == "sculpt4d"
  assert document["conventions"]["num_points"] == 300
  assert document["versions"]["numpy"] == np.__version__
  clips = document["methods"]["a"]["clips"]
  assert len(clips[0]["values"]["cd"]) == 3
  assert clips[1]["means"]["jitter"] is None
  assert clips[1]["notes"]["jitter"] == "there are fewer than three frames"
  for clip, stored in zip(report.clips, clips):
    again = scores.clip_from_json(json.loads(json.dumps(stored)))
    assert scores.clip_to_json(again) == stored
    np.testing.assert_array_equal(again.values["cd"], clip.values["cd"])
  lines = scores.format_table({"a": report}).split("\n")
  assert lines[0].split() == ["n", "failed", "CD", "(mean)", "↓", "Jitter", "↓"]


def test_every_protocol_names_known_metrics_and_describes_itself():
  for name, protocol in protocol_table.PROTOCOLS.items():
    assert set(protocol.metrics) <= set(metric_table.METRICS)
    assert protocol.describe().startswith(f"{name}: ")
    assert "seed" in protocol.describe()
    assert name.endswith(":reference") == bool(protocol.slips)
  with pytest.raises(
    ValueError, match="no protocol 'fid'; choose one of project"
  ):
    protocol_table.find("fid")
