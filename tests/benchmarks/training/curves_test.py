"""Curves of a run, read from its lines of metrics."""

import json

import pytest

from benchmarks.training import curves
from sculpt4d_jax.errors import UserError


def _write(folder, lines):
  folder.mkdir(parents=True)
  text = "".join(json.dumps(line) + "\n" for line in lines)
  (folder / "metrics.jsonl").write_text(text)


@pytest.fixture
def workdirs(tmp_path):
  _write(
    tmp_path / "a" / "dit",
    [
      {"step": 10, "train/loss": 3.0},
      {"step": 20, "train/loss": 9.0},
      # Written again by a run that was resumed.
      {"step": 20, "train/loss": 2.0},
      {"step": 20, "eval/flow_loss": 1.5},
    ],
  )
  _write(tmp_path / "b" / "dit", [{"step": 10, "train/loss": 1.0}])
  return [tmp_path / "a", tmp_path / "b"]


def test_runs_are_joined_and_repeated_steps_count_once(workdirs):
  lines = curves.read(workdirs, "dit")
  assert curves.curves(lines, ["train/"]) == {
    "train/loss": ([10, 20, 30], [3.0, 2.0, 1.0])
  }
  assert curves.curves(lines, ["eval/"]) == {"eval/flow_loss": ([20], [1.5])}


def test_the_picture_is_written(workdirs, tmp_path):
  pytest.importorskip("matplotlib")
  curves.draw(workdirs, tmp_path / "new" / "curves.png")
  assert (tmp_path / "new" / "curves.png").read_bytes()[:4] == b"\x89PNG"


def test_folders_without_metrics_are_refused(tmp_path):
  pytest.importorskip("matplotlib")
  with pytest.raises(UserError, match="give the --workdir"):
    curves.draw([tmp_path], tmp_path / "curves.png")
