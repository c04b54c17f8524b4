"""Reads files of untrusted assets safely and within limits.

Assets are untrusted input. Sizes that a file claims are checked against the
file and against `AssetLimits` before memory is allocated. References may only
lead to files in the asset's folder. Archives are unpacked in memory while the
unpacked bytes are counted. Violations raise `AssetError` with a one-sentence
message.
"""

import dataclasses
import lzma
import os
import pathlib
import re
import urllib.parse
import zipfile
import zlib

from sculpt4d_jax.errors import UserError

PathLike = str | os.PathLike

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_CHUNK = 1 << 20


class AssetError(UserError):
  """An asset cannot be used; the message says why."""


@dataclasses.dataclass(frozen=True)
class AssetLimits:
  """Limits on the size of one asset.

  Attributes:
    file_bytes: Size of any one file, and of all files of a zip unpacked.
    json_bytes: Size of a glTF's JSON.
    decoded_bytes: All arrays that are decoded for one clip.
    vertices: Vertices of one frame.
    faces: Triangles of one frame.
    nodes: Nodes of a scene, its joints included.
    keys: Key frames of one animation channel.
    frames: Files of a mesh sequence.
    image_pixels: Pixels of one texture.
    zip_ratio: Largest ratio of a zip member's size to its packed bytes.
  """

  file_bytes: int = 1 << 30
  json_bytes: int = 64 << 20
  decoded_bytes: int = 2 << 30
  vertices: int = 4_000_000
  faces: int = 4_000_000
  nodes: int = 50_000
  keys: int = 1_000_000
  frames: int = 4096
  image_pixels: int = 1 << 26
  zip_ratio: float = 200.0


DEFAULT_LIMITS = AssetLimits()


@dataclasses.dataclass(frozen=True)
class LeftOut:
  """A mesh of the scene that is no part of the object.

  Attributes:
    name: Its name in the asset.
    share: Its share of the area of all meshes; None if unknown.
    reason: Why it is left out, after "it".
  """

  name: str
  share: float | None
  reason: str

  def __str__(self) -> str:
    area = "" if self.share is None else f" ({self.share:.1%} of the area)"
    return f"{self.name!r}{area} {self.reason}"


class Budget:
  """Counts what a clip decodes against its limit."""

  def __init__(self, limit: int):
    self.limit = limit
    self.used = 0

  def take(self, num_bytes: int, what: str) -> None:
    """Raises AssetError if `num_bytes` more would pass the limit."""
    self.used += num_bytes
    if self.used > self.limit:
      raise AssetError(
        f"{what} would bring the decoded arrays to {self.used:,} bytes; the"
        f" limit is {self.limit:,}."
      )


def read_file(path: PathLike, max_bytes: int) -> bytes:
  """Reads a regular file of bounded size.

  Raises:
    AssetError: It is missing, no regular file or too large.
  """
  path = pathlib.Path(path)
  if not path.is_file():  # Reading a pipe or a device would never end.
    raise AssetError(f"there is no regular file {path.name!r}.")
  size = path.stat().st_size
  if size > max_bytes:
    raise AssetError(
      f"{path.name!r} has {size:,} bytes; the limit is {max_bytes:,}."
    )
  with open(path, "rb") as file:
    content = file.read(max_bytes + 1)
  if len(content) > max_bytes:
    raise AssetError(f"{path.name!r} grew past {max_bytes:,} bytes.")
  return content


def path_inside(folder: PathLike, uri: str) -> pathlib.Path:
  """The file that a relative URI names, which must lie in `folder`.

  Raises:
    AssetError: The URI is absolute, has a scheme, or leads out of the folder by
      "..", percent encoding or a link.
  """
  name = urllib.parse.unquote(uri)
  if _SCHEME.match(name) or name.startswith(("/", "\\")) or "\0" in name:
    raise AssetError(
      f"the URI {uri[:120]!r} is not relative; only files next to the asset"
      " are read."
    )
  root = pathlib.Path(folder).resolve()
  try:
    path = (root / name.replace("\\", "/")).resolve()
  except (OSError, RuntimeError, ValueError) as error:
    raise AssetError(f"the URI {uri[:120]!r} is no path: {error}.") from error
  if not path.is_relative_to(root) or path == root:
    raise AssetError(f"the URI {uri[:120]!r} leads out of the asset's folder.")
  return path


def unpack_zip(
  path: PathLike, suffixes: tuple[str, ...], limits: AssetLimits
) -> dict[str, bytes]:
  """Reads the members of a zip that end in `suffixes`, into memory.

  Args:
    path: The zip.
    suffixes: Suffixes in lower case, with their dots.
    limits: `file_bytes` bounds all members together, `frames` their number
      and `zip_ratio` the growth of each.

  Returns:
    Contents by the members' names, sorted by name.

  Raises:
    AssetError: The zip is damaged, encrypted or would unpack to too much.
  """
  if pathlib.Path(path).stat().st_size > limits.file_bytes:
    raise AssetError(f"the zip has more than {limits.file_bytes:,} bytes.")
  contents, total = {}, 0
  try:
    with zipfile.ZipFile(path) as archive:
      members = [
        info
        for info in archive.infolist()
        if info.filename.lower().endswith(suffixes)
        and not info.is_dir()
        and not _is_hidden(info.filename)
      ]
      if len(members) > limits.frames:
        raise AssetError(
          f"the zip has {len(members)} meshes; the limit is {limits.frames}."
        )
      for info in sorted(members, key=lambda info: info.filename):
        content = _member(archive, info, limits.file_bytes - total, limits)
        total += len(content)
        contents[info.filename] = content
  except (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    RuntimeError,
    EOFError,
    OSError,
    ValueError,
  ) as error:
    if isinstance(error, AssetError):
      raise
    raise AssetError(f"the zip cannot be read: {error}.") from error
  return contents


def _is_hidden(name: str) -> bool:
  """Whether a name is that of a hidden file, as those that macOS adds."""
  parts = pathlib.PurePosixPath(name.replace("\\", "/")).parts
  return any(part.startswith(".") or part == "__MACOSX" for part in parts)


def _member(
  archive: zipfile.ZipFile,
  info: zipfile.ZipInfo,
  room: int,
  limits: AssetLimits,
) -> bytes:
  """One member; counts unpacked bytes instead of trusting the directory."""
  packed = max(info.compress_size, 1)
  room = min(room, int(limits.zip_ratio * packed) + _CHUNK)
  if info.file_size > room:
    raise AssetError(
      f"the zip's {info.filename[:80]!r} unpacks {info.compress_size:,} bytes"
      f" to {info.file_size:,}; at most {room:,} are read."
    )
  parts, size = [], 0
  with archive.open(info) as file:
    while chunk := file.read(_CHUNK):
      size += len(chunk)
      if size > room:
        raise AssetError(
          f"the zip's {info.filename[:80]!r} unpacks to more than {room:,}"
          " bytes."
        )
      parts.append(chunk)
  return b"".join(parts)
