"""A file of named tensors, read one at a time.

Formats differ in how they say where a tensor lies; what follows is common. A
`TensorFile` has read the names, shapes and dtypes when it is made, and no
numbers; `read` brings in one tensor and keeps nothing, so that a checkpoint of
any size passes through the memory of its largest tensor.
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib

import ml_dtypes
import numpy as np

from sculpt4d_jax.errors import UserError

FLOATS = ("float16", "bfloat16", "float32")


class CheckpointError(UserError):
  """A checkpoint cannot be used; the message says why and what to do."""


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Shape and dtype of a stored tensor; the dtype by its numpy name."""

  shape: tuple[int, ...]
  dtype: str

  @property
  def num_bytes(self) -> int:
    return (
      int(np.prod(self.shape, dtype=np.int64)) * to_dtype(self.dtype).itemsize
    )


class TensorFile:
  """Tensors by name.

  Attributes:
    path: The file.
    tensors: Shape and dtype of every tensor, in the file's order.
    metadata: Further metadata in the file.
  """

  def __init__(
    self,
    path: pathlib.Path,
    tensors: Mapping[str, TensorInfo],
    metadata: Mapping[str, str] | None = None,
  ):
    self.path = path
    self.tensors = dict(tensors)
    self.metadata = dict(metadata or {})

  def read(self, name: str) -> np.ndarray:
    """One tensor, in native byte order.

    Raises:
      CheckpointError: The file is damaged.
    """
    raise NotImplementedError


def to_dtype(name: str) -> np.dtype:
  """The numpy dtype of a name; bfloat16 is one of them here."""
  return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def read_bytes(path: pathlib.Path, offset: int, count: int) -> bytearray:
  """`count` bytes from `offset` on.

  Raises:
    CheckpointError: The file ends before them.
  """
  # Read, not memory-mapped: mapped pages would count as memory in use.
  buffer = bytearray(count)
  with open(path, "rb", buffering=0) as file:
    file.seek(offset)
    view, done = memoryview(buffer), 0
    while done < count:
      got = file.readinto(view[done:])
      if not got:
        raise CheckpointError(truncated(path, offset + count))
      done += got
  return buffer


def truncated(path: pathlib.Path, expected: int) -> str:
  """The message about a file that ends early."""
  return (
    f"{path} ends after {os.path.getsize(path)} bytes, but its table of"
    f" contents reaches to byte {expected}: the file is truncated. Download"
    " or copy it again."
  )
