import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import trimesh

from launch import program
import sculpt4d_jax
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation import sequence_pairs
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.io.meshes import ply_obj

ROOT = pathlib.Path(__file__).resolve().parents[2]
QUICK = ("--num_points=500", "--iou_resolution=16")


def write_sequence(folder, radius=0.5, num_frames=3):
  ball = trimesh.creation.icosphere(subdivisions=2, radius=radius)
  mesh = mesh_lib.TriangleMesh(ball.vertices, ball.faces)
  ply_obj.write_mesh_sequence(folder, [mesh] * num_frames)
  return folder


def evaluate(*arguments):
  return subprocess.run(
    [sys.executable, "-m", "launch.evaluate", *map(str, arguments)],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


def compare(predicted, truth, *arguments):
  return evaluate(
    f"--predicted={predicted}", f"--truth={truth}", *QUICK, *arguments
  )


def test_scores_folders_of_sequences(tmp_path):
  for name, radius in (("walk", 0.5), ("run", 0.4)):
    write_sequence(tmp_path / "predicted" / name, radius)
    write_sequence(tmp_path / "truth" / name, 0.5)
  output = tmp_path / "new" / "scores.json"
  result = compare(
    tmp_path / "predicted", tmp_path / "truth", f"--output={output}"
  )
  assert result.returncode == 0, result.stderr
  for expected in ("walk", "run", "Chamfer ↓", "500 points", "alignment none"):
    assert expected in result.stdout
  method = json.loads(output.read_text())["methods"]["prediction"]
  by_name = {entry["name"]: entry for entry in method["sequences"]}
  assert by_name["walk"]["chamfer"] == [0.0] * 3
  assert np.mean(by_name["run"]["chamfer"]) == pytest.approx(0.1, rel=0.1)


def test_help_teaches():
  result = evaluate("--help")
  assert result.returncode == 0
  text = result.stdout
  assert text.startswith("Scores mesh sequences")
  assert text.index("python -m launch.evaluate") < text.index("Flags:")
  assert "--f_score_threshold" in text and "--verbosity" not in text


def refuse(predicted, truth):
  """The user's message for a request that is rejected in process."""
  conventions = geometry_metrics.Conventions(num_points=100, iou_resolution=4)
  with pytest.raises(ValueError) as caught:
    for pair in sequence_pairs.find_pairs(predicted, truth):
      evaluator.evaluate_sequence(*pair.read(), conventions)
  message = program.user_message(caught.value)
  assert message is not None  # Not a bug, which would show a traceback.
  return message


def test_impossible_paths_are_refused(tmp_path):
  (tmp_path / "empty").mkdir()
  (tmp_path / "notes.txt").write_text("no mesh")
  for path, message in (
    ("nowhere", "nowhere does not exist; expected a folder"),
    ("notes.txt", "notes.txt is not a mesh sequence; expected a folder"),
    ("empty", "neither frame_*.ply files nor sequences"),
  ):
    assert message in refuse(tmp_path / path, tmp_path / "empty")


def test_different_numbers_of_frames_are_refused(tmp_path):
  predicted = write_sequence(tmp_path / "predicted", num_frames=2)
  truth = write_sequence(tmp_path / "truth", num_frames=3)
  assert "2 predicted frames against 3 true" in refuse(predicted, truth)


def test_corrupt_file_exits_with_two_and_leaves_nothing(tmp_path):
  predicted = write_sequence(tmp_path / "predicted")
  truth = write_sequence(tmp_path / "truth")
  (predicted / "frame_0001.ply").write_bytes(b"ply\nformat nonsense")
  output = tmp_path / "scores.json"
  result = compare(predicted, truth, f"--output={output}")
  assert result.returncode == 2
  assert "frame_0001.ply" in result.stderr
  assert "Traceback" not in result.stderr
  assert not output.exists()


def test_reads_what_the_exporters_write(tmp_path):
  folder = write_sequence(tmp_path / "truth" / "a", num_frames=3)
  meshes = ply_obj.read_mesh_sequence(folder)
  glb.write_animated_glb(tmp_path / "a.glb", meshes, 8.0)
  read = sequence_pairs.read_sequence(tmp_path / "a.glb")
  assert len(read) == 3
  np.testing.assert_array_equal(read[0].vertices, meshes[0].vertices)
  [pair] = sequence_pairs.find_pairs(tmp_path / "a.glb", folder)
  assert pair.name == "a"


def test_pairs_are_found_by_name(tmp_path):
  for name in ("b", "a"):
    write_sequence(tmp_path / "predicted" / name, num_frames=1)
  for name in ("a", "b", "c"):
    write_sequence(tmp_path / "truth" / name, num_frames=1)
  (tmp_path / "predicted" / "notes").mkdir()
  pairs = sequence_pairs.find_pairs(tmp_path / "predicted", tmp_path / "truth")
  assert [pair.name for pair in pairs] == ["a", "b"]
  assert all(pair.truth.name == pair.name for pair in pairs)


def test_folders_that_do_not_fit_are_refused(tmp_path):
  write_sequence(tmp_path / "predicted" / "a", num_frames=1)
  write_sequence(tmp_path / "truth" / "b", num_frames=1)
  with pytest.raises(ValueError, match="lacks 1 of the 1.*: a"):
    sequence_pairs.find_pairs(tmp_path / "predicted", tmp_path / "truth")
  with pytest.raises(ValueError, match="is one sequence, but"):
    sequence_pairs.find_pairs(tmp_path / "predicted" / "a", tmp_path / "truth")


def test_describe_prints_conventions_and_stops():
  result = evaluate("--describe")
  assert result.returncode == 0, result.stderr
  lines = [line for line in result.stdout.split("\n") if line]
  assert {line.partition(": ")[0] for line in lines} == set(
    protocol_table.PROTOCOLS
  )
  assert "24 starts x 200 steps on 10,000 points" in result.stdout


def test_scores_by_a_protocol_with_several_processes(tmp_path):
  for name, radius in (("walk", 0.5), ("run", 0.4)):
    write_sequence(tmp_path / "predicted" / name, radius, num_frames=2)
    write_sequence(tmp_path / "truth" / name, 0.5, num_frames=2)
  output = tmp_path / "scores.json"
  result = evaluate(
    "--protocol=motion324",
    "--processes=2",
    f"--predicted={tmp_path / 'predicted'}",
    f"--truth={tmp_path / 'truth'}",
    f"--output={output}",
  )
  assert result.returncode == 0, result.stderr
  assert "2 clips, 0 failed" in result.stdout
  document = json.loads(output.read_text())
  assert document["protocol"] == "motion324"
  method = document["methods"]["prediction"]
  # Both are scaled by their boxes: all are at the floor.
  assert method["estimates"]["cd_sum"]["mean"] < 0.02
  # The library's function gives the same figures to every digit.
  report = sculpt4d_jax.evaluate(
    tmp_path / "predicted", tmp_path / "truth", "motion324", progress=False
  )
  for clip, row in zip(report.clips, method["clips"], strict=True):
    for name in report.protocol.metrics:
      assert clip.values[name].tolist() == row["values"][name]


def test_flags_that_a_protocol_fixes_are_refused(tmp_path):
  truth = write_sequence(tmp_path / "truth", num_frames=1)
  result = evaluate(
    "--protocol=morphos",
    "--num_points=10",
    f"--predicted={truth}",
    f"--truth={truth}",
  )
  assert result.returncode == 2
  assert "--protocol=morphos fixes --num_points" in result.stderr
