"""Records seconds and peak memory of each stage of a run, and its progress."""

from collections.abc import Callable, Iterable, Iterator
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
    name: Description of the stage.
    seconds: Duration (s).
    peak_memory_mb: Largest resident memory of the process in it; on systems
      other than Linux, the largest of the run so far.
    peak_device_memory_mb: Largest memory in use on the accelerator so far;
      None on a CPU.
  """

  name: str
  seconds: float = 0.0
  peak_memory_mb: float = 0.0
  peak_device_memory_mb: float | None = None


@dataclasses.dataclass(frozen=True)
class Progress:
  """Progress of a stage of a run.

  Attributes:
    stage: Name of the stage.
    done: Steps that are done.
    total: Steps of the stage.
  """

  stage: str
  done: int
  total: int


# A bar on stderr, nothing, or a function that is called after every step.
ProgressOption = bool | Callable[[Progress], Any]


class Bar:
  """Counts the steps of one stage, and shows or reports them."""

  def __init__(self, name: str, total: int, progress: ProgressOption):
    self.n = 0
    self._name, self._total = name, total
    self._report = progress if callable(progress) else None
    # Without `disable`, the bar obeys the environment's TQDM_DISABLE.
    self._shown = (
      tqdm.tqdm(total=total, desc=f"{name:<20}", leave=True)
      if progress is True
      else None
    )
    self._tell()

  def update(self, steps: int = 1) -> None:
    """Counts further steps."""
    self.n += steps
    if self._shown is not None:
      self._shown.update(steps)
    if steps:
      self._tell()

  def close(self) -> None:
    """Ends the display."""
    if self._shown is not None:
      self._shown.close()

  def _tell(self) -> None:
    if self._report is not None:
      self._report(Progress(self._name, self.n, self._total))


class RunLog:
  """Times stages and shows their progress.

  `progress` is True for a bar on stderr, False for silence, or a function that
  takes a `Progress`. An exception in it ends the run.
  """

  def __init__(self, progress: ProgressOption = True):
    self.stages: list[Stage] = []
    self._progress = progress

  @contextlib.contextmanager
  def stage(self, name: str, total: int = 1) -> Iterator[Bar]:
    """Runs a stage; the caller updates the bar that it yields.

    A stage of one step is updated at its end.
    """
    stage = Stage(name)
    _reset_peak_memory()
    start = time.monotonic()
    bar = Bar(name, total, self._progress)
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
    """Iterates over items as one stage."""
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
