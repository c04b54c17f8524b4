"""Orbax checkpoints written and read leaf by leaf, slice by slice.

Orbax itself saves arrays that are in memory; the stacked experts of the
released model alone are larger than a converter should need. So Orbax writes
the checkpoint's own files for leaves of one number each, and the numbers are
then put in the place and the format it keeps them in: one folder a leaf, zarr 2
without compression, one file a slice. What comes out is an ordinary checkpoint
that Orbax restores; no file of it is written by hand but numbers and `.zarray`.

Source: Orbax, `PyTreeCheckpointHandler(use_ocdbt=False)`; the zarr 2 format.
"""

from collections.abc import Mapping
import json
import math
import pathlib

from absl import logging
import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.weights.tensor_files import tensor_file

CheckpointError = tensor_file.CheckpointError

# Files of a leaf [L, E, D, M] whose first two axes are written index by index:
#
#   FOLDER/stages.1.moe.experts.fc1.kernel/
#     .zarray     shape [L, E, D, M], chunks [1, 1, D, M]
#     0.0.0.0     D x M numbers of slice (0, 0), row by row
#     0.1.0.0     those of slice (0, 1)
#     ...
_ARRAY = ".zarray"
_ZARR_DTYPES = {"float32": "<f4", "bfloat16": "bfloat16", "float16": "<f2"}
_DTYPES = {code: name for name, code in _ZARR_DTYPES.items()}


class LeafWriter:
  """Writes a checkpoint; `finish` checks that it is whole.

  Attributes:
    folder: The checkpoint.
    dtype: Dtype of all leaves.
  """

  def __init__(
    self,
    folder: pathlib.Path,
    shapes: Mapping[str, tuple[int, ...]],
    num_index_axes: Mapping[str, int],
    dtype: str,
  ):
    """Makes the checkpoint's files.

    Args:
      folder: Must not exist.
      shapes: Shapes of all leaves by name.
      num_index_axes: Number of a leaf's first axes that are written index by
        index.
      dtype: "float32" or "bfloat16".
    """
    self.folder = folder
    self.dtype = dtype
    self._shapes = dict(shapes)
    self._num_axes = {name: num_index_axes.get(name, 0) for name in shapes}
    self._written: set[pathlib.Path] = set()
    # Orbax's tree of names does not contain shapes: each leaf's header does.
    one = np.zeros((1,), tensor_file.to_dtype(dtype))
    _save({name: one for name in shapes}, folder)
    for name in shapes:
      self._prepare(name)

  def write(self, name: str, index: tuple[int, ...], array: np.ndarray) -> None:
    """Writes the slice `index` of a leaf, which may be written only once.

    Raises:
      ValueError: The leaf has no such slice, or numbers are not finite.
    """
    shape, axes = self._shapes[name], self._num_axes[name]
    if len(index) != axes or array.shape != shape[axes:]:
      raise UserError(
        f"{name}: slices {shape[axes:]} at {axes} indices are written, got"
        f" {array.shape} at {index}."
      )
    path = self._slice_path(name, index)
    # Two rules that fill one slice would leave whichever ran last.
    if path in self._written:
      raise UserError(f"{name}[{index}] was written already.")
    # As bytes, because file objects do not support bfloat16.
    flat = _cast(array, self.dtype).reshape(-1)
    path.write_bytes(flat.view(np.uint8).data)
    self._written.add(path)

  def finish(self) -> None:
    """Checks that all slices have been written."""
    for name, shape in self._shapes.items():
      for index in np.ndindex(*shape[: self._num_axes[name]]):
        if self._slice_path(name, index) not in self._written:
          raise UserError(f"{name}{list(index)} was never written.")

  def _prepare(self, name: str) -> None:
    place = self.folder / name
    for path in place.iterdir():
      path.unlink()
    shape, axes = self._shapes[name], self._num_axes[name]
    header = {
      "chunks": [1] * axes + list(shape[axes:]),
      # The size of an uncompressed file is known, so that a cut one is noticed.
      "compressor": None,
      "dimension_separator": ".",
      "dtype": _ZARR_DTYPES[self.dtype],
      "fill_value": None,
      "filters": None,
      "order": "C",
      "shape": list(shape),
      "zarr_format": 2,
    }
    (place / _ARRAY).write_text(json.dumps(header))

  def _slice_path(self, name: str, index: tuple[int, ...]) -> pathlib.Path:
    rest = len(self._shapes[name]) - len(index)
    return self.folder / name / ".".join(map(str, (*index, *[0] * rest)))


class LeafReader:
  """Reads slices of leaves that a `LeafWriter` wrote."""

  def __init__(self, folder: pathlib.Path):
    """Reads the headers.

    Raises:
      CheckpointError: There is no such checkpoint.
    """
    self.folder = folder
    self._headers = {
      path.parent.name: json.loads(path.read_text())
      for path in sorted(folder.glob(f"*/{_ARRAY}"))
    }
    if not self._headers:
      raise CheckpointError(
        f"{folder} holds no leaves that a conversion wrote."
      )

  @property
  def shapes(self) -> dict[str, tuple[int, ...]]:
    """Shapes of all leaves by name."""
    return {name: tuple(h["shape"]) for name, h in self._headers.items()}

  def read(self, name: str, index: tuple[int, ...] = ()) -> np.ndarray:
    """Reads a slice; its index may be shorter or longer than the stored one's.

    Raises:
      CheckpointError: A file is missing or damaged.
    """
    header = self._headers[name]
    shape, chunks = header["shape"], header["chunks"]
    if header["compressor"] is not None or header["filters"]:
      raise CheckpointError(
        f"{self.folder / name} is compressed; restore it with Orbax."
      )
    # The header does not say how many axes are split. An axis of one entry
    # looks split and whole alike: leading ones count as split, and a last axis
    # that is really split has more entries than its chunk.
    axes = sum(1 for n, c in zip(shape, chunks) if c != n)
    axes = max(axes, _leading_ones(chunks))
    if len(index) >= axes:
      return self._chunk(name, index[:axes])[index[axes:]]
    rest = np.ndindex(*shape[len(index) : axes])
    parts = [self._chunk(name, (*index, *more)) for more in rest]
    return np.stack(parts).reshape(shape[len(index) :])

  def check(self) -> None:
    """Checks that the files of all slices exist and have the right size.

    Raises:
      CheckpointError: A file is missing or has another size.
    """
    for name, header in self._headers.items():
      shape, chunks = header["shape"], header["chunks"]
      if header["compressor"] is None:
        for index in np.ndindex(*(-(-n // c) for n, c in zip(shape, chunks))):
          self._check_file(name, index)

  def _check_file(self, name: str, place: tuple[int, ...]) -> pathlib.Path:
    """The file of a slice."""
    header = self._headers[name]
    path = self.folder / name / ".".join(map(str, place))
    size = tensor_file.to_dtype(_DTYPES[header["dtype"]]).itemsize
    count = math.prod(header["chunks"]) * size
    if not path.is_file() or path.stat().st_size != count:
      raise CheckpointError(
        f"{path} is missing or has another size than {count} bytes; convert"
        " the checkpoint again."
      )
    return path

  def _chunk(self, name: str, index: tuple[int, ...]) -> np.ndarray:
    header = self._headers[name]
    inner = tuple(header["chunks"][len(index) :])
    path = self._check_file(name, (*index, *[0] * len(inner)))
    dtype = tensor_file.to_dtype(_DTYPES[header["dtype"]])
    count = math.prod(inner) * dtype.itemsize
    content = tensor_file.read_bytes(path, 0, count)
    return np.frombuffer(content, dtype).reshape(inner)


def _leading_ones(chunks: list[int]) -> int:
  count = 0
  for chunk in chunks[:-1]:
    if chunk != 1:
      break
    count += 1
  return count


def _save(tree: Mapping[str, np.ndarray], folder: pathlib.Path) -> None:
  # Without OCDBT, Orbax warns that it finds no database to merge.
  level = logging.get_verbosity()
  logging.set_verbosity(logging.ERROR)
  try:
    import orbax.checkpoint as ocp  # Half a second that readers do not need.

    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=False)
    with ocp.Checkpointer(handler) as checkpointer:
      checkpointer.save(folder.absolute(), args=ocp.args.PyTreeSave(tree))
  finally:
    logging.set_verbosity(level)


def _cast(array: np.ndarray, dtype: str) -> np.ndarray:
  """Makes an array contiguous and casts it; rounds to nearest even."""
  if not np.isfinite(array).all():
    raise CheckpointError("holds numbers that are not finite")
  made = np.ascontiguousarray(array).astype(
    tensor_file.to_dtype(dtype), copy=False
  )
  # bfloat16 has the range of float32; only float64 may overflow.
  if array.dtype == np.float64 and not np.isfinite(made).all():
    raise CheckpointError(f"holds numbers that {dtype} cannot")
  return np.ascontiguousarray(made)
