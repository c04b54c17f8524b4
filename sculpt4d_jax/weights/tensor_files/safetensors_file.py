"""safetensors files, read and written one tensor at a time.

A file consists of the length of a JSON header, the header, and the data. The
header has dtype, shape and position of every tensor, so a writer that knows all
shapes writes it first and then streams the tensors.

Source: huggingface/safetensors, "Format".
"""

from collections.abc import Iterable, Mapping
import json
import math
import os
import pathlib
import struct
from typing import BinaryIO

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.weights.tensor_files import tensor_file

CheckpointError = tensor_file.CheckpointError
TensorInfo = tensor_file.TensorInfo

_DTYPES = {
  "F16": "float16",
  "BF16": "bfloat16",
  "F32": "float32",
  "F64": "float64",
  "F8_E4M3": "float8_e4m3fn",
  "F8_E5M2": "float8_e5m2",
  "I8": "int8",
  "U8": "uint8",
  "I16": "int16",
  "U16": "uint16",
  "I32": "int32",
  "U32": "uint32",
  "I64": "int64",
  "U64": "uint64",
  "BOOL": "bool",
}
_NAMES = {name: code for code, name in _DTYPES.items()}
_MAX_HEADER = 10**8


class SafetensorsFile(tensor_file.TensorFile):
  """A safetensors file."""

  def __init__(self, path: pathlib.Path):
    """Reads the header.

    Raises:
      CheckpointError: The file is truncated or of another format.
    """
    size = os.path.getsize(path)
    if size < 8:
      raise CheckpointError(
        f"{path} has {size} bytes: it is empty or truncated. Download or"
        " copy it again."
      )
    (length,) = struct.unpack("<Q", tensor_file.read_bytes(path, 0, 8))
    if length > _MAX_HEADER:
      raise CheckpointError(f"{path} is no safetensors file.")
    if 8 + length > size:
      raise CheckpointError(tensor_file.truncated(path, 8 + length))
    try:
      header = json.loads(tensor_file.read_bytes(path, 8, length))
      metadata = header.pop("__metadata__", {})
      tensors, self._places = {}, {}
      for name, entry in header.items():
        dtype = _DTYPES.get(entry["dtype"], entry["dtype"])
        tensors[name] = TensorInfo(_counts(entry["shape"]), str(dtype))
        begin, end = _counts(entry["data_offsets"])
        self._places[name] = (begin, end)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise CheckpointError(
        f"{path} is no whole safetensors file: its header cannot be read"
        f" ({error})."
      ) from error
    self._start = 8 + length
    super().__init__(path, tensors, metadata)
    self._check_places(size)

  def read(self, name: str) -> np.ndarray:
    """Reads a tensor.

    Raises:
      CheckpointError: The file is truncated, or the dtype is unknown.
    """
    info = self.tensors[name]
    if info.dtype not in _NAMES:
      raise CheckpointError(
        f"{self.path}: {name!r} holds numbers of type {info.dtype}, which is"
        " not known here."
      )
    begin, end = self._places[name]
    content = tensor_file.read_bytes(
      self.path, self._start + begin, end - begin
    )
    dtype = tensor_file.to_dtype(info.dtype)
    return np.frombuffer(content, dtype).reshape(info.shape)

  def read_slice(self, name: str, index: tuple[int, ...]) -> np.ndarray:
    """The part of a tensor at an index of its first axes."""
    info = self.tensors[name]
    shape = info.shape[len(index) :]
    dtype = tensor_file.to_dtype(info.dtype)
    count = math.prod(shape) * dtype.itemsize
    number = 0
    for i, length in zip(index, info.shape):
      number = number * length + i
    begin = self._start + self._places[name][0] + number * count
    content = tensor_file.read_bytes(self.path, begin, count)
    return np.frombuffer(content, dtype).reshape(shape)

  def _check_places(self, size: int) -> None:
    ends = [end for _, end in self._places.values()]
    expected = self._start + max(ends, default=0)
    if expected > size:
      raise CheckpointError(tensor_file.truncated(self.path, expected))
    for name, info in self.tensors.items():
      begin, end = self._places[name]
      if info.dtype in _NAMES and end - begin != info.num_bytes:
        raise CheckpointError(
          f"{self.path} is damaged: {name!r} has {end - begin} bytes, its"
          f" shape {info.shape} needs {info.num_bytes}."
        )


def _counts(values: Iterable[int]) -> tuple[int, ...]:
  counts = tuple(values)
  if not all(type(count) is int and count >= 0 for count in counts):
    raise UserError(f"{counts} are no sizes")
  return counts


def write(
  file: BinaryIO,
  tensors: Mapping[str, TensorInfo],
  values: Iterable[tuple[str, np.ndarray]],
  metadata: Mapping[str, str] | None = None,
) -> None:
  """Writes a file, one tensor at a time.

  Args:
    file: Open for writing; `atomic.atomic_write` gives one.
    tensors: Shape and dtype of every tensor.
    values: The tensors; their order is that of the file.
    metadata: Written to the header.

  Raises:
    ValueError: A tensor differs from its announcement, or some are missing.
  """
  header, end = {}, 0
  if metadata:
    header["__metadata__"] = dict(metadata)
  for name, info in tensors.items():
    begin, end = end, end + info.num_bytes
    header[name] = {
      "dtype": _NAMES[info.dtype],
      "shape": list(info.shape),
      "data_offsets": [begin, end],
    }
  text = json.dumps(header, separators=(",", ":")).encode()
  text += b" " * (-len(text) % 8)  # Aligns the data to 8 bytes.
  file.write(struct.pack("<Q", len(text)) + text)
  start = file.tell()
  written = set()
  for name, value in values:
    info = tensors[name]
    if value.shape != info.shape or value.dtype.name != info.dtype:
      raise UserError(
        f"{name}: announced {info.dtype} {info.shape}, got"
        f" {value.dtype.name} {value.shape}."
      )
    file.seek(start + header[name]["data_offsets"][0])
    # As bytes, because file objects do not support bfloat16.
    flat = np.ascontiguousarray(value).reshape(math.prod(value.shape))
    file.write(flat.view(np.uint8).data)
    written.add(name)
  if written != set(tensors):
    missing = sorted(set(tensors) - written)
    raise UserError(f"Tensors that did not come: {missing[:5]}.")
