"""ActionBench at its real size, by the command: four clips with known answers.

<uid>/surfaces.npy of [16, 100000, 6] against <uid>/mesh_00.glb to mesh_15.glb.
"""

import json
import math
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from scipy import spatial
import trimesh

from sculpt4d_jax.evaluation import gradient_alignment
from tests.evaluation import sequences_test
from tests.evaluation import shapes

ROOT = pathlib.Path(__file__).resolve().parents[3]
NUM_FRAMES, NUM_POINTS = 16, 100_000
STEP = np.array([0.02, 0.0, 0.0])


def write_truth(folder, mesh, path):
  """Tracked points and normals of a mesh that is moved along a path."""
  drawn = shapes.as_trimesh(mesh)
  points, faces = trimesh.sample.sample_surface(drawn, NUM_POINTS, seed=7)
  normals = drawn.face_normals[faces]
  frames = [np.concatenate([points + shift, normals], 1) for shift in path]
  folder.mkdir(parents=True)
  np.save(folder / "surfaces.npy", np.array(frames, np.float32))


def hide(mesh):
  """The mesh in another pose, with another scale for each axis."""
  turn = spatial.transform.Rotation.from_rotvec([0.2, 0.25, -0.1]).as_matrix()
  turn = gradient_alignment.cube_rotations()[9] @ turn
  vertices = (mesh.vertices @ turn) * [0.9, 1.1, 1.0] + [0.1, -0.1, 0.05]
  return shapes.TriangleMesh(vertices, mesh.faces)


@pytest.mark.long
def test_four_clips_in_the_benchmarks_folders(tmp_path, capsys):
  truth, results = tmp_path / "data", tmp_path / "results"
  path = [t * STEP for t in range(NUM_FRAMES)]
  body, ball = shapes.body(0), shapes.sphere(0.5, subdivisions=5)
  write_truth(truth / "hidden", body, path)
  frames = [hide(shapes.moved(body, shift)) for shift in path]
  sequences_test.write_glbs(results / "hidden", frames)
  write_truth(truth / "slow", ball, path)
  frames = [shapes.moved(ball, shift / 2) for shift in path]
  sequences_test.write_glbs(results / "slow", frames)
  write_truth(truth / "topology", body, path)
  frames = [shapes.moved(body, shift) for shift in path]
  frames[3] = shapes.TriangleMesh(
    *trimesh.remesh.subdivide(frames[3].vertices, frames[3].faces)
  )
  sequences_test.write_glbs(results / "topology", frames)
  write_truth(truth / "missing", body, path)

  output = tmp_path / "scores.json"
  done = subprocess.run(
    [sys.executable, "-m", "launch.evaluate", "--protocol=actionbench"]
    + [f"--predicted={results}", f"--truth={truth}", f"--output={output}"],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=1500,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  with capsys.disabled():
    print(done.stdout)
  assert "100,000 points, 10,000 queries" in done.stdout
  assert "4 clips, 1 failed" in done.stdout
  clips = json.loads(output.read_text())["methods"]["prediction"]["clips"]
  clips = {clip["name"]: clip for clip in clips}
  with capsys.disabled():
    print({name: clip["seconds"] for name, clip in clips.items()})
  floors = {
    name: math.sqrt(shapes.as_trimesh(mesh).area / NUM_POINTS)
    for name, mesh in (("hidden", body), ("topology", body), ("slow", ball))
  }
  for name in ("hidden", "topology"):
    for column in ("cd_3d", "cd_4d"):
      assert clips[name]["means"][column] < 1.5 * floors[name], (name, column)
  assert clips["hidden"]["means"]["cd_m"] < 3 * floors["hidden"]
  assert clips["topology"]["means"]["cd_m"] is None
  assert "topology" in clips["topology"]["notes"]["cd_m"]
  # Half a step behind in every frame: see the test of motion at half speed.
  offset = np.linalg.norm(STEP) / 2 * np.mean(range(NUM_FRAMES))
  slow = clips["slow"]["means"]
  assert slow["cd_3d"] < 1.5 * floors["slow"]
  assert slow["cd_4d"] == pytest.approx(offset, abs=2 * floors["slow"])
  assert slow["cd_m"] / 2 == pytest.approx(offset, abs=2 * floors["slow"])
  worst = 4 * math.sqrt(3)
  assert clips["missing"]["means"]["cd_3d"] == pytest.approx(worst)
