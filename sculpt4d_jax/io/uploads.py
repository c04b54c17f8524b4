"""Uploads of folders to a store, where objects appear one by one."""

from collections.abc import Sequence
from concurrent import futures
import errno
import pathlib
from typing import Any

from sculpt4d_jax.io import paths

_AT_ONCE = 8  # Objects that are written at once.


def upload_folder(
  folder: pathlib.Path,
  target: paths.StorePath,
  last: Sequence[str] = (),
  leave_out: Sequence[str] = (),
) -> None:
  """Copies all files of a folder into a store; hidden ones too, as zarr has.

  Args:
    folder: Folder on a disk.
    target: Destination; files keep their relative names.
    last: Names of files that are copied after all others, in this order: the
      files that mark the folder as complete.
    leave_out: Names of files that are not copied.

  Raises:
    StoreError: The store cannot be used, or another run changed the objects
      before all of them were there.
  """
  files = sorted(
    path
    for path in folder.rglob("*")
    if path.is_file() and path.name not in leave_out
  )
  rank = {name: number for number, name in enumerate(last, 1)}
  marks = sorted(
    (path for path in files if path.name in rank),
    key=lambda path: rank[path.name],
  )
  places = {
    target / path.relative_to(folder): path
    for path in files
    if path.name not in rank
  }
  with futures.ThreadPoolExecutor(_AT_ONCE) as pool:
    infos = pool.map(lambda pair: pair[0].upload(pair[1]), places.items())
    written = dict(zip(places, map(_content_id, infos)))
  if marks and written:
    found = {path: _content_id(info) for path, info in target.walk()}
    changed = [path for path in written if found.get(path) != written[path]]
    if changed:
      # A store has no locks. A mark would claim that the files of two runs
      # belong together.
      raise paths.StoreError(
        errno.EBUSY,
        f"another run wrote {changed[0]} at the same time; take another folder",
        str(target),
      )
  for path in marks:
    (target / path.relative_to(folder)).upload(path)


def _content_id(info: dict[str, Any]) -> str:
  """Identifier of an object's content, from the store's metadata."""
  names = ("crc32c", "md5Hash", "ETag", "etag")
  mark = next((str(info[name]) for name in names if info.get(name)), "")
  return f"{info.get('size')} {mark.strip(chr(34))}"
