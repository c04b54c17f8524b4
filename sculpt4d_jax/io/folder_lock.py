"""Locks on folders: one writer at a time, and folders of killed writers.

A lock is a file in the folder, held by `flock`. The system releases it when the
process ends in any way, so there are no stale locks. Without `flock` (on
Windows, or if the file system does not support it) writers are not excluded and
no folder counts as abandoned.
"""

from collections.abc import Iterator
import contextlib
import errno
import os
import pathlib
import time

try:
  import fcntl
except ImportError:  # Windows.
  fcntl = None

WRITER = ".sculpt4d-lock"  # Held while files move into a folder.
ALIVE = ".alive"  # Held for as long as a temporary folder is in use.
_WAIT = 60.0  # Seconds; moving files takes far less.
_STEP = 0.02
_UNSUPPORTED = (errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL)


@contextlib.contextmanager
def hold(
  folder: pathlib.Path, name: str = WRITER, wait: float = _WAIT
) -> Iterator[None]:
  """Holds a lock of a folder for the block.

  Args:
    folder: Must exist.
    name: `WRITER` or `ALIVE`.
    wait: Seconds to wait for another writer.

  Raises:
    OSError: It cannot be locked, or another process holds it for longer.
  """
  if fcntl is None:
    yield
    return
  path = folder / name
  descriptor = _locked_file(path, wait)
  try:
    yield
  finally:
    with contextlib.suppress(OSError):
      path.unlink()  # Before unlocking: others retry.
    os.close(descriptor)


def is_abandoned(folder: pathlib.Path) -> bool:
  """Whether the process of a temporary folder no longer holds `ALIVE`."""
  if fcntl is None:
    return False
  try:
    descriptor = os.open(folder / ALIVE, os.O_RDWR)
  except OSError:
    return True
  try:
    return _try(descriptor) is True
  finally:
    os.close(descriptor)


def _locked_file(path: pathlib.Path, wait: float) -> int:
  """An open descriptor of the lock file at `path`, locked."""
  deadline = time.monotonic() + wait
  while True:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
      is_locked = _try(descriptor)
      if is_locked is None:
        return descriptor
      # The previous holder may have removed the file that was opened here.
      if is_locked and _is_file(descriptor, path):
        return descriptor
      if time.monotonic() > deadline:
        raise OSError(errno.EBUSY, "another run is writing there")
    except BaseException:
      os.close(descriptor)
      raise
    os.close(descriptor)
    time.sleep(_STEP)


def _try(descriptor: int) -> bool | None:
  """Whether the file could be locked; None if locks are not supported."""
  try:
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except OSError as error:
    if error.errno in _UNSUPPORTED:
      return None
    if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
      return False
    raise
  return True


def _is_file(descriptor: int, path: pathlib.Path) -> bool:
  try:
    return os.path.samestat(os.fstat(descriptor), os.stat(path))
  except FileNotFoundError:
    return False
