"""Metrics of a step: means, micro-batches, copies on the host, seconds."""

import time
from typing import Any, NamedTuple

import jax
import numpy as np

from sculpt4d_jax import array_types

Array = array_types.Array


class WeightedMean(NamedTuple):
  """Sum and weight of a mean over some, possibly none, of a step's clips."""

  total: Array
  weight: Array


def mean(values: list[Any]) -> float:
  """The mean of a metric over steps; NaN if all weights are zero."""
  if isinstance(values[0], WeightedMean):
    total, weight = (float(np.sum(part)) for part in zip(*values))
    return total / weight if weight else float("nan")
  return float(np.mean(values))


def join(parts: dict[str, Any]) -> dict[str, Any]:
  """Joins the metrics of micro-batches, stacked on a first axis."""
  return {
    name: WeightedMean(*(x.sum(0) for x in value))
    if isinstance(value, WeightedMean)
    else value.mean(0)
    for name, value in parts.items()
  }


def to_host(values: dict[str, Any]) -> dict[str, Any]:
  """Waits for a step's metrics."""
  return jax.tree.map(float, jax.device_get(values))


class Stopwatch:
  """Adds up the time spent inside of it."""

  def __init__(self):
    self.reset()

  def reset(self) -> None:
    """Starts again from 0 seconds."""
    self.seconds = 0.0

  def __enter__(self) -> None:
    self._start = time.monotonic()

  def __exit__(self, *exception: object) -> None:
    self.seconds += time.monotonic() - self._start
