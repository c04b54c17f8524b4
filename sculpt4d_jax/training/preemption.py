"""The notice that a machine is to be taken away: SIGTERM.

In a run of several processes jax spreads it, so that all of them save the same
step. Here is what one process alone needs: the signal is noted, and the loop
saves and ends after the step that it is in. A second one ends the program at
once, as it would have without this.
"""

import signal
import threading
from types import FrameType
from types import TracebackType

from absl import logging
import jax


class Notice:
  """Notes SIGTERM while it is entered.

  It does nothing in a run of several processes, where jax has a handler of its
  own, and outside of the main thread, where Python takes no signals.
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
    """Whether the notice has come."""
    return self._came

  def _note(self, signum: int, frame: FrameType | None) -> None:
    if self._came and callable(self._previous):
      self._previous(signum, frame)
      return
    self._came = True
    logging.info("Told to stop; saving after this step.")
