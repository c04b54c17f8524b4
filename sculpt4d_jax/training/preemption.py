"""Preemption notices: SIGTERM.

In a run of several processes jax distributes the notice, so that all of them
save the same step. This module serves a single process: it records the signal,
and the loop saves and ends after the current step. A second signal ends the
program at once, as without this module.
"""

import signal
import threading
from types import FrameType
from types import TracebackType

from absl import logging
import jax


class Notice:
  """Records SIGTERM while it is entered.

  It does nothing in a run of several processes, where jax installs its own
  handler, and outside the main thread, where Python handles no signals.
  """

  def __init__(self):
    self._came = False
    self._previous = None

  def __enter__(self) -> "Notice":
    is_main = threading.current_thread() is threading.main_thread()
    if is_main and not jax.distributed.is_initialized():
      self._previous = signal.signal(signal.SIGTERM, self._note)
    return self

  def __exit__(
    self,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
  ) -> None:
    if self._previous is not None:
      signal.signal(signal.SIGTERM, self._previous)
      self._previous = None

  def came(self) -> bool:
    """Whether the notice has arrived."""
    return self._came

  def _note(self, signum: int, frame: FrameType | None) -> None:
    if self._came and callable(self._previous):
      self._previous(signum, frame)
      return
    self._came = True
    logging.info("Told to stop; saving after this step.")
