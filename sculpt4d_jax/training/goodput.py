"""Goodput: the fraction of a run's time that is spent on training steps.

Time is counted from the start of the process, or from the end of the stage that
it trained before. Time that is not steps has a cause: `start` (until training
begins), `compile`, `restore`, `data` (making a batch and transferring it),
`save`, `eval` (held-out clips and samples) and `other`. A resumed run counts
from its last start; repeated steps count as steps.
"""

from collections.abc import Iterator
import contextlib
import os
import time

CAUSES = ("start", "compile", "restore", "data", "save", "eval", "other")

# When the last run of this process ended, on the clock of `time.monotonic`.
_ENDS: list[float] = []


class Goodput:
  """Sums up time by cause, in the thread that trains."""

  def __init__(self, began: float | None = None):
    """Starts to count.

    Args:
      began: `time.monotonic()` of the start; None is the end of the last run
        in this process, or the process's own start.
    """
    if began is None:
      # A process trains stage after stage: hours of the one before are no loss.
      began = _ENDS[-1] if _ENDS else process_start()
    self._began = began
    self._seconds = dict.fromkeys(("step", *CAUSES), 0.0)
    self._seconds["start"] = time.monotonic() - self._began

  def end(self) -> None:
    """Lets the next run of this process count from here."""
    _ENDS[:] = [time.monotonic()]

  def add(self, cause: str, seconds: float) -> None:
    """Counts time that was measured elsewhere."""
    self._seconds[cause] += seconds

  @contextlib.contextmanager
  def spending(self, cause: str) -> Iterator[None]:
    """Counts the time in the block."""
    start = time.monotonic()
    try:
      yield
    finally:
      self.add(cause, time.monotonic() - start)

  @contextlib.contextmanager
  def step(self) -> Iterator[None]:
    """Counts the block as a step, without the time it spends on causes."""
    start, known = time.monotonic(), sum(self._seconds.values())
    try:
      yield
    finally:
      spent = sum(self._seconds.values()) - known
      self.add("step", time.monotonic() - start - spent)

  def seconds(self, cause: str) -> float:
    """Seconds spent on a cause so far."""
    return self._seconds[cause]

  def shares(self) -> dict[str, float]:
    """`goodput`, and `badput/CAUSE`; together they are 1."""
    total = max(time.monotonic() - self._began, 1e-9)
    known = sum(self._seconds.values())
    seconds = self._seconds | {"other": max(total - known, 0.0)}
    shares = {name: value / total for name, value in seconds.items()}
    good = shares.pop("step")
    return {"goodput": good} | {f"badput/{k}": v for k, v in shares.items()}


def process_start() -> float:
  """Start of this process on the clock of `time.monotonic`."""
  try:
    with open("/proc/self/stat", encoding="ascii") as file:
      ticks = int(file.read().rpartition(")")[2].split()[19])
    since_boot = ticks / os.sysconf("SC_CLK_TCK")
    age = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot
    return time.monotonic() - max(age, 0.0)
  except (OSError, ValueError, IndexError, AttributeError):
    return time.monotonic()  # Not Linux: the earlier time is unknown.
