"""Local copies of objects in a store, for code that needs files.

Copies are kept in a cache: `$XDG_CACHE_HOME/sculpt4d` or `~/.cache/sculpt4d`,
or a folder that the caller names. A copy is reused while the store has the same
version of the object; another version replaces it.
"""

from collections.abc import Iterator, Mapping
from concurrent import futures
import contextlib
import hashlib
import json
import os
import pathlib
from typing import Any

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import paths

try:
  import fcntl
except ImportError:  # Windows, where processes are not kept apart.
  fcntl = None

_VERSIONS, _LOCK = ".versions.json", ".lock"
OWN = (_VERSIONS, _LOCK)  # Files of this module in a folder of copies.
_THREADS = 8  # Objects that are copied at a time.


def cache_folder() -> pathlib.Path:
  """The default folder of copies."""
  base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
  return pathlib.Path(base) / "sculpt4d"


def scratch(path: Any, cache: str | pathlib.Path | None = None) -> pathlib.Path:
  """The local folder for a path; a local path is returned unchanged.

  Args:
    path: Path on a disk or in a store.
    cache: The cache's folder; None is the common one.
  """
  path = paths.of(path)
  if not paths.is_remote(path):
    return path
  digest = hashlib.sha256(str(path).encode()).hexdigest()[:16]
  folder = pathlib.Path(cache) if cache else cache_folder()
  return folder / f"{digest}-{path.name}"


def fetch(path: Any, cache: str | pathlib.Path | None = None) -> pathlib.Path:
  """A local path with the content of a file or folder.

  Args:
    path: An object or a folder of a store; a local path is returned unchanged.
    cache: The cache's folder; None is the common one.

  Returns:
    The local path.

  Raises:
    UserError: The store has no object and no folder of this name.
    StoreError: The store cannot be reached.
  """
  path = paths.of(path)
  if not paths.is_remote(path):
    return path
  # An object keeps its name, because readers choose the format by it.
  target = scratch(path, cache) / path.name
  info = path.info()
  if info is None:
    # The caller would name the copy, which the user does not know.
    raise UserError(f"{path}: there is no such object or folder.")
  with locked(target.parent):
    if info.get("type") == "file":
      _update(target.parent, {path.name: (path, info)})
    else:
      fetch_into(path, target)
  return target


def fetch_into(path: paths.StorePath, folder: pathlib.Path) -> None:
  """Mirrors a folder of a store into a local folder.

  Raises:
    StoreError: The store cannot be reached.
  """
  found = {
    item.relative_to(path).as_posix(): (item, info)
    for item, info in path.walk()
  }
  folder.mkdir(parents=True, exist_ok=True)
  _update(folder, found)


def _update(
  folder: pathlib.Path,
  found: Mapping[str, tuple[paths.StorePath, dict[str, Any]]],
) -> None:
  """Downloads new objects, and removes copies of deleted ones."""
  known = _read_versions(folder)
  wanted = {name: version(info) for name, (_, info) in found.items()}
  missing = [
    (item, folder / name)
    for name, (item, _) in found.items()
    if known.get(name) != wanted[name] or not (folder / name).is_file()
  ]
  with futures.ThreadPoolExecutor(_THREADS) as pool:
    list(pool.map(lambda pair: pair[0].download(pair[1]), missing))
  for name in set(known) - set(wanted):
    (folder / name).unlink(missing_ok=True)
  temporary = folder / f"{_VERSIONS}.new"
  temporary.write_text(json.dumps(wanted))
  os.replace(temporary, folder / _VERSIONS)


def version(info: dict[str, Any]) -> str:
  """An identifier of an object's version."""
  tag = info.get("etag") or info.get("ETag") or info.get("generation") or ""
  return f"{info.get('size')} {tag}"


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
  """Lets only one process of this machine at a time work in a folder."""
  folder.mkdir(parents=True, exist_ok=True)
  with open(folder / _LOCK, "w") as lock:
    if fcntl is not None:
      fcntl.flock(lock, fcntl.LOCK_EX)
    yield


def _read_versions(folder: pathlib.Path) -> dict[str, str]:
  try:
    return json.loads((folder / _VERSIONS).read_text())
  except (OSError, ValueError):
    return {}
