"""Writes files and folders atomically.

A file is written next to its final place under a hidden temporary name, flushed
to the disk, and renamed over the final name in one step. If anything fails, or
on an interrupt, the temporary file is removed and an older file of the same
name stays unchanged. `staged.py` does the same for the many files of a run.

A path in a store (`paths.StorePath`) is written to the local disk first and
then uploaded; stores write single objects atomically. The objects of a folder
appear one by one, the files that mark it as complete last.

Errors of the operating system (a full disk, no write permission) are raised as
`OutputError` with the path and the reason, ready to be shown to a user.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import secrets
import shutil
import tempfile
import typing

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import paths
from sculpt4d_jax.io import uploads

PathLike = str | os.PathLike | paths.StorePath

# Files that mark their folder as complete; uploaded after the rest.
DESCRIPTIONS = ("run.json", "sculpt4d.json", "dataset.json")

_ADVICE = {
  errno.ENOSPC: "free some space or choose another folder",
  errno.EDQUOT: "free some of your quota or choose another folder",
  errno.EROFS: "choose a folder on a writable file system",
  errno.EACCES: "choose a folder that you may write to",
  errno.EPERM: "choose a folder that you may write to",
  errno.ENOTDIR: "a part of the path is a file; choose another folder",
  errno.EEXIST: "a file of that name is in the way; choose another folder",
  errno.ENOTEMPTY: "choose another folder",
  errno.EISDIR: "a folder of that name is in the way; choose another name",
  errno.ENAMETOOLONG: "choose a shorter name",
}


class OutputError(UserError):
  """An output cannot be written; the message names the path and the reason."""

  def __init__(self, path: PathLike, error: OSError):
    reason = error.strerror or str(error) or type(error).__name__
    message = f"cannot write {path}: {reason}"
    if error.errno in _ADVICE:
      message += f" ({_ADVICE[error.errno]})"
    super().__init__(message + ".")
    self.path = paths.of(path)
    self.errno = error.errno


@contextlib.contextmanager
def output_errors(path: PathLike) -> Iterator[None]:
  """Turns the OSErrors of the block into OutputErrors about `path`."""
  try:
    yield
  except OSError as error:
    raise OutputError(path, error) from error


@contextlib.contextmanager
def atomic_path(path: PathLike) -> Iterator[pathlib.Path]:
  """Yields a temporary path; its file becomes `path` when the block succeeds.

  For libraries that need a file name; `atomic_write` yields an open file. The
  temporary name has the suffix of `path`, because libraries choose the format
  by it.

  Args:
    path: The final place. Missing parent folders are made.

  Yields:
    A path in the same folder, at which no file exists yet.

  Raises:
    OutputError: The file cannot be written, flushed or renamed.
  """
  path = paths.of(path)
  if paths.is_remote(path):
    with output_errors(path), tempfile.TemporaryDirectory() as folder:
      temporary = pathlib.Path(folder) / path.name
      yield temporary
      path.upload(temporary)
    return
  temporary = path.with_name(
    f".{path.stem[:64]}-{secrets.token_hex(4)}{path.suffix}"
  )
  with output_errors(path), parent_folders(path.parent):
    try:
      yield temporary
      _flush(temporary)
      os.replace(temporary, path)
    except BaseException:
      temporary.unlink(missing_ok=True)
      raise


@contextlib.contextmanager
def atomic_write(path: PathLike) -> Iterator[typing.BinaryIO]:
  """Yields a binary file that becomes `path` when the block succeeds.

  Args:
    path: The final place. Missing parent folders are made.

  Yields:
    A file open for writing bytes.

  Raises:
    OutputError: The file cannot be written, flushed or renamed.
  """
  with atomic_path(path) as temporary:
    with open(temporary, "xb") as file:
      yield file


def write_bytes(path: PathLike, content: bytes) -> None:
  """Writes a file atomically."""
  with atomic_write(path) as file:
    file.write(content)


@contextlib.contextmanager
def new_folder(
  folder: PathLike, *, replace: bool = False
) -> Iterator[pathlib.Path]:
  """Yields a temporary folder that becomes `folder` when the block succeeds.

  For results that consist of many files, such as a checkpoint.

  Args:
    folder: The final folder; missing parents are made.
    replace: Whether an older folder is replaced when the new one is complete.
      If not, the folder must be missing or empty.

  Yields:
    An empty folder next to it.

  Raises:
    OutputError: The folder exists, or cannot be made or written to.
  """
  folder = paths.of(folder)
  is_free = not folder.exists() or (
    folder.is_dir() and (replace or not any(folder.iterdir()))
  )
  if not is_free:
    raise OutputError(
      folder, OSError(errno.ENOTEMPTY, "it exists and is not empty")
    )
  if paths.is_remote(folder):
    with uploaded_folder(folder) as staging:
      yield staging
      _remove_whole(folder)
    return
  name = f".{folder.name[:64]}-partial-{secrets.token_hex(4)}"
  staging = folder.with_name(name)
  old = folder.with_name(f"{name}-old")
  with output_errors(folder), parent_folders(folder.parent):
    try:
      staging.mkdir()
      yield staging
      if folder.exists():
        os.replace(folder, old)
      os.replace(staging, folder)
    except BaseException:
      shutil.rmtree(staging, ignore_errors=True)
      if old.exists() and not folder.exists():
        os.replace(old, folder)
      raise
    shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def uploaded_folder(folder: paths.StorePath) -> Iterator[pathlib.Path]:
  """Yields an empty local folder, which is uploaded on success.

  Raises:
    OutputError: An object has the name of the folder, the store cannot be used,
      or another run writes there.
  """
  refuse_object(folder)
  with output_errors(folder), tempfile.TemporaryDirectory() as name:
    staging = pathlib.Path(name)
    yield staging
    uploads.upload_folder(staging, folder, last=DESCRIPTIONS)


def refuse_object(folder: paths.StorePath) -> None:
  """Raises OutputError if an object has the name of a folder in a store.

  Stores allow both, but then readers find the object.
  """
  with output_errors(folder):
    if folder.object_name and folder.is_file():
      raise NotADirectoryError(errno.ENOTDIR, "it is an object", str(folder))


def _remove_whole(folder: paths.StorePath) -> None:
  """Removes the objects of a folder, the files that mark it complete first."""
  for name in DESCRIPTIONS:
    (folder / name).unlink(missing_ok=True)
  folder.rmtree()


@contextlib.contextmanager
def parent_folders(folder: pathlib.Path) -> Iterator[None]:
  """Makes a folder and its parents; removes the new ones on failure."""
  missing = []
  for candidate in (folder, *folder.parents):
    if candidate.exists():
      break
    missing.append(candidate)
  try:
    folder.mkdir(parents=True, exist_ok=True)
    yield
  except BaseException:
    for candidate in missing:
      if candidate.is_dir() and not any(candidate.iterdir()):
        candidate.rmdir()
    raise


def _flush(path: pathlib.Path) -> None:
  """Flushes a file to the disk; a full disk may be reported only here."""
  # Windows flushes only files opened for writing.
  with open(path, "r+b") as file:
    os.fsync(file.fileno())
