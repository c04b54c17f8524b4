"""Makes the files of a run appear together in a folder with other files.

A run writes into a hidden folder inside the output folder. At the end its files
are moved out under a lock, so that two runs that end at the same time do not
mix their files. The moved files are listed with sizes and hashes (`LIST`): a
later run removes or overwrites only files that are listed and unchanged. A
user's file with the name of a new one is renamed.
"""

from collections.abc import Iterator, Sequence
import contextlib
import errno
import fnmatch
import hashlib
import json
import os
import pathlib
import secrets
import shutil
import threading

from absl import logging

from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import folder_lock
from sculpt4d_jax.io import paths

LIST = ".sculpt4d-files"
_PARTIAL = ".partial-"
# Marks a temporary folder in which all files are complete.
_WHOLE = ".whole"
_OWN = (folder_lock.WRITER, folder_lock.ALIVE, _WHOLE, LIST)

# Temporary folders that this process writes to -> final folder and patterns.
_OPEN: dict[pathlib.Path, tuple[pathlib.Path, Sequence[str]]] = {}
# Held by the thread that holds a folder's lock, and by the end of the process.
_TURN = threading.Lock()
_IS_ENDING = threading.Event()
_STEP = 0.1  # Seconds between two looks at it.
_LAST_WAIT = 2.0  # Seconds for files that are being moved when a signal comes.


class _HalfMovedError(atomic.OutputError):
  """A file cannot be moved, and others may have been."""

  def __init__(self, path: pathlib.Path, error: OSError, staging: pathlib.Path):
    super().__init__(path, error)
    text = (
      f"{self} Nothing is lost: the files that have not been moved are in"
      f" {staging}; the next run into this folder moves them."
    )
    self.args = (text,)
    self.source = staging


@contextlib.contextmanager
def staged_folder(
  folder: atomic.PathLike, *, replaces: Sequence[str] = ()
) -> Iterator[pathlib.Path]:
  """Yields a temporary folder whose files move to `folder` on success.

  Write all files of a run there. Either all of them appear in `folder`, or none
  does and new folders are removed again. A run that is interrupted while its
  files move moves the rest. If a file cannot be moved after others were, the
  rest stays in the temporary folder, without loss: the error names it, and the
  next run moves them. A run that is killed then leaves no description
  (run.json) and is completed by the next run, too. Temporary folders of runs
  that were killed before are removed.

  Args:
    folder: The final folder; made, with its parents, if missing. Other files
      in it stay.
    replaces: Patterns of file names, for instance "frame_*.ply": such files of
      an earlier run are removed when the new files appear, so that no frames of
      a longer sequence remain. Without patterns, files of the same names are
      overwritten and no list is kept.

  Yields:
    An empty folder on the same file system.

  Raises:
    OutputError: The folder cannot be made or written to, or a folder has the
      name of a new file.
  """
  folder = paths.of(folder)
  if paths.is_remote(folder):
    with _staged_in_store(folder, replaces) as staging:
      yield staging
    return
  staging = folder / f"{_PARTIAL}{secrets.token_hex(4)}"
  with atomic.output_errors(folder), atomic.parent_folders(folder):
    try:
      with contextlib.ExitStack() as stack:
        with _locked(folder):
          _clear_abandoned(folder, replaces)
          staging.mkdir()
          _OPEN[staging] = folder, replaces
          stack.enter_context(folder_lock.hold(staging, folder_lock.ALIVE))
        yield staging
        with _locked(folder):
          check_ways(folder, _names(staging))
          whole = json.dumps(_names(staging))
          atomic.write_bytes(staging / _WHOLE, whole.encode())
          _move(staging, folder, replaces)
          # Before the lock is released, or the folder would count as abandoned.
          shutil.rmtree(staging, ignore_errors=True)
    except BaseException as error:
      # An older run's files may also have failed to move, before this one's.
      is_begun = isinstance(error, _HalfMovedError) and error.source == staging
      if is_begun or not isinstance(error, Exception):  # Ctrl-C or SIGTERM.
        _finish_moving(staging, folder, replaces)
        if is_begun:
          logging.warning(
            "A file could be moved at the second try only: %s", error
          )
      shutil.rmtree(staging, ignore_errors=True)
      if is_begun:
        return
      if isinstance(error, atomic.OutputError) and error.path.is_relative_to(
        staging
      ):
        # Users only know the final name.
        final = folder / error.path.relative_to(staging)
        raise atomic.OutputError(final, error.__cause__) from error.__cause__
      raise
    finally:
      _OPEN.pop(staging, None)


def discard_open() -> None:
  """Removes the temporary folders of a process that is about to end.

  For a program that a signal ends while other threads write, as those of a batch
  do: they cannot be interrupted. Files that are being moved are moved first;
  afterwards no thread begins to write.
  """
  _IS_ENDING.set()
  # Kept: a thread that then began would leave its lock's file.
  _TURN.acquire(timeout=_LAST_WAIT)
  left = dict(_OPEN)
  for staging, (folder, replaces) in left.items():
    # Whoever moves files holds this lock.
    lock = folder_lock.hold(folder, wait=_LAST_WAIT)
    with contextlib.suppress(OSError), lock:
      if (staging / _WHOLE).exists():
        _move(staging, folder, replaces)
      # Under another name, a thread that still writes finds nothing.
      gone = staging.with_name(f"{_PARTIAL}{secrets.token_hex(4)}")
      with contextlib.suppress(FileNotFoundError):
        staging.rename(gone)
      shutil.rmtree(gone, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: pathlib.Path) -> Iterator[None]:
  """Holds the lock of a folder; no thread does once the process ends.

  Raises:
    KeyboardInterrupt: The process ends.
  """
  while not _TURN.acquire(timeout=_STEP):
    if _IS_ENDING.is_set():
      raise KeyboardInterrupt
  try:
    if _IS_ENDING.is_set():
      raise KeyboardInterrupt
    with folder_lock.hold(folder):
      yield
  finally:
    _TURN.release()


@contextlib.contextmanager
def _staged_in_store(
  folder: paths.StorePath, replaces: Sequence[str]
) -> Iterator[pathlib.Path]:
  """`staged_folder` for a store, which has neither locks nor renames."""
  with atomic.uploaded_folder(folder) as staging:
    yield staging
    names = {path.name for path in staging.iterdir()}
    # While files are replaced, no description may claim that they belong
    # together.
    for name in names.intersection(atomic.DESCRIPTIONS):
      (folder / name).unlink(missing_ok=True)
    stale = [
      path
      for path in folder.iterdir()
      if path.name not in names
      and any(fnmatch.fnmatchcase(path.name, pattern) for pattern in replaces)
    ]
    # Before the description appears, which must not count them in.
    for path in stale:
      path.unlink(missing_ok=True)


def check_ways(folder: pathlib.Path, names: Sequence[str]) -> None:
  """Raises OutputError if a new file would collide with a folder.

  Args:
    folder: The final folder; may be missing.
    names: Relative paths of the new files, with slashes.
  """
  for name in names:
    target = folder / name
    if target.is_dir() and not target.is_symlink():
      raise atomic.OutputError(target, OSError(errno.EISDIR, "Is a directory"))
    for parent in target.parents:
      if parent == folder:
        break
      if parent.exists() and not parent.is_dir():
        error = OSError(errno.ENOTDIR, "Not a directory")
        raise atomic.OutputError(target, error)


def _names(staging: pathlib.Path) -> list[str]:
  files = sorted(path for path in staging.rglob("*") if path.is_file())
  names = [path.relative_to(staging).as_posix() for path in files]
  # Files that mark the rest as complete are last.
  names.sort(key=lambda name: name in atomic.DESCRIPTIONS)
  return [name for name in names if name not in _OWN]


def _move(
  staging: pathlib.Path, folder: pathlib.Path, replaces: Sequence[str]
) -> None:
  """Moves the files of a run; may be called again after a kill."""
  names = _names(staging)
  # While files are replaced, nothing says that they belong together; the
  # description is moved last.
  described = [name for name in names if name in atomic.DESCRIPTIONS]
  # After a kill, some files have moved already.
  every = json.loads((staging / _WHOLE).read_bytes())
  stale = []
  if replaces:
    stale = _make_room(staging, folder, names, every, replaces)
  target = folder
  try:
    for name in [*described, *stale]:
      target = folder / name
      target.unlink(missing_ok=True)
    for name in names:
      target = folder / name
      target.parent.mkdir(parents=True, exist_ok=True)
      os.replace(staging / name, target)
  except OSError as error:
    raise _HalfMovedError(target, error, staging) from error


def _finish_moving(
  staging: pathlib.Path, folder: pathlib.Path, replaces: Sequence[str]
) -> None:
  """Moves the remaining files of a run that was interrupted between two."""
  if not (staging / _WHOLE).exists():
    return  # None has moved.
  with _locked(folder):
    # Another run may have taken the folder for abandoned, and completed it.
    if (staging / _WHOLE).exists():
      _move(staging, folder, replaces)


def _make_room(
  staging: pathlib.Path,
  folder: pathlib.Path,
  names: Sequence[str],
  every: Sequence[str],
  replaces: Sequence[str],
) -> list[str]:
  """Renames users' files, writes LIST; returns the files of earlier runs."""
  listed = _read_list(folder)
  states = {name: _state(staging / name) for name in names}
  foreign = []
  for path in sorted(folder.iterdir()):
    known = [states.get(path.name), *listed.get(path.name, [])]
    if not path.is_file() or _state(path) in known:
      continue
    if path.name in states:
      kept = _free_name(path)
      os.replace(path, kept)
      logging.warning(
        "%s is not of an earlier run; it was kept as %s.", path, kept.name
      )
    elif any(fnmatch.fnmatchcase(path.name, p) for p in replaces):
      foreign.append(path.name)
  if foreign:
    logging.warning(
      "%s holds files that look like results and are not of an earlier run;"
      " they stay: %s.",
      folder,
      ", ".join(foreign[:4]) + (", ..." if len(foreign) > 4 else ""),
    )
  stale = {
    name
    for name in listed
    if name not in every
    and any(fnmatch.fnmatchcase(name, pattern) for pattern in replaces)
  }
  # Written before the files move, with the existing files, those that will be
  # removed among them: after a kill, the next run knows all.
  there = {
    name: [state]
    for name, known in listed.items()
    if (state := _state(folder / name)) in known
  }
  content = there | {n: [s, *there.get(n, [])] for n, s in states.items()}
  atomic.write_bytes(folder / LIST, json.dumps(content, indent=0).encode())
  return sorted(stale.intersection(there))


def _free_name(path: pathlib.Path) -> pathlib.Path:
  number = 1
  while True:
    candidate = path.with_name(f"{path.stem}.kept{number}{path.suffix}")
    if not candidate.exists():
      return candidate
    number += 1


def _state(path: pathlib.Path) -> str | None:
  """A hash that identifies a file's content; None if it is not a file."""
  digest = hashlib.blake2b(digest_size=16)
  try:
    with open(path, "rb") as file:
      while block := file.read(1 << 20):
        digest.update(block)
  except OSError:
    return None
  return digest.hexdigest()


def _read_list(folder: pathlib.Path) -> dict[str, list[str]]:
  """Files of earlier runs, each with the hashes it may have.

  Empty if the list is missing or damaged.
  """
  try:
    content = json.loads((folder / LIST).read_bytes())
  except (OSError, ValueError):
    return {}
  if not isinstance(content, dict):
    return {}
  return {
    name: state
    for name, state in content.items()
    if isinstance(state, list)
    and not os.path.isabs(name)
    and ".." not in pathlib.PurePath(name).parts
  }


def _clear_abandoned(folder: pathlib.Path, replaces: Sequence[str]) -> None:
  """Completes runs that were killed while moving files, removes others."""
  for path in sorted(folder.glob(f"{_PARTIAL}*")):
    if path.is_dir() and folder_lock.is_abandoned(path):
      if (path / _WHOLE).exists():
        _move(path, folder, replaces)
      shutil.rmtree(path, ignore_errors=True)
  for path in folder.glob(f".{LIST}-*"):  # Half-written lists.
    path.unlink(missing_ok=True)
