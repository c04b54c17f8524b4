"""The container of a glTF 2.0 asset: its JSON, buffers, accessors and pictures.

All lengths, counts, offsets and indices in the file are checked when they are
read, so callers may index without further checks. Supported are `.glb`, `.gltf`
with embedded buffers, and `.gltf` with separate files.

Source: Khronos glTF 2.0 specification, sections 3.6, 4.4 and 5.
"""

import base64
import binascii
import json
import mmap
import os
import pathlib
import re
import struct
from typing import Any, NoReturn

import numpy as np

from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import gltf_compression

AssetError = asset_files.AssetError
PathLike = str | os.PathLike

_COMPONENTS = {
  5120: np.dtype("<i1"),
  5121: np.dtype("<u1"),
  5122: np.dtype("<i2"),
  5123: np.dtype("<u2"),
  5125: np.dtype("<u4"),
  5126: np.dtype("<f4"),
}
_WIDTHS = {
  "SCALAR": 1,
  "VEC2": 2,
  "VEC3": 3,
  "VEC4": 4,
  "MAT2": 4,
  "MAT3": 9,
  "MAT4": 16,
}
# Required extensions that are supported or do not affect the surface.
_HARMLESS = (
  gltf_compression.DRACO,
  gltf_compression.MESHOPT,
  "EXT_mesh_gpu_instancing",
  "KHR_animation_pointer",
  "KHR_node_visibility",
  "KHR_materials_",
  "KHR_texture_",
  "KHR_lights_",
  "KHR_xmp",
  "EXT_texture_",
  "KHR_mesh_quantization",
)


# A JSON string named "uri", of a buffer or an image.
_URI = re.compile(rb'"uri"\s*:\s*("[^"\\]*(?:\\.[^"\\]*)*")', re.DOTALL)
_MAX_URI = 1 << 16


def side_uris(
  path: PathLike,
  limits: asset_files.AssetLimits = asset_files.DEFAULT_LIMITS,
) -> list[str]:
  """Names of the files that a glTF asset refers to, each once, sorted.

  Embedded buffers and images have none. The memory-mapped JSON is searched, not
  parsed, so this needs almost no memory. A file that is not a glTF asset, or is
  too large, gives no names.
  """
  path = pathlib.Path(path)
  if not path.is_file() or not 20 <= path.stat().st_size <= limits.file_bytes:
    return []
  found: set[str] = set()
  with (
    open(path, "rb") as file,
    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
  ):
    end = len(content)
    if content[:4] == b"glTF":
      end = min(end, 20 + int.from_bytes(content[12:16], "little"))
    for match in _URI.finditer(content, 0, end):
      start, stop = match.span(1)
      if content[start + 1 : start + 6].lower() == b"data:":
        continue
      if stop - start > _MAX_URI:  # Too long for a file's name.
        continue
      try:
        found.add(json.loads(content[start:stop]))
      except ValueError:
        continue
      if len(found) > limits.nodes:
        break
  return sorted(found)


class GltfFile:
  """A glTF asset whose arrays can be read.

  Attributes:
    path: Path of the file.
    document: The JSON.
    limits: Largest sizes that were allowed.
    budget: Decoded sizes so far.
  """

  def __init__(
    self,
    path: PathLike,
    limits: asset_files.AssetLimits = asset_files.DEFAULT_LIMITS,
  ):
    """Reads the JSON; buffers are read on demand.

    Args:
      path: A .glb or .gltf file.
      limits: The most it may ask for.

    Raises:
      AssetError: It is not a glTF 2.0 file that can be read.
    """
    self.path = pathlib.Path(path)
    self.limits = limits
    self.budget = asset_files.Budget(limits.decoded_bytes)
    content = asset_files.read_file(path, limits.file_bytes)
    text, self._binary = _split(content, limits.json_bytes)
    self.document = _parse(text)
    self._buffers: dict[int, bytes] = {}
    self._views: dict[int, bytes] = {}  # Decoded ones.
    self._decoded: dict[int, np.ndarray] = {}
    self._check_header()

  def _check_header(self) -> None:
    version = str(table(self.document, "asset").get("version", ""))
    if not version.startswith("2."):
      raise AssetError(f"expected glTF version 2, got {version[:20]!r}.")
    for name in self.document.get("extensionsRequired") or []:
      if not str(name).startswith(_HARMLESS):
        raise AssetError(
          f"the asset requires the extension {str(name)[:60]!r}, which is not"
          " supported; export it without it."
        )
    for name in ("nodes", "meshes", "accessors", "bufferViews", "animations"):
      if len(self.items(name)) > max(self.limits.nodes, 200_000):
        raise AssetError(f"the asset lists {len(self.items(name)):,} {name}.")

  def items(self, name: str) -> list[Any]:
    """A list of the document, empty if there is none."""
    value = self.document.get(name) or []
    if not isinstance(value, list):
      raise AssetError(f"{name!r} must be a list.")
    return value

  def item(self, name: str, index: Any) -> dict[str, Any]:
    """One object of a list of the document."""
    items = self.items(name)
    if not is_index(index) or index >= len(items):
      raise AssetError(f"{name} has no entry {str(index)[:20]!r}.")
    if not isinstance(items[index], dict):
      raise AssetError(f"{name}[{index}] must be an object.")
    return items[index]

  def accessor(self, index: Any, kind: str | tuple[str, ...]) -> np.ndarray:
    """Reads an accessor.

    Args:
      index: Its number.
      kind: The type or types expected, for instance "VEC3".

    Returns:
      A copy [count, width]; integers marked as normalised become floats.

    Raises:
      AssetError: It is of another type, or does not fit its buffer.
    """
    accessor = self.item("accessors", index)
    name = f"accessor {index}"
    if accessor.get("type") not in ((kind,) if isinstance(kind, str) else kind):
      raise AssetError(
        f"{name} is {str(accessor.get('type'))[:20]!r}, expected {kind}."
      )
    dtype, width = _layout(accessor, name)
    count = whole(accessor, "count", name)
    # Counted as float64, the largest intermediate form.
    self.budget.take(count * width * 8, name)
    if index in self._decoded:
      values = self._decoded[index].astype(dtype)
      if values.shape != (count, width):
        raise AssetError(
          f"{name} should have the shape {(count, width)}; its compressed data"
          f" has {values.shape}."
        )
    elif "bufferView" in accessor:
      values = self._strided(accessor, count, dtype, width, name).copy()
    else:
      values = np.zeros((count, width), dtype)
    if "sparse" in accessor:
      self._fill_sparse(values, table(accessor, "sparse"), dtype, width, name)
    if accessor.get("normalized") and dtype.kind != "f":
      largest = np.iinfo(dtype).max
      values = np.maximum(values.astype(np.float32) / largest, -1)
    return values

  def image_bytes(self, index: Any) -> bytes:
    """The encoded bytes of a picture."""
    image = self.item("images", index)
    if "bufferView" in image:
      return bytes(self._view(image["bufferView"])[0])
    return self._uri_bytes(image.get("uri"), f"image {index}")

  def view_bytes(self, index: Any) -> bytes:
    """The bytes of a buffer view."""
    return bytes(self._view(index)[0])

  def put_decoded(self, index: Any, values: np.ndarray) -> None:
    """Sets what an accessor reads, for primitives that are compressed.

    Args:
      index: Number of the accessor.
      values: Its elements [count, width].
    """
    self.item("accessors", index)
    self.budget.take(values.nbytes, f"accessor {index}")
    self._decoded[index] = values

  def _fill_sparse(
    self,
    values: np.ndarray,
    sparse: dict[str, Any],
    dtype: np.dtype,
    width: int,
    name: str,
  ) -> None:
    count = whole(sparse, "count", f"{name}, sparse")
    if count > len(values):
      raise AssetError(f"{name} replaces {count} of {len(values)} elements.")
    indices, replaced = table(sparse, "indices"), table(sparse, "values")
    where_type, _ = _layout({**indices, "type": "SCALAR"}, name)
    where = self._strided(indices, count, where_type, 1, name)[:, 0]
    if count and (where_type.kind != "u" or where.max() >= len(values)):
      raise AssetError(f"{name} replaces elements that it does not have.")
    values[where] = self._strided(replaced, count, dtype, width, name)

  def _strided(
    self,
    accessor: dict[str, Any],
    count: int,
    dtype: np.dtype,
    width: int,
    name: str,
  ) -> np.ndarray:
    """A bounds-checked view of `count` elements in a buffer."""
    view, stride = self._view(accessor.get("bufferView"))
    size = dtype.itemsize * width
    stride = stride or size
    offset = whole(accessor, "byteOffset", name, default=0)
    needed = offset + (stride * (count - 1) + size if count else 0)
    if needed > len(view):
      raise AssetError(
        f"{name} needs {needed:,} bytes of a view of {len(view):,}."
      )
    return np.ndarray(
      (count, width), dtype, view, offset, (stride, dtype.itemsize)
    )

  def _view(self, index: Any) -> tuple[memoryview, int]:
    """Bytes of a buffer view, and its stride or 0."""
    view = self.item("bufferViews", index)
    name = f"buffer view {index}"
    compressed = table(view, "extensions").get(gltf_compression.MESHOPT)
    if isinstance(compressed, dict):
      if index not in self._views:
        self._views[index] = self._decompressed(compressed, name)
      stride = whole(view, "byteStride", name, default=0)
      return memoryview(self._views[index]), stride
    return self._slice(view, name)

  def _decompressed(self, compressed: dict[str, Any], name: str) -> bytes:
    content, stride = self._slice(compressed, name)
    count = whole(compressed, "count", name)
    self.budget.take(count * stride, name)
    return gltf_compression.decode_meshopt(
      bytes(content),
      count,
      stride,
      compressed.get("mode"),
      compressed.get("filter", "NONE"),
      name,
    )

  def _slice(self, view: dict[str, Any], name: str) -> tuple[memoryview, int]:
    """Bytes of a buffer, and the stride that goes with them."""
    buffer = self.buffer_bytes(view.get("buffer"))
    offset = whole(view, "byteOffset", name, default=0)
    length = whole(view, "byteLength", name)
    stride = whole(view, "byteStride", name, default=0)
    if offset + length > len(buffer):
      raise AssetError(
        f"{name} ends at byte {offset + length:,} of a buffer of"
        f" {len(buffer):,}."
      )
    return memoryview(buffer)[offset : offset + length], stride

  def buffer_bytes(self, index: Any) -> bytes:
    """All bytes of a buffer; at least the declared number."""
    buffer = self.item("buffers", index)
    if index not in self._buffers:
      if "uri" in buffer:
        content = self._uri_bytes(buffer["uri"], f"buffer {index}")
      elif index == 0 and self._binary is not None:
        content = self._binary
      else:
        raise AssetError(f"buffer {index} has neither a URI nor a GLB chunk.")
      claimed = whole(buffer, "byteLength", f"buffer {index}")
      if claimed > len(content):
        raise AssetError(
          f"buffer {index} is truncated: it claims {claimed:,} bytes and has"
          f" {len(content):,}."
        )
      self._buffers[index] = content
    return self._buffers[index]

  def _uri_bytes(self, uri: Any, name: str) -> bytes:
    if not isinstance(uri, str):
      raise AssetError(f"{name} has no URI.")
    if not uri.startswith("data:"):
      path = asset_files.path_inside(self.path.parent, uri)
      content = asset_files.read_file(path, self.limits.file_bytes)
      self.budget.take(len(content), name)
      return content
    header, comma, data = uri.partition(",")
    if not comma or not header.endswith(";base64"):
      raise AssetError(f"{name} is a data URI that is not base64.")
    try:
      return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError) as error:
      raise AssetError(f"{name} is not valid base64: {error}.") from error


def table(parent: dict[str, Any], name: str) -> dict[str, Any]:
  """A JSON object inside another one, empty if there is none."""
  value = parent.get(name, {})
  if not isinstance(value, dict):
    raise AssetError(f"{name!r} must be an object.")
  return value


def rows(parent: dict[str, Any], name: str) -> list[dict[str, Any]]:
  """A list of JSON objects inside an object, empty if there is none."""
  value = parent.get(name) or []
  if not isinstance(value, list) or not all(isinstance(x, dict) for x in value):
    raise AssetError(f"{name!r} must be a list of objects.")
  return value


def is_index(value: Any) -> bool:
  """Whether a JSON value is a whole number, not negative."""
  return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def whole(
  parent: dict[str, Any], name: str, owner: str, default: int | None = None
) -> int:
  """A whole number of a JSON object, not negative and below 2^40."""
  value = parent.get(name, default)
  if not is_index(value) or value >= 1 << 40:
    raise AssetError(f"{owner}: {name} is {str(value)[:24]}, not a size.")
  return value


def _split(content: bytes, max_json: int) -> tuple[bytes, bytes | None]:
  """The JSON text and the binary chunk, if there is one."""
  if content[:4] != b"glTF":
    if len(content) > 8 * max_json:
      raise AssetError(f"the JSON has {len(content):,} bytes.")
    return content, None
  if len(content) < 20:
    raise AssetError("the GLB ends within its header.")
  _, version, total = struct.unpack_from("<4sII", content)
  if version != 2:
    raise AssetError(f"expected GLB version 2, got {version}.")
  if total > len(content):
    raise AssetError(
      f"the GLB is truncated: it claims {total:,} bytes and has"
      f" {len(content):,}."
    )
  length, kind = struct.unpack_from("<I4s", content, 12)
  if kind != b"JSON" or 20 + length > total or length > max_json:
    raise AssetError(f"the GLB's first chunk, of {length:,} bytes, is no JSON.")
  binary, start = None, 20 + length
  if start + 8 <= total:
    size, kind = struct.unpack_from("<I4s", content, start)
    if kind == b"BIN\0":
      if start + 8 + size > total:
        raise AssetError(
          f"the GLB is truncated: its binary chunk claims {size:,} bytes and"
          f" has {total - start - 8:,}."
        )
      binary = content[start + 8 : start + 8 + size]
  return content[20 : 20 + length], binary


def _parse(text: bytes) -> dict[str, Any]:
  def refuse(constant: str) -> NoReturn:
    raise AssetError(f"the JSON holds the number {constant}.")

  try:
    document = json.loads(text, parse_constant=refuse)
  except RecursionError as error:
    raise AssetError("the JSON is nested too deeply.") from error
  except ValueError as error:
    if isinstance(error, AssetError):
      raise
    raise AssetError(f"the JSON cannot be read: {error}.") from error
  if not isinstance(document, dict):
    raise AssetError("the JSON is not an object.")
  return document


def _layout(accessor: dict[str, Any], name: str) -> tuple[np.dtype, int]:
  component, kind = accessor.get("componentType"), accessor.get("type")
  if component not in _COMPONENTS or kind not in _WIDTHS:
    raise AssetError(
      f"{name} has component type {str(component)[:20]} and type"
      f" {str(kind)[:20]!r}, which glTF does not know."
    )
  return _COMPONENTS[component], _WIDTHS[kind]
