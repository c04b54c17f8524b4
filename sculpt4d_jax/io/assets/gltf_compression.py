"""Decodes compressed buffers of glTF assets: Draco and meshopt.

Both decoders are packages of the optional extra "compressed", imported only if
an asset needs them.

Source: the extensions KHR_draco_mesh_compression, EXT_meshopt_compression.
"""

import importlib
from typing import Any

import numpy as np

from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.io.assets import asset_files

AssetError = asset_files.AssetError

DRACO = "KHR_draco_mesh_compression"
MESHOPT = "EXT_meshopt_compression"

_FILTERS = {
  "OCTAHEDRAL": "decode_filter_oct",
  "QUATERNION": "decode_filter_quat",
  "EXPONENTIAL": "decode_filter_exp",
}


def decode_draco(
  content: bytes, attributes: dict[str, Any], name: str
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
  """Decodes a primitive compressed by Draco.

  Args:
    content: The compressed bytes.
    attributes: Draco's numbers of attributes by their glTF names.
    name: Name of the primitive in messages.

  Returns:
    Faces [T, 3], and arrays [V, width] by glTF names.

  Raises:
    AssetError: The content is damaged or lacks an attribute.
    ImportError: DracoPy is not installed.
  """
  module = _import("DracoPy", "Draco")
  try:
    mesh = module.decode(content)
    faces = np.asarray(mesh.faces, np.int64).reshape(-1, 3)
    found = {entry["unique_id"]: entry["data"] for entry in mesh.attributes}
  except Exception as error:  # The package raises many types.
    raise AssetError(
      f"{name}: its Draco data cannot be decoded ({str(error)[:100]})."
    ) from error
  arrays = {}
  for attribute, number in attributes.items():
    if number not in found:
      raise AssetError(f"{name}: its Draco data has no {attribute[:40]}.")
    array = np.asarray(found[number])
    arrays[attribute] = array.reshape(len(array), -1)
  counts = {len(array) for array in arrays.values()}
  if len(counts) > 1 or (faces.size and faces.max() >= min(counts, default=0)):
    raise AssetError(f"{name}: its Draco data does not fit together.")
  return faces, arrays


def decode_meshopt(
  content: bytes, count: int, stride: int, mode: str, filter_: str, name: str
) -> bytes:
  """Decodes a buffer view compressed by meshopt.

  Args:
    content: The compressed bytes.
    count: Elements.
    stride: Bytes of each.
    mode: "ATTRIBUTES", "TRIANGLES" or "INDICES".
    filter_: "NONE", "OCTAHEDRAL", "QUATERNION" or "EXPONENTIAL".
    name: Name of the view in messages.

  Raises:
    AssetError: The content is damaged, or of another kind.
    ImportError: meshoptimizer is not installed.
  """
  module = _import("meshoptimizer", "meshopt")
  try:
    if mode == "ATTRIBUTES":
      decoded = module.decode_vertex_buffer(count, stride, content)
    elif mode == "TRIANGLES":
      decoded = module.decode_index_buffer(count, stride, content)
    elif mode == "INDICES":
      decoded = module.decode_index_sequence(count, stride, content)
    else:
      raise AssetError(f"{name} has the unknown mode {str(mode)[:20]!r}.")
    decoded = np.ascontiguousarray(decoded).reshape(-1).view(np.uint8)
    if filter_ in _FILTERS:
      function = getattr(module, _FILTERS[filter_])
      decoded = function(decoded.reshape(count, stride), count, stride)
    elif filter_ != "NONE":
      raise AssetError(f"{name} has the unknown filter {str(filter_)[:20]!r}.")
  except AssetError:
    raise
  except Exception as error:  # The package raises many types.
    raise AssetError(
      f"{name}: its meshopt data cannot be decoded ({str(error)[:100]})."
    ) from error
  result = np.ascontiguousarray(decoded).tobytes()
  if len(result) != count * stride:
    raise AssetError(
      f"{name} decodes to {len(result):,} bytes in place of {count * stride:,}."
    )
  return result


def _import(package: str, kind: str) -> Any:
  try:
    return importlib.import_module(package)
  except ImportError as error:
    raise MissingPackageError(
      f"The asset is compressed with {kind}, which needs the package {package}:"
      f" pip install 'sculpt4d-jax[compressed]' or pip install {package}."
    ) from error
