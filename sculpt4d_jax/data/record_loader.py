"""Batches of a prepared data set, by Grain.

All clips of a split are shuffled anew in every epoch, by the seed alone. Element
k of the endless sequence is the same example on one process and on many: each
process takes every n-th of them, so that a step's global batch does not depend
on their number. Examples are read and decoded by threads, or by worker
processes. The iterator's state is a small value that goes into a checkpoint;
with it another run goes on at the very next batch.

Grain comes from the package grain, which only this file imports.
"""

from collections.abc import Iterator
import dataclasses
import pathlib

from absl import flags
import numpy as np

from sculpt4d_jax.data import dataset_index
from sculpt4d_jax.data import record_examples

# Examples until the sequence ends: an endless one overflows in small batches.
_MANY = 1 << 48


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
  """How batches are made.

  Attributes:
    batch_size: Clips of a step, on all processes together.
    seed: Of the order and of everything that is drawn.
    example: Of each clip.
    num_threads: That read and decode, in each process.
    num_workers: Processes that do so; 0 uses threads of this one. Part of the
      iterator's state: resume with the same number.
    prefetch: Batches that are read ahead, at least one a thread.
  """

  batch_size: int
  seed: int = 0
  example: record_examples.ExampleConfig = dataclasses.field(
      default_factory=record_examples.ExampleConfig
  )
  num_threads: int = 4
  num_workers: int = 0
  prefetch: int = 4


def make_iterator(
    folder: str | pathlib.Path,
    split: str,
    config: LoaderConfig,
    *,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """An endless iterator over a process's share of the batches.

  Args:
    folder: Of the data set.
    split: "train" or "test".
    config: How batches are made.
    process_index: `jax.process_index()`.
    process_count: `jax.process_count()`.

  Returns:
    A Grain iterator with `get_state` and `set_state`, which Orbax saves as
    `grain.checkpoint.CheckpointSave(iterator)`. Its batches are what
    `ExampleReader.read` gives with a leading axis of
    batch_size / process_count.

  Raises:
    RecordError: There is no data set, or one of another version.
    ValueError: The split is unknown or empty, or the batch does not divide.
    ImportError: Grain is not installed.
  """
  grain = _import_grain()
  index = dataset_index.read_index(folder)
  if split not in index.splits:
    raise ValueError(f"Unknown split {split!r}: choose one of train, test.")
  clips = index.splits[split]
  if not clips:
    raise ValueError(
        f"The split {split!r} of {folder} is empty; prepare more assets or"
        " change --test_fraction."
    )
  if config.batch_size % process_count or config.batch_size < 1:
    raise ValueError(
        f"batch_size={config.batch_size} is not a multiple of the"
        f" {process_count} processes."
    )
  reader = record_examples.ExampleReader(index, split, config.example)
  dataset = (
      grain.MapDataset.range(len(clips))
      .seed(config.seed)
      .shuffle()
      .repeat(_MANY // len(clips))
      # Before the slice: what is drawn for element k does not depend on it.
      .random_map(reader.read)
      [process_index::process_count]
      .batch(config.batch_size // process_count)
  )
  options = grain.ReadOptions(
      num_threads=config.num_threads,
      prefetch_buffer_size=max(config.num_threads, config.prefetch),
  )
  batches = dataset.to_iter_dataset(options)
  if config.num_workers:
    _parse_flags()
    batches = batches.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=config.num_workers)
    )
  return iter(batches)


def _parse_flags() -> None:
  """Grain's workers read absl flags, which a notebook has never parsed."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["record_loader"], known_only=True)


def _import_grain():
  try:
    import grain  # pylint: disable=g-import-not-at-top
  except ImportError as error:
    raise ImportError(
        "Batches of records need the package grain: pip install"
        " 'sculpt4d-jax[data]' or pip install array-record grain."
    ) from error
  return grain
