"""Batches of prepared records; see `batches.Batches`.

A step's batch depends on the step alone. Consecutive batches are read ahead; a
request for another step, as by a resumed run, restarts reading there.
"""

from collections.abc import Iterator
import dataclasses

import numpy as np

from sculpt4d_jax.data.loading import examples as record_examples
from sculpt4d_jax.data.loading import loader as record_loader

Batch = dict[str, np.ndarray]

# Fields of an example that a training step takes.
_FIELDS = ("surface", "samples", "mean", "log_variance", "images", "context")


class RecordBatches:
  """Batches of the split "train"; held-out clips of the split "test"."""

  def __init__(
    self,
    folders: record_loader.Folders,
    config: record_loader.LoaderConfig,
    *,
    num_frames: int,
  ):
    """Opens both splits.

    Args:
      folders: Folders of one or more data sets.
      config: Settings of the batches.
      num_frames: Frames of a held-out clip.

    Raises:
      RecordError: There is no data set, or one of another version.
      ValueError: A split is empty.
      ImportError: Grain is not installed.
    """
    self._loader = record_loader.RecordLoader(folders, "train", config)
    self._held_out = record_loader.open_split(
      folders, "test", as_they_are(config.example, num_frames)
    )
    self.num_frames = num_frames
    self.num_held_out = len(self._held_out)
    self._iterator: Iterator[Batch] | None = None
    self._next: tuple[int, tuple[int, ...]] | None = None

  def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
    """The batch of a step, or some of its rows.

    Consecutive steps are prefetched; another step or other rows start a new
    iterator.
    """
    if rows is None:
      rows = np.arange(self._loader.config.batch_size)
    key = tuple(int(row) for row in rows)
    if self._next != (step, key):
      self._iterator = self._loader.iterator(step, rows)
    self._next = None  # Unknown if reading fails.
    batch = next(self._iterator)
    self._next = (step + 1, key)
    return _fields(batch)

  def describe(self, step: int) -> str:
    """Names the clips of a step, with their assets."""
    names = (
      f"{clip.details.get('asset_name', clip.asset)} ({clip.clip})"
      for clip in self._loader.clips(step)
    )
    return "clips " + ", ".join(names)

  def held_out(self, clip: int) -> Batch:
    """All frames of a held-out clip; the same at every call."""
    example = self._held_out.read(clip, np.random.default_rng(clip))
    return {name: x[None] for name, x in _fields(example).items()}


def as_they_are(
  config: record_examples.ExampleConfig, num_frames: int
) -> record_examples.ExampleConfig:
  """Examples of all frames, without augmentation except for the view."""
  border = sum(config.border_ratio) / 2
  return dataclasses.replace(
    config,
    num_frames=num_frames,
    consecutive=True,
    mirror=False,
    reverse_time=False,
    colour_jitter=0.0,
    border_ratio=(border, border),
  )


def whole_clips(
  config: record_examples.ExampleConfig, num_frames: int
) -> record_examples.ExampleConfig:
  """Like `as_they_are`, with pictures and with all points and distances."""
  return dataclasses.replace(
    as_they_are(config, num_frames),
    contents=("geometry", "images", "masks"),
    num_parts=0,
    num_uniform=0,
    num_sharp=0,
    num_samples=0,
  )


def _fields(example: Batch) -> Batch:
  return {name: example[name] for name in _FIELDS if name in example}
