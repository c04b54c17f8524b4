"""Reads a USD file in another process before this one does.

On some damaged files the library of USD does not raise an error but ends the
process (an abort or an access to foreign memory) or never returns. The trial
ends in its place, and the caller gets an error. Data preparation, which reads
each asset in a process with limits, does not need it.
"""

import functools
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np

from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import asset_files

_ROOT = pathlib.Path(__file__).resolve().parents[3]
_CODE = """
import sys
sys.path.insert(0, sys.argv[1])
from sculpt4d_jax.io.assets import usd_trial
usd_trial.play(sys.argv[2])
"""
_MAX_TIMES = 1000
# Whole files of common sizes take seconds, on a busy machine too.
_SECONDS = 60.0
_SECONDS_PER_MEGABYTE = 6.0


class CrashError(asset_files.AssetError):
  """The library of USD ends the process that reads the file, or hangs."""


def check(path: str | os.PathLike) -> None:
  """Reads a file in another process.

  Any error that the library reports is left to the reader of this process. A
  file that was read and has not changed is not read again.

  Args:
    path: A USD file.

  Raises:
    CrashError: The library of USD crashes on the file, or is not done with it
      in the time that its size allows.
  """
  path = pathlib.Path(path)
  if path.is_file():
    facts = path.stat()
    _try(str(path.absolute()), facts.st_size, facts.st_mtime_ns)


@functools.lru_cache(maxsize=64)
def _try(path: str, size: int, changed: int) -> None:
  """Raises CrashError if a process that reads the file crashes or hangs."""
  del changed  # It tells versions of a file apart.
  limit = _SECONDS + _SECONDS_PER_MEGABYTE * size / 1e6
  try:
    result = subprocess.run(
      [sys.executable, "-c", _CODE, str(_ROOT), path],
      stdin=subprocess.DEVNULL,
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
      check=False,
      timeout=limit,
    )
  except subprocess.TimeoutExpired as error:
    raise CrashError(
      f"the USD library is not done with it after {limit:.0f} s: the file is"
      " damaged, or too large for this machine; export it again, with fewer"
      " frames."
    ) from error
  if result.returncode < 0:
    name = signal.Signals(-result.returncode).name
    raise CrashError(
      f"the USD library crashes on it ({name}): the file is damaged; export it"
      " again."
    )


def play(path: str | os.PathLike) -> None:
  """Plays the animation of a file; errors are ignored."""
  try:
    asset = animated_assets.AnimatedAsset(path)
    clip = asset.clips[0]
    count = int((clip.end - clip.start) * animated_assets.SEQUENCE_RATE) + 1
    times = np.linspace(clip.start, clip.end, min(count, _MAX_TIMES))
    asset.play(clip, times)
  except (ImportError, ValueError):
    pass
