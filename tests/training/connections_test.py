"""Processes on CPUs wait for a late one."""

import subprocess
import sys

import pytest

from tests import conftest
from tests.integration import train_processes as runs


@pytest.mark.slow  # It waits for longer than Gloo's own 30 seconds.
def test_a_process_may_come_late_to_the_first_collective_of_a_group():
  port = runs.free_port()
  processes = [
    subprocess.Popen(
      [
        sys.executable,
        "-m",
        "tests.training.late_process",
        str(port),
        str(index),
        "35",
      ],
      cwd=conftest.ROOT,
      env=runs.environment(devices=2),
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )
    for index in range(2)
  ]
  for output in runs.finish(processes, timeout=240):
    assert "sum 10" in output
