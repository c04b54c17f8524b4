"""The check of a GPU: it degrades step by step, resumes, and runs dry."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from benchmarks.check_gpu import run as check
from benchmarks.check_gpu import steps

ROOT = pathlib.Path(__file__).resolve().parents[3]
# Programs that every Python has.
WORKS = steps.Step("works", "Does it?", "platform")
FAILS = steps.Step("fails", "Does it?", "no_such_module")
HANGS = steps.Step(
  "hangs",
  "Does it?",
  "timeit",
  ["-n", "1", "-r", "1", "import time; time.sleep(600)"],
  1.5,
)
REST = steps.Step("rest", "How far?", HANGS.module, HANGS.arguments, None)


def statuses(results):
  return {name: result["status"] for name, result in results.items()}


def test_what_fails_is_reported_and_the_rest_runs(tmp_path):
  all_steps = [FAILS, HANGS, WORKS]
  results = check.run_all(all_steps, tmp_path, 60)
  assert statuses(results) == {
    "fails": "failed",
    "hangs": "too slow",
    "works": "done",
  }
  summary = (tmp_path / "summary.md").read_text()
  assert "No module named no_such_module" in summary
  assert "| hangs | too slow |" in summary
  assert "Linux" in summary or "macOS" in summary


def test_done_steps_are_not_repeated_and_failed_ones_are(tmp_path):
  check.run_all([WORKS, FAILS], tmp_path, 60)
  before = (tmp_path / "works" / "status.json").stat().st_mtime_ns
  mark = tmp_path / "fails" / "status.json"
  mark.write_text(json.dumps({"status": "failed"}))
  check.run_all([WORKS, FAILS], tmp_path, 60)
  assert (tmp_path / "works" / "status.json").stat().st_mtime_ns == before
  assert json.loads(mark.read_text())["exit_code"] == 1


def test_no_time_left_is_told(tmp_path):
  results = check.run_all([WORKS], tmp_path, 0.5)
  assert statuses(results) == {"works": "no time left"}
  assert not (tmp_path / "works" / "output.txt").exists()


def test_a_step_that_takes_what_is_left_does_not_fail_for_it(tmp_path):
  results = check.run_all([REST], tmp_path, 2.0)
  assert statuses(results) == {"rest": "done"}


def test_a_damaged_status_is_no_result(tmp_path):
  (tmp_path / "works").mkdir()
  (tmp_path / "works" / "status.json").write_text("{half")
  assert statuses(check.run_all([WORKS], tmp_path, 60)) == {"works": "done"}


def test_the_dry_form_has_the_steps_of_the_real_one():
  real = [step.name for step in steps.of_gpu()]
  dry = [step.name for step in steps.dry()]
  assert set(dry) <= set(real) and len(dry) >= 7
  assert real[:2] == ["versions", "kernels"]


@pytest.mark.long
def test_dry_run(tmp_path):
  result = subprocess.run(
    [str(ROOT / "launch" / "check_gpu.sh"), "--dry", f"--output={tmp_path}"],
    env=os.environ | {"PYTHON": sys.executable, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  summary = (tmp_path / "summary.md").read_text()
  assert result.returncode == 0, summary + result.stderr
