"""ActionBench's folders: <uid>/surfaces.npy against <uid>/mesh_00.glb, ..."""

import dataclasses
import math

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.evaluation.protocols import evaluate
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.evaluation.protocols import scores
from tests.evaluation import sequences_test
from tests.evaluation import shapes

NUM_FRAMES = 3
SPEED = np.array([0.03, 0.0, 0.0])


def truth_clip(mesh, count):
  """Tracked points and normals, float32 [F, P, 6]."""
  points, faces = trimesh.sample.sample_surface(
    shapes.as_trimesh(mesh), count, seed=7
  )
  normals = shapes.as_trimesh(mesh).face_normals[faces]
  return np.stack(
    [
      np.concatenate([points + t * SPEED, normals], axis=1)
      for t in range(NUM_FRAMES)
    ]
  ).astype(np.float32)


@pytest.fixture
def benchmark(tmp_path):
  """Four clips: exact, of two topologies, too many frames, not predicted."""
  for index, uid in enumerate(("a1", "b2", "c3", "d4")):
    mesh = shapes.body(index)
    folder = tmp_path / "data" / uid
    folder.mkdir(parents=True)
    np.save(folder / "surfaces.npy", truth_clip(mesh, 2000))
    frames = [shapes.moved(mesh, t * SPEED) for t in range(NUM_FRAMES)]
    if uid == "b2":
      vertices, faces = trimesh.remesh.subdivide(
        frames[1].vertices, frames[1].faces
      )
      frames[1] = shapes.TriangleMesh(vertices, faces)
    if uid == "c3":
      frames.append(shapes.moved(mesh, [0.9, 0, 0]))
    if uid != "d4":
      sequences_test.write_glbs(tmp_path / "results" / uid, frames)
  return tmp_path / "results", tmp_path / "data"


def quick(name):
  protocol = protocol_table.find(name)
  # Points are at rest in both: nothing has to be aligned.
  conventions = dataclasses.replace(
    protocol.conventions, num_points=4000, num_queries=1000, alignment="none"
  )
  return dataclasses.replace(protocol, conventions=conventions)


def test_scores_the_folders_as_they_are(benchmark):
  report = evaluate.evaluate(*benchmark, quick("actionbench"))
  by_name = {clip.name: clip for clip in report.clips}
  assert list(by_name) == ["a1", "b2", "c3", "d4"]
  assert report.num_failed == 1 and by_name["d4"].is_failed
  for name in ("a1", "b2", "c3"):
    assert by_name[name].mean("cd_4d") < 0.06
    assert by_name[name].sources == ("GLB a frame", "tracked points")
  assert by_name["a1"].mean("cd_m") < 0.06
  assert "topology of the prediction changes" in by_name["b2"].notes["cd_m"]
  worst = 4 * math.sqrt(3)
  assert by_name["d4"].mean("cd_3d") == pytest.approx(worst)
  mean = np.mean([clip.mean("cd_4d") for clip in report.clips])
  assert report.estimates["cd_4d"].mean == pytest.approx(mean)
  assert "4 clips, 1 failed" in report.describe()
  assert "CD-M not defined" in "\n".join(scores.format_notes(report))


def test_the_reference_leaves_out_what_failed(benchmark):
  report = evaluate.evaluate(*benchmark, quick("actionbench:reference"))
  assert report.num_failed == 1
  assert report.estimates["cd_4d"].mean < 0.06
  assert report.estimates["cd_4d"].num_sequences == 3
