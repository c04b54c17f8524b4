"""Checks, before hours of work, that a store will take its results.

On a disk the programs check a folder by its permissions. A store tells what it
allows only when it is asked to do it.
"""

import errno
import secrets
from typing import Any

from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths

_PROBE = ".sculpt4d-check"


def check_folder(folder: Any) -> None:
  """Writes a small object below a name in a store, and removes it.

  Args:
    folder: The folder of results; one on a disk is not checked.

  Raises:
    OutputError: An object has this name, or the bucket or the permission is
      missing.
  """
  folder = paths.of(folder)
  if not paths.is_remote(folder):
    return
  atomic.refuse_object(folder)
  with atomic.output_errors(folder):
    _try_to_write(folder)


def check_file(path: Any) -> None:
  """Does the same for a single file, in place of which there is no folder.

  Raises:
    OutputError: See `check_folder`.
    UserError: The path names a bucket alone.
  """
  path = paths.of(path)
  if not paths.is_remote(path):
    return
  path.check_is_object()
  with atomic.output_errors(path):
    if path.is_dir():
      raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    _try_to_write(path.parent)


def _try_to_write(folder: paths.StorePath) -> None:
  # Processes of one run check at the same time.
  probe = folder / f"{_PROBE}-{secrets.token_hex(8)}"
  probe.write_bytes(b"")
  # Results of an earlier run are removed too, which may not be allowed.
  probe.unlink(missing_ok=True)
