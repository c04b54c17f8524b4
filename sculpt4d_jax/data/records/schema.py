"""Schema of a training record, and its encoding.

A record is one clip. It is stored as several entries, so that a reader loads
only what a training step uses:

  geometry   one entry for each part of the surface points. Rows were drawn at
             random, so any part is a smaller sample of the surface; with the
             distance samples of the part
  queries    the rows that farthest-point sampling chose, in all frames
  view       one entry a camera: a picture of every frame, and the camera
  buffers    one entry a camera: depth and normals of every frame
  posterior  mean and log-variance of an encoder, added by a later job

An entry is a safetensors blob with metadata. `SCHEMA` declares the arrays of
each kind; both writer and reader check entries against it. Space is the cube
[-1, 1]^3, y up; distances are positive inside.

Depth is a 16-bit grey PNG: 0 outside, else 1 + 65534 (d - near) / (far - near).
Normals are an RGB PNG: 127.5 (n + 1) in world space, 0 outside.
"""

from collections.abc import Mapping
import dataclasses
import json
from typing import Any

import numpy as np
import safetensors
from safetensors import numpy as safetensors_numpy

from sculpt4d_jax.errors import UserError

# Readers refuse other versions: numbers of another meaning would train badly
# without an error.
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Field:
  """An array of an entry.

  Attributes:
    dtype: NumPy's name.
    shape: Numbers, or letters that are the same in all fields of an entry.
    meaning: Description of its content.
  """

  dtype: str
  shape: tuple[int | str, ...]
  meaning: str


SCHEMA: dict[str, dict[str, Field]] = {
  "geometry": {
    "surface": Field("float16", ("F", "P", 6), "position, outward normal"),
    "is_sharp": Field("uint8", ("P",), "1 on sharp edges; those come last"),
    "samples": Field("float16", ("F", "Q", 4), "position, signed distance"),
    "is_near": Field("uint8", ("Q",), "1 near the surface, 0 in the cube"),
  },
  "queries": {
    "surface": Field("float16", ("F", "N", 6), "position, outward normal"),
    "is_sharp": Field("uint8", ("N",), "1 on sharp edges"),
  },
  "view": {
    "pictures": Field("uint8", ("bytes",), "PNG files, one after the other"),
    "ends": Field("int64", ("F",), "where each picture ends"),
    "camera_to_world": Field("float64", (4, 4), "see rendering/cameras.py"),
    "fov_degrees": Field("float64", (1,), "of the picture's height"),
  },
  "buffers": {
    "depth": Field("uint8", ("bytes",), "PNG files, one after the other"),
    "depth_ends": Field("int64", ("F",), "where each ends"),
    "depth_range": Field("float64", (2,), "near and far, world units"),
    # Another letter, since these files are not as long as those of the depth.
    "normal": Field("uint8", ("others",), "PNG files, one after the other"),
    "normal_ends": Field("int64", ("F",), "where each ends"),
  },
  "posterior": {
    "mean": Field("float16", ("F", "N", "C"), "of the latents, unscaled"),
    "log_variance": Field("float16", ("F", "N", "C"), "natural logarithm"),
  },
  "features": {
    "tokens": Field("float16", ("F", "I", "D"), "of one camera's pictures"),
  },
}


class RecordError(UserError):
  """An entry does not match the schema."""


def encode(
  kind: str,
  clip: str,
  arrays: Mapping[str, np.ndarray],
  part: int = 0,
) -> bytes:
  """The bytes of an entry.

  Args:
    kind: A key of `SCHEMA`.
    clip: Identity of the clip.
    arrays: The fields of the kind.
    part: Number of the part of the surface, or of the camera.

  Raises:
    RecordError: The arrays are not those of the schema, or not finite.
  """
  check(kind, arrays)
  metadata = {
    "version": str(VERSION),
    "kind": kind,
    "clip": clip,
    "part": str(part),
  }
  # One key, because the order of several would differ between processes, and
  # equal records should be equal files.
  return safetensors_numpy.save(
    {name: np.ascontiguousarray(x) for name, x in arrays.items()},
    {"entry": json.dumps(metadata)},
  )


def decode(content: bytes, kind: str) -> dict[str, np.ndarray]:
  """The arrays of an entry.

  Raises:
    RecordError: It is damaged, of another kind, or of another version.
  """
  header = read_metadata(content)
  if header.get("version") != str(VERSION) or header.get("kind") != kind:
    raise RecordError(
      f"expected an entry {kind!r} of version {VERSION}, got"
      f" {header.get('kind')!r} of version {header.get('version')!r}."
    )
  try:
    arrays = safetensors_numpy.load(content)
  except (safetensors.SafetensorError, ValueError) as error:
    raise RecordError(f"the entry is damaged: {error}.") from error
  # Numbers were checked when they were written; a surface has 112 MB.
  check(kind, arrays, finite=False)
  return arrays


def read_metadata(content: bytes) -> dict[str, Any]:
  """Metadata of an entry: version, kind, clip, part."""
  # Read by hand, because the library reads the arrays as well:
  #
  #   8 bytes   length of the header
  #   header    JSON: dtype, shape and place of every array, and metadata
  #   arrays    one after the other
  try:
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    return json.loads(header["__metadata__"]["entry"])
  except (ValueError, LookupError, TypeError) as error:
    raise RecordError(f"the entry is damaged: {error}.") from error


def check(
  kind: str, arrays: Mapping[str, np.ndarray], finite: bool = True
) -> None:
  """Raises RecordError unless arrays match the schema."""
  if kind not in SCHEMA:
    raise RecordError(f"unknown kind {kind!r}: choose one of {list(SCHEMA)}.")
  fields = SCHEMA[kind]
  if set(arrays) != set(fields):
    raise RecordError(
      f"an entry {kind!r} has the fields {sorted(fields)}, got"
      f" {sorted(arrays)}."
    )
  sizes: dict[str, int] = {}
  for name, field in fields.items():
    array = arrays[name]
    if array.dtype != np.dtype(field.dtype) or array.ndim != len(field.shape):
      raise RecordError(
        f"{kind}.{name} must be {field.dtype} {list(field.shape)}, got"
        f" {array.dtype} {list(array.shape)}."
      )
    for size, axis in zip(array.shape, field.shape):
      expected = sizes.setdefault(axis, size) if isinstance(axis, str) else axis
      if size != expected:
        raise RecordError(
          f"{kind}.{name} must be {list(field.shape)} with {axis} ="
          f" {expected}, got {list(array.shape)}."
        )
    if finite and array.dtype.kind == "f" and not np.isfinite(array).all():
      raise RecordError(f"{kind}.{name} is not finite.")


def pack(files: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
  """Files one after the other, uint8 [bytes], and where each ends, int64."""
  # One file a frame: whoever reads a few frames decodes those alone.
  ends = np.cumsum([len(file) for file in files], dtype=np.int64)
  return np.frombuffer(b"".join(files), np.uint8), ends


def unpack(content: np.ndarray, ends: np.ndarray, index: int) -> bytes:
  """One of the files that were packed."""
  begin = int(ends[index - 1]) if index else 0
  return content[begin : int(ends[index])].tobytes()
