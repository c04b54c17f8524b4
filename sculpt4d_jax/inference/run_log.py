"""What a run did: seconds and peak memory of each stage, shown as it goes."""

from collections.abc import Iterable, Iterator
import contextlib
import dataclasses
import pathlib
import resource
import sys
import time
from typing import Any, TypeVar

import jax
import tqdm

T = TypeVar("T")

_STATUS = pathlib.Path("/proc/self/status")
_CLEAR_REFS = pathlib.Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


@dataclasses.dataclass
class Stage:
  """One stage of a run.

  Attributes:
    name: What it does.
    seconds: How long it took.
    peak_memory_mb: Largest resident memory of the process in it; where the
      system can't tell that (not Linux), the largest of the run so far.
    peak_device_memory_mb: Largest memory in use on the accelerator so far;
      None on a CPU.
  """

  name: str
  seconds: float = 0.0
  peak_memory_mb: float = 0.0
  peak_device_memory_mb: float | None = None


class RunLog:
  """Times stages and shows their progress on stderr."""

  def __init__(self, show_progress: bool = True):
    self.stages: list[Stage] = []
    self._show = show_progress

  @contextlib.contextmanager
  def stage(self, name: str, total: int = 1) -> Iterator[tqdm.tqdm]:
    """Runs a stage; the caller updates the bar that it yields.

    A stage of one step is updated at its end.
    """
    stage = Stage(name)
    _reset_peak_memory()
    start = time.monotonic()
    bar = tqdm.tqdm(
      total=total, desc=f"{name:<20}", disable=not self._show, leave=True
    )
    try:
      yield bar
      bar.update(total - bar.n)
    finally:
      bar.close()
      stage.seconds = round(time.monotonic() - start, 3)
      stage.peak_memory_mb = round(_peak_memory_mb(), 1)
      stage.peak_device_memory_mb = _peak_device_memory_mb()
      self.stages.append(stage)

  def each(self, name: str, items: Iterable[T]) -> Iterator[T]:
    """Goes through items as one stage."""
    items = list(items)
    with self.stage(name, len(items)) as bar:
      for item in items:
        yield item
        bar.update()

  def summary(self) -> list[dict[str, Any]]:
    """The stages as JSON values."""
    return [dataclasses.asdict(stage) for stage in self.stages]


def _reset_peak_memory() -> None:
  with contextlib.suppress(OSError):  # Not Linux, or not allowed.
    _CLEAR_REFS.write_text(_RESET_PEAK)


def _peak_memory_mb() -> float:
  with contextlib.suppress(OSError):
    for line in _STATUS.read_text().splitlines():
      if line.startswith("VmHWM:"):
        return int(line.split()[1]) / 1024
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  return peak / (1024**2 if sys.platform == "darwin" else 1024)


def _peak_device_memory_mb() -> float | None:
  stats = jax.local_devices()[0].memory_stats()
  if not stats or "peak_bytes_in_use" not in stats:
    return None
  return round(stats["peak_bytes_in_use"] / 1024**2, 1)
