"""Ends a run when a step hangs, so that its launcher can restart it.

On a pod a single bad chip or link stops all processes without an error. Each
process watches itself: if no step ends for `seconds`, it writes the stacks of
all threads to stderr and exits with `EXIT_CODE`; the scripts in launch/clusters
then restart from the newest checkpoint.

`paused` excludes slow work that is not a step, such as compiling or an
evaluation.
"""

from collections.abc import Iterator
import contextlib
import faulthandler
import os
import sys
import threading
import time

# The same as of a run that lost a process: all processes must be restarted.
EXIT_CODE = 75


class Watchdog:
  """Watches the steps of a run while it is entered."""

  def __init__(self, seconds: float):
    """Sets up.

    Args:
      seconds: Longest time of a step; 0 watches nothing.
    """
    self._seconds = seconds
    self._beat: float | None = None
    self._step = 0
    self._stop = threading.Event()
    self._thread: threading.Thread | None = None

  def __enter__(self) -> "Watchdog":
    if self._seconds:
      self._thread = threading.Thread(
        target=self._watch, name="watchdog", daemon=True
      )
      self._thread.start()
    return self

  def __exit__(self, *exception: object) -> None:
    self._stop.set()
    if self._thread is not None:
      self._thread.join()

  def beat(self, step: int) -> None:
    """Reports that a step has ended."""
    self._step, self._beat = step, time.monotonic()

  @contextlib.contextmanager
  def paused(self) -> Iterator[None]:
    """Stops watching during the block."""
    self._beat = None
    try:
      yield
    finally:
      self.beat(self._step)

  def _watch(self) -> None:
    while not self._stop.wait(min(self._seconds / 4, 5.0)):
      beat = self._beat
      if beat is not None and time.monotonic() - beat > self._seconds:
        self._end()

  def _end(self) -> None:
    print(
      f"train: no step has ended for {self._seconds:g} s after step"
      f" {self._step}: the run hangs, and ends with code {EXIT_CODE}. The same"
      " command resumes from the newest checkpoint. What the threads were"
      " doing:",
      file=sys.stderr,
      flush=True,
    )
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    sys.stderr.flush()
    os._exit(EXIT_CODE)
