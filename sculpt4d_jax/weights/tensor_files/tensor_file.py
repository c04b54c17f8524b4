"""A file of named tensors, read one at a time.

This is the interface of all formats. The constructor reads names, shapes and
dtypes, but no data; `read` loads one tensor and keeps nothing, so a checkpoint
of any size needs only memory for its largest tensor.
"""

from collections.abc import Mapping
import dataclasses
import os
import pathlib

import ml_dtypes
import numpy as np

from sculpt4d_jax.errors import UserError

FLOATS = ("float16", "bfloat16", "float32")
FLOAT8 = ("float8_e4m3fn", "float8_e5m2")


class CheckpointError(UserError):
  """A checkpoint cannot be used; the message has the reason and a remedy."""


@dataclasses.dataclass(frozen=True)
class TensorInfo:
  """Shape and dtype of a stored tensor; the dtype by its numpy name."""

  shape: tuple[int, ...]
  dtype: str

  @property
  def num_bytes(self) -> int:
    """Size of the data, bytes."""
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
  """The NumPy dtype of a name, including bfloat16 and float8."""
  is_own = name == "bfloat16" or name in FLOAT8
  return np.dtype(getattr(ml_dtypes, name) if is_own else name)


def read_bytes(path: pathlib.Path, offset: int, count: int) -> bytearray:
  """`count` bytes from `offset` on.

  Raises:
    CheckpointError: The file ends before them.
  """
  # Not memory-mapped, because mapped pages count as memory in use.
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


def partitioned_by_zero3(path: pathlib.Path) -> str:
  """The message about a part of a checkpoint of DeepSpeed's ZeRO-3."""
  return (
    f"{path} is a part of a checkpoint that DeepSpeed's ZeRO-3 partitioned, so"
    " it holds no whole tensor. Join the parts first with the script that"
    " DeepSpeed wrote into the checkpoint's folder, python zero_to_fp32.py"
    " FOLDER OUTPUT, and convert OUTPUT."
  )
