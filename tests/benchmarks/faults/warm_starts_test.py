"""Programs that start in a copy of a process with their modules."""

import os
import signal
import subprocess

import pytest

from benchmarks.faults import warm_starts

_PROGRAM = """
import sys
from xml import dom
import time

if __name__ == "__main__":
  print(sys.argv[1:], "xml.dom" in sys.modules, file=sys.stderr, flush=True)
  if sys.argv[1] == "wait":
    time.sleep(60)
  if sys.argv[1] == "fail":
    raise ValueError("no")
  sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def template(tmp_path):
  (tmp_path / "made.py").write_text(_PROGRAM)
  (tmp_path / "temporary").mkdir()
  made = warm_starts.Template(
    "made", tmp_path, os.environ | {"TMPDIR": str(tmp_path / "temporary")}
  )
  yield made
  made.close()


def test_runs_end_with_their_own_codes_and_texts(template):
  for code in (3, 0, 4):
    with template.started([str(code)]) as run:
      _, text = run.communicate(timeout=30)
    assert run.returncode == code
    assert text == f"['{code}'] True\n"


def test_an_error_ends_in_a_traceback(template):
  with template.started(["fail"]) as run:
    _, text = run.communicate(timeout=30)
  assert run.returncode == 1
  assert text.rstrip().endswith("ValueError: no")


@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_a_signal_ends_the_run_alone(template, name):
  number = getattr(signal, name)
  for _ in range(2):
    with template.started(["wait"]) as run:
      assert run.poll(0.05) is None
      run.send_signal(number)
      run.communicate(timeout=30)
    assert run.returncode == -number
  with template.started(["0"]) as run:
    run.communicate(timeout=30)
  assert run.returncode == 0


def test_a_run_is_ended_with_its_block(template):
  with template.started(["wait"]) as run:
    with pytest.raises(subprocess.TimeoutExpired):
      run.communicate(timeout=0.05)
  assert run.returncode == -signal.SIGKILL
  with pytest.raises(ProcessLookupError):
    os.kill(run.pid, 0)
