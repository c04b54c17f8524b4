"""Where a run's numbers go: TensorBoard events, JSON lines, the log."""

from collections.abc import Mapping
import json
import pathlib
import time
from typing import Any, NamedTuple, Protocol

from absl import logging
import jax
import numpy as np
import tensorboardX

from sculpt4d_jax import array_types

Array = array_types.Array


class WeightedMean(NamedTuple):
  """A mean over some of a step's clips, or none: sum and number of them."""

  total: Array
  weight: Array


def mean(values: list[Any]) -> float:
  """The mean of a metric over steps; NaN if nothing was ever weighed."""
  if isinstance(values[0], WeightedMean):
    total, weight = (float(np.sum(part)) for part in zip(*values))
    return total / weight if weight else float("nan")
  return float(np.mean(values))


def join(parts: dict[str, Any]) -> dict[str, Any]:
  """Metrics of the parts of a batch, stacked on a first axis, as one."""
  return {
      name: WeightedMean(*(x.sum(0) for x in value))
      if isinstance(value, WeightedMean)
      else value.mean(0)
      for name, value in parts.items()
  }


def to_host(values: dict[str, Any]) -> dict[str, Any]:
  """Waits for a step's metrics."""
  return jax.tree.map(float, jax.device_get(values))


class Writer(Protocol):
  """Takes the numbers of a step."""

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes scalars under their names."""

  def close(self) -> None:
    """Flushes."""


class RunWriter:
  """TensorBoard events and `metrics.jsonl` in the run's folder."""

  def __init__(self, folder: str | pathlib.Path):
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    self._events = tensorboardX.SummaryWriter(str(folder / "tensorboard"))
    self._lines = open(folder / "metrics.jsonl", "a", encoding="utf-8")

  def write(self, step: int, values: Mapping[str, float]) -> None:
    for name, value in values.items():
      self._events.add_scalar(name, value, step)
    record = {"step": step} | {k: float(v) for k, v in values.items()}
    self._lines.write(json.dumps(record) + "\n")
    self._lines.flush()
    numbers = "  ".join(f"{k} {v:.4g}" for k, v in values.items())
    logging.info("step %d  %s", step, numbers)

  def close(self) -> None:
    self._events.close()
    self._lines.close()


class NullWriter:
  """Writes nothing: for all processes of a run but one."""

  def write(self, step: int, values: Mapping[str, float]) -> None:
    del step, values

  def close(self) -> None:
    pass


def open_writer(folder: str | pathlib.Path) -> Writer:
  """The run's writer; only the first process writes."""
  return RunWriter(folder) if jax.process_index() == 0 else NullWriter()


class Stopwatch:
  """Adds up the time spent inside of it."""

  def __init__(self):
    self.reset()

  def reset(self) -> None:
    self.seconds = 0.0

  def __enter__(self) -> None:
    self._start = time.monotonic()

  def __exit__(self, *exception) -> None:
    self.seconds += time.monotonic() - self._start
