"""Averages the metrics of steps, and checks that they are finite."""

from collections.abc import Callable, Mapping
import math
import time
from typing import Any

from sculpt4d_jax import array_types
from sculpt4d_jax.training import metric_writers
from sculpt4d_jax.training import metrics as metrics_lib

Array = array_types.Array

# Work of the host besides waiting for a step.
PARTS = ("data", "transfer", "save")


class NonFiniteLossError(RuntimeError):
  """The loss is NaN or infinite; the message names step, groups and batch."""


class Meter:
  """Averages metrics, one step late so that the device never waits.

  Every `log_every` steps it writes the means of the steps' metrics and of their
  times: `seconds/data` to make a batch, `seconds/transfer` to copy it to the
  devices, `seconds/save` to start a checkpoint, and `seconds/step`, the rest,
  which is the devices' work. They add up to `seconds/all`, the wall time of a
  step. After a call of `expect`, `mfu` is the model FLOPs utilisation.
  """

  def __init__(
    self,
    writer: metric_writers.Writer,
    log_every: int,
    describe: Callable[[int], str],
    extra: Callable[[], dict[str, float]] = dict,
  ):
    """Starts to measure.

    Args:
      writer: Takes the means.
      log_every: Number of steps that are averaged.
      describe: Describes the batch of a step, for a message.
      extra: Further numbers for every line.
    """
    self._extra = extra
    self._writer = writer
    self._log_every = log_every
    self._describe = describe
    self._pending = None
    self._values = []
    self._work = None
    self._parts = {name: metrics_lib.Stopwatch() for name in PARTS}
    self.restart_clock()

  def expect(self, flops: float, peak: float) -> None:
    """Sets the model FLOPs of a step and the peak FLOP/s of all devices."""
    self._work = flops / peak

  def restart_clock(self) -> None:
    """Excludes the time until now from the next means."""
    self._time, self._since = time.monotonic(), len(self._values)
    for watch in self._parts.values():
      watch.reset()

  def spending(self, part: str) -> metrics_lib.Stopwatch:
    """Context manager that measures a part, one of `PARTS`."""
    return self._parts[part]

  def add(self, step: int, metrics: dict[str, Array]) -> None:
    """Takes the metrics of a step, and reads those of the previous one."""
    previous, self._pending = self._pending, (step, metrics)
    if previous is not None:
      self._read(*previous)

  def check(self) -> None:
    """Reads pending metrics, which shows that the state is finite.

    Raises:
      NonFiniteLossError: It is not.
    """
    if self._pending is not None:
      self._read(*self._pending)
      self._pending = None

  def _read(self, step: int, metrics: Mapping[str, Any]):
    values = metrics_lib.to_host(metrics)
    for name in ("loss", "grad_norm"):
      if not math.isfinite(values[name]):
        raise NonFiniteLossError(self._complaint(name, step, values))
    self._values.append(values)
    if step % self._log_every == 0:
      mean = {k: metrics_lib.mean([v[k] for v in self._values]) for k in values}
      mean |= self._times() | self._extra()
      self._writer.write(
        step, {f"train/{k}": v for k, v in mean.items() if v == v}
      )
      self._values = []
      self.restart_clock()

  def _times(self):
    count = max(len(self._values) - self._since, 1)
    elapsed = max(time.monotonic() - self._time, 1e-9) / count
    times = {k: watch.seconds / count for k, watch in self._parts.items()}
    times["step"] = max(elapsed - sum(times.values()), 0.0)
    times["all"] = elapsed
    times = {f"seconds/{name}": value for name, value in times.items()}
    times["steps_per_second"] = 1.0 / elapsed
    if self._work is not None:
      times["mfu"] = self._work / elapsed
    return times

  def _complaint(self, name: str, step: int, values: Mapping[str, float]):
    bad = [
      key.removeprefix("grad_norm/")
      for key, value in values.items()
      if key.startswith("grad_norm/") and not math.isfinite(value)
    ]
    where = f"the gradients of {', '.join(bad)}" if bad else "no gradient"
    return (
      f"{name} is {values[name]} at step {step}. Not finite: {where}. The"
      f" batch: {self._describe(step - 1)}. The newest checkpoint is from"
      " before it: resume with a lower learning rate, or look at that batch."
    )
