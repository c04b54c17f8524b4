"""Results as other programs leave them, scored by `evaluate`."""

import pathlib
import shutil
import subprocess

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.evaluation import sequences
from sculpt4d_jax.evaluation.protocols import evaluate
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.io.meshes import ply_obj
from tests.evaluation import sequences_test
from tests.evaluation import shapes

FOLDER = pathlib.Path(__file__).parent / "foreign"
NUM_FRAMES = 5


def cube(frame):
  """The cube that Blender animates, at frames 0 to 4."""
  return shapes.box([0.5 * (1 + frame / 4)] * 3, [0.1 * frame, 0.0, 0.0])


def as_actionmesh(folder, meshes):
  """One GLB a frame."""
  return sequences_test.write_glbs(folder, meshes)


def as_motion324(path, meshes):
  """An animated GLB with a shape key a frame, keyed 0, 1, 0."""
  path = path.with_suffix(".glb")
  start = meshes[0].vertices
  offsets = [mesh.vertices - start for mesh in meshes]
  sequences_test.write_morphing_glb(path, offsets, start)
  return path


def as_sculpt4d_page(folder, meshes):
  """One PLY a frame, numbered from 0, colours of vertices included."""
  folder.mkdir()
  for frame, mesh in enumerate(meshes):
    colours = np.full((mesh.num_vertices, 4), 200, np.uint8)
    trimesh.Trimesh(
      mesh.vertices, mesh.faces, vertex_colors=colours, process=False
    ).export(folder / f"{frame}.ply")
  return folder


def as_blender(path, meshes):
  del meshes  # They are in the file.
  return shutil.copy(FOLDER / "blender_cube.glb", path.with_suffix(".glb"))


@pytest.mark.parametrize(
  "write", [as_actionmesh, as_motion324, as_sculpt4d_page, as_blender]
)
def test_results_of_others_are_scored(tmp_path, write):
  meshes = [cube(frame) for frame in range(NUM_FRAMES)]
  ply_obj.write_mesh_sequence(tmp_path / "truth", meshes)
  path = write(tmp_path / "result", meshes)
  protocol = protocol_table.find("project").with_conventions(num_points=500)
  report = evaluate.evaluate(path, tmp_path / "truth", protocol, progress=False)
  assert report.num_failed == report.num_empty == 0
  [clip] = report.clips
  assert clip.num_frames == NUM_FRAMES
  # Equal surfaces: distances are those between two samples at most.
  floor = np.sqrt(6 * np.array([1, 1.25, 1.5, 1.75, 2]) ** 2 / 4 / 500)
  assert (clip.values["cd"] < floor).all()
  np.testing.assert_allclose(clip.values["iou_64"], 1.0, atol=1e-9)


def test_objects_and_shape_keys_of_blender_move_together():
  found = sequences.read(FOLDER / "blender_cube.glb", NUM_FRAMES)
  for frame, mesh in enumerate(found.meshes):
    expected = cube(frame).vertices
    for side in ("min", "max"):
      np.testing.assert_allclose(
        getattr(mesh.vertices, side)(0), getattr(expected, side)(0), atol=1e-6
      )


@pytest.mark.slow  # Needs Blender.
@pytest.mark.skipif(shutil.which("blender") is None, reason="needs Blender.")
def test_the_file_is_what_blender_writes(tmp_path):
  path = tmp_path / "cube.glb"
  script = FOLDER / "blender_cube.py"
  command = ["blender", "-b", "--factory-startup", "--python-exit-code", "3"]
  subprocess.run(
    [*command, "--python", str(script), "--", str(path)],
    check=True,
    capture_output=True,
    timeout=300,
  )
  found, kept = (
    sequences.read(p, NUM_FRAMES) for p in (path, FOLDER / "blender_cube.glb")
  )
  for mesh, other in zip(found.meshes, kept.meshes, strict=True):
    # Releases number the vertices at one place in different orders.
    np.testing.assert_allclose(
      mesh.vertices[mesh.faces], other.vertices[other.faces], atol=1e-6
    )
