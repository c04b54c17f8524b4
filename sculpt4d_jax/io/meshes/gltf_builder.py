"""Collects the JSON document and the binary chunk of a GLB.

Source: Khronos glTF 2.0 specification, sections 3.6 and 4.4.
"""

import json
import struct
from typing import Any

import numpy as np

from sculpt4d_jax.errors import UserError

VERTICES, INDICES = 34962, 34963  # Targets of buffer views.
_COMPONENTS = {
  np.dtype("<f4"): 5126,
  np.dtype("<u4"): 5125,
  np.dtype("<u2"): 5123,
  np.dtype("u1"): 5121,
}
_WIDTHS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class GltfBuilder:
  """A GLB under construction.

  Attributes:
    document: The JSON document; `glb_bytes` adds the buffer.
  """

  def __init__(
    self, document: dict[str, Any] | None = None, content: bytes = b""
  ):
    """Starts empty, or with a document and the bytes of its only buffer."""
    self.document = document or {
      "asset": {"version": "2.0", "generator": "sculpt4d_jax"},
      "scene": 0,
    }
    self._chunks = [padded(content, b"\0")]
    self._size = len(self._chunks[0])

  def add(self, list_name: str, entry: Any) -> int:
    """Appends to a list of the document; returns the entry's number."""
    entries = self.document.setdefault(list_name, [])
    entries.append(entry)
    return len(entries) - 1

  def add_view(self, content: bytes, target: int | None = None) -> int:
    """Appends bytes; returns the number of their buffer view."""
    view = {"buffer": 0, "byteOffset": self._size, "byteLength": len(content)}
    if target is not None:
      view["target"] = target
    self._chunks.append(padded(content, b"\0"))
    self._size += len(self._chunks[-1])
    return self.add("bufferViews", view)

  def add_accessor(
    self,
    values: np.ndarray,
    dtype: str = "<f4",
    *,
    target: int | None = None,
    bounds: bool = False,
    normalized: bool = False,
  ) -> int:
    """Appends an array; returns the number of its accessor.

    Args:
      values: [n] scalars, or [n, 2], [n, 3], [n, 4] or [n, 16].
      dtype: "<f4", "<u4", "<u2" or "u1".
      target: VERTICES or INDICES for data of meshes.
      bounds: Whether smallest and largest values are stored.
      normalized: Whether integers represent fractions of their maximum.
    """
    values = np.ascontiguousarray(values, dtype)
    accessor = {
      "bufferView": self.add_view(values.tobytes(), target),
      "componentType": _COMPONENTS[values.dtype],
      "count": len(values),
      "type": _WIDTHS[1 if values.ndim == 1 else values.shape[1]],
    }
    if normalized:
      accessor["normalized"] = True
    if bounds:
      accessor["min"] = np.atleast_1d(values.min(axis=0)).tolist()
      accessor["max"] = np.atleast_1d(values.max(axis=0)).tolist()
    return self.add("accessors", accessor)

  def add_indices(self, faces: np.ndarray, num_vertices: int) -> int:
    """Appends triangles [T, 3]; returns the number of their accessor."""
    # The index 65535 is reserved for primitive restart.
    dtype = "<u2" if num_vertices <= 65535 else "<u4"
    return self.add_accessor(faces.reshape(-1), dtype, target=INDICES)

  def glb_bytes(self, path: str) -> bytes:
    """The file's content; `path` is named in errors.

    Raises:
      ValueError: The file would exceed 4 GiB.
    """
    if self._size:
      self.document["buffers"] = [{"byteLength": self._size}]
    text = padded(
      json.dumps(self.document, separators=(",", ":")).encode(), b" "
    )
    total = 12 + 8 + len(text) + 8 + self._size
    if total >= 2**32:
      raise UserError(
        f"{path}: the sequence takes {total / 2**30:.1f} GiB and GLB files"
        " end at 4 GiB; write fewer frames or set a lower face budget."
      )
    return b"".join(
      (
        struct.pack("<4sII", b"glTF", 2, total),
        struct.pack("<I4s", len(text), b"JSON"),
        text,
        struct.pack("<I4s", self._size, b"BIN\0"),
        *self._chunks,
      )
    )


def padded(content: bytes, filler: bytes) -> bytes:
  """Content filled up to a multiple of four bytes."""
  return content + filler * (-len(content) % 4)
