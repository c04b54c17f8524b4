"""Batches of prepared data sets, loaded with Grain.

All clips of a split are reshuffled in every epoch; the order depends on the
seed alone. Element k of the endless sequence is the same example on one process
or many, with threads or worker processes: row r of step s is element s B + r,
and each process reads the rows that are on its devices. The position in the
data is therefore the step, even if the number of processes changes.

Examples are read and decoded by threads, or by worker processes.

Needs the package grain, which only this file imports.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import types
from typing import TYPE_CHECKING

from absl import flags
import numpy as np

from sculpt4d_jax.data.loading import examples as record_examples
from sculpt4d_jax.data.records import index as dataset_index
from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import paths

if TYPE_CHECKING:
  import grain

# Length of the "endless" sequence: a truly endless one overflows with small
# batches.
_MANY = 1 << 48

Folders = paths.PathLike | Sequence[paths.PathLike]


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
  """Settings of batches.

  Attributes:
    batch_size: Number of clips in a step, over all processes.
    seed: Seed of the order and of all random draws.
    example: Settings of each example.
    num_threads: Number of threads that read and decode in each process.
    num_workers: Number of worker processes that do so; 0 uses threads.
    prefetch: Number of batches that are read ahead.
  """

  batch_size: int
  seed: int = 0
  example: record_examples.ExampleConfig = dataclasses.field(
    default_factory=record_examples.ExampleConfig
  )
  num_threads: int = 4
  num_workers: int = 0
  prefetch: int = 4

  def __post_init__(self) -> None:
    if self.batch_size < 1 or self.num_threads < 1 or self.prefetch < 1:
      raise UserError(
        "batch_size, num_threads and prefetch must be at least 1, got"
        f" {self.batch_size}, {self.num_threads} and {self.prefetch}."
      )
    if self.num_workers < 0:
      raise UserError(f"num_workers={self.num_workers} must not be negative.")


class RecordLoader:
  """The endless sequence of examples of a split, and batches of it."""

  def __init__(self, folders: Folders, split: str, config: LoaderConfig):
    """Opens a split.

    Args:
      folders: Folders of one or more data sets.
      split: "train" or "test".
      config: Settings of the batches.

    Raises:
      RecordError: There is no data set, or one of another version.
      ValueError: The split is unknown or empty.
      ImportError: Grain is not installed.
    """
    grain = _import_grain()
    self.config = config
    self.reader = open_split(folders, split, config.example)
    count = len(self.reader)
    # Shuffled before it is repeated: Grain then draws another order for every
    # epoch, and an epoch has every clip once.
    self._order = (
      grain.MapDataset.range(count)
      .seed(config.seed)
      .shuffle()
      .repeat(_MANY // count)
    )
    # Grain seeds an example's generator by its number, so that draws do not
    # depend on which thread or process makes it.
    self._examples = self._order.random_map(self.reader.read)

  def clips(self, step: int) -> list[dataset_index.IndexedClip]:
    """The clips of a step's batch."""
    first = step * self.config.batch_size
    return [
      self.reader.clip(int(self._order[first + row]))
      for row in range(self.config.batch_size)
    ]

  def iterator(
    self, first_step: int = 0, rows: np.ndarray | None = None
  ) -> Iterator[dict[str, np.ndarray]]:
    """An endless iterator over batches, or some rows of each.

    Args:
      first_step: Step of the first batch.
      rows: Rows of the batch to read; None reads all.

    Returns:
      A Grain iterator over examples of `ExampleReader.read` with a leading
      axis. `get_state` returns its position, to resume with `set_state` and the
      same number of workers; a fresh iterator with another first step does the
      same and needs neither.
    """
    grain = _import_grain()
    config = self.config
    if rows is None:
      rows = np.arange(config.batch_size)
    source = _Rows(self._examples, rows, config.batch_size, first_step)
    batches = grain.MapDataset.source(source).batch(len(rows))
    # In a shorter buffer than there are threads, some of them would wait.
    options = grain.ReadOptions(
      num_threads=config.num_threads,
      prefetch_buffer_size=max(config.num_threads, config.prefetch),
    )
    batches = batches.to_iter_dataset(options)
    if config.num_workers:
      _parse_flags()
      batches = batches.mp_prefetch(
        grain.MultiprocessingOptions(num_workers=config.num_workers)
      )
    return iter(batches)


class _Rows:
  """Those examples of the endless sequence that a process reads."""

  def __init__(
    self,
    examples: "grain.MapDataset",
    rows: np.ndarray,
    batch_size: int,
    first_step: int,
  ):
    self._examples = examples
    self._rows = [int(row) for row in rows]
    self._batch_size = batch_size
    self._first_step = first_step

  def __len__(self) -> int:
    steps = len(self._examples) // self._batch_size - self._first_step
    return steps * len(self._rows)

  def __getitem__(self, number: int) -> dict[str, np.ndarray]:
    # Batches of four, of which this process reads the rows 2 and 3:
    #
    #   element of the sequence   0  1  2  3 | 4  5  6  7 | 8  9 10 11
    #   step                      0          | 1          | 2
    #   number here                     0  1 |       2  3 |       4  5
    step, row = divmod(number, len(self._rows))
    first = (self._first_step + step) * self._batch_size
    return self._examples[first + self._rows[row]]

  def __repr__(self) -> str:
    return (
      f"_Rows(rows={self._rows}, batch_size={self._batch_size},"
      f" first_step={self._first_step})"
    )


def open_split(
  folders: Folders, split: str, config: record_examples.ExampleConfig
) -> record_examples.ExampleReader:
  """Opens the clips of a split; the errors are those of `RecordLoader`."""
  if isinstance(folders, paths.PathLike):
    folders = (folders,)
  if split not in dataset_index.SPLITS:
    raise UserError(
      f"Unknown split {split!r}: choose one of"
      f" {', '.join(dataset_index.SPLITS)}."
    )
  reader = record_examples.ExampleReader(
    [dataset_index.read_index(folder) for folder in folders], split, config
  )
  if not len(reader):
    raise UserError(
      f"The split {split!r} of {', '.join(map(str, folders))} is empty;"
      " prepare more assets or change --test_fraction."
    )
  return reader


def make_iterator(
  folders: Folders,
  split: str,
  config: LoaderConfig,
  *,
  process_index: int = 0,
  process_count: int = 1,
) -> Iterator[dict[str, np.ndarray]]:
  """Batches of which each process reads an equal share.

  Args:
    folders: Folders of one or more data sets.
    split: "train" or "test".
    config: Settings of the batches.
    process_index: `jax.process_index()`.
    process_count: `jax.process_count()`.

  Returns:
    See `RecordLoader.iterator`. The processes' batches, one after the other,
    are the batch of one process.

  Raises:
    RecordError: There is no data set, or one of another version.
    ValueError: The split is unknown or empty, or the batch does not divide.
    ImportError: Grain is not installed.
  """
  if config.batch_size % process_count:
    raise UserError(
      f"batch_size={config.batch_size} is not a multiple of the"
      f" {process_count} processes."
    )
  share = config.batch_size // process_count
  rows = np.arange(process_index * share, (process_index + 1) * share)
  return RecordLoader(folders, split, config).iterator(rows=rows)


def _parse_flags() -> None:
  """Grain's workers read absl flags, which a notebook has never parsed."""
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["record_loader"], known_only=True)


def _import_grain() -> types.ModuleType:
  try:
    import grain
  except ImportError as error:
    raise MissingPackageError(
      "Batches of records need the package grain: pip install"
      " 'sculpt4d-jax[data]' or pip install array-record grain."
    ) from error
  return grain
