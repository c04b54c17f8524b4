"""Writes a run's metrics: TensorBoard events, JSON lines, the log."""

from collections.abc import Mapping
from concurrent import futures
import io
import json
import os
import pathlib
import tempfile
import time
from typing import Protocol

from absl import logging
import jax
import numpy as np
from tensorboardX import event_file_writer
from tensorboardX import summary
from tensorboardX.proto import event_pb2
from tensorboardX.proto import summary_pb2

from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths

_FLUSH_SECONDS = 30.0


class Writer(Protocol):
  """Takes the numbers of a step."""

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Writes scalars under their names."""

  def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
    """Writes a picture, uint8 [height, width, 3]."""

  def close(self) -> None:
    """Flushes."""


# Metrics shown in a line of the log, in this order; metrics.jsonl has all of
# them.
_SHOWN = (
  "loss",
  "flow_loss",
  "field_error",
  "sample_iou",
  "chamfer",
  "iou",
  "f_score",
  "grad_norm",
  "learning_rate",
  "seconds/all",
  "mfu",
  "goodput",
)


def summary_line(values: Mapping[str, float]) -> str:
  """The most important metrics in one line."""
  parts = []
  for name in _SHOWN:
    for kind in ("train", "eval", "sample"):
      value = values.get(f"{kind}/{name}")
      if value is not None:
        prefix = "" if kind == "train" else f"{kind}/"
        short = "s/step" if name == "seconds/all" else name
        parts.append(f"{prefix}{short} {value:.4g}")
  if not parts:
    parts = [f"{k} {v:.4g}" for k, v in list(values.items())[:8]]
  return "  ".join(parts)


class _Mirror:
  """Uploads the files of a folder to a store in the background.

  Objects in a store cannot be appended to, so a changed file is uploaded again
  in full. A failed upload is logged and never ends the run.
  """

  def __init__(self, target: paths.StorePath):
    self._target = target
    self._folder = tempfile.TemporaryDirectory(prefix="sculpt4d-metrics-")
    self.folder = pathlib.Path(self._folder.name)
    self._pool = futures.ThreadPoolExecutor(1, "metrics")
    self._sizes: dict[pathlib.Path, int] = {}
    self._pending: futures.Future | None = None
    for name in ("metrics.jsonl",):
      if (target / name).is_file():
        (target / name).download(self.folder / name)

  def start(self) -> None:
    """Starts to upload what has changed, unless an upload is in progress."""
    if self._pending is None or self._pending.done():
      self._pending = self._pool.submit(self._copy)

  def close(self) -> None:
    """Uploads the last changes."""
    self._pool.submit(self._copy).result()
    self._pool.shutdown()
    self._folder.cleanup()

  def _copy(self) -> None:
    for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
      size = path.stat().st_size
      if self._sizes.get(path) == size:
        continue
      name = path.relative_to(self.folder)
      try:
        # Cut to the size that was recorded, as the file may grow meanwhile.
        (self._target / name).write_bytes(path.read_bytes()[:size])
        self._sizes[path] = size
      except OSError as error:
        logging.error("%s; it is tried again later.", error)


class RunWriter:
  """TensorBoard events and `metrics.jsonl` in the run's folder.

  Events are written by the caller, not by tensorboardX's thread, which would
  die silently on a full disk and block the caller forever.
  """

  def __init__(self, folder: paths.PathLike):
    self._folder = paths.of(folder)
    self._mirror = None
    if paths.is_remote(self._folder):
      self._mirror = _Mirror(self._folder)
      self._folder = self._mirror.folder
    events = self._folder / "tensorboard"
    with atomic.output_errors(self._folder):
      events.mkdir(parents=True, exist_ok=True)
      self._events = event_file_writer.EventsWriter(
        # The process id distinguishes runs that start in the same second.
        str(events / "events"),
        f".{os.getpid()}",
      )
      self._lines = _open_lines(self._folder / "metrics.jsonl")
    self._flushed = time.monotonic()

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Adds a line to `metrics.jsonl`, and events; logs the step."""
    record = {"step": step} | {k: float(v) for k, v in values.items()}
    with atomic.output_errors(self._folder):
      self._lines.write(json.dumps(record) + "\n")
      self._lines.flush()
      for name, value in values.items():
        self._add(step, summary.scalar(name, float(value)))
      self._flush()
    logging.info("step %d  %s", step, summary_line(values))

  def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
    """Adds a picture [H, W, 3], and flushes the events at once."""
    with atomic.output_errors(self._folder):
      self._add(step, summary.image(name, picture, dataformats="HWC"))
      self._flush(0.0)

  def _add(self, step: int, value: summary_pb2.Summary) -> None:
    self._events.write_event(
      event_pb2.Event(wall_time=time.time(), step=step, summary=value)
    )

  def _flush(self, after: float = _FLUSH_SECONDS) -> None:
    if time.monotonic() - self._flushed >= after:
      self._events.flush()
      if self._mirror is not None:
        self._mirror.start()
      self._flushed = time.monotonic()

  def close(self) -> None:
    """Closes the files; errors are logged only."""
    for file in (self._events, self._lines):
      try:
        file.close()
      except OSError as error:
        # Logged only: an error that stopped the run matters more than missing
        # last metrics.
        logging.error("Metrics of %s are cut short: %s.", self._folder, error)
    if self._mirror is not None:
      self._mirror.close()


def _open_lines(path: pathlib.Path) -> io.TextIOWrapper:
  """Opens a file for appending; drops a truncated last line.

  A full disk or a kill leaves one. Its step is repeated after a resume, or had
  no checkpoint.
  """
  lines = open(path, "ab+")
  lines.seek(0)
  lines.truncate(sum(len(line) for line in lines if line.endswith(b"\n")))
  return io.TextIOWrapper(lines, encoding="utf-8")


class NullWriter:
  """Writes nothing; for all processes of a run but the first."""

  def write(self, step: int, values: Mapping[str, float]) -> None:
    """Drops the values."""
    del step, values

  def write_picture(self, step: int, name: str, picture: np.ndarray) -> None:
    """Drops the picture."""
    del step, name, picture

  def close(self) -> None:
    """Does nothing, as there are no files."""
    pass


def open_writer(folder: paths.PathLike) -> Writer:
  """The run's writer; only the first process writes."""
  return RunWriter(folder) if jax.process_index() == 0 else NullWriter()
