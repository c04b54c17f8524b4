"""A step that hangs ends the process with stacks and the restart code."""

import subprocess
import sys
import textwrap

from launch import processes
from sculpt4d_jax.training import watchdog
from tests import conftest


def _run(code):
  code = "from sculpt4d_jax.training import watchdog\nimport time\n" + code
  return subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code)],
    cwd=conftest.ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def test_a_hung_step_is_reported_with_stacks():
  result = _run(
    """
def wait_for_a_chip_that_is_gone():
  time.sleep(600)

with watchdog.Watchdog(0.4) as dog:
  dog.beat(7)
  wait_for_a_chip_that_is_gone()
"""
  )
  assert result.returncode == watchdog.EXIT_CODE
  assert "after step 7" in result.stderr
  assert "wait_for_a_chip_that_is_gone" in result.stderr


def test_what_is_no_step_may_take_long():
  result = _run(
    """
with watchdog.Watchdog(0.4) as dog:
  time.sleep(1.0)  # Compiling, before the first step.
  dog.beat(1)
  with dog.paused():
    time.sleep(1.0)
with watchdog.Watchdog(0.0) as dog:
  dog.beat(1)
  time.sleep(0.5)
"""
  )
  assert result.returncode == 0, result.stderr


def test_scripts_know_the_code():
  assert watchdog.EXIT_CODE == processes.EXIT_AFTER_LOSS
