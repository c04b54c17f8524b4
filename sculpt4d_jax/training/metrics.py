"""Where a run's numbers go: TensorBoard events, JSON lines, the log."""

from collections.abc import Mapping
import json
import pathlib
from typing import Protocol

from absl import logging
import tensorboardX


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
