"""Keeps compiled programs for the next start.

Compiling takes longer than sampling: of the small model on a CPU 11 s against
2 s, of the released one on a GPU minutes. JAX can keep what it compiled, but
has no folder for it until somebody names one.
"""

import hashlib
import os
import pathlib
import platform
from typing import Any

# Seconds of compilation from which a program is kept; jax's own default of 1 s
# leaves out half of the small model's.
_MIN_SECONDS = 0.2


def use_default() -> pathlib.Path | None:
  """Names a folder of the user's for JAX's compilation cache.

  It is `$XDG_CACHE_HOME/sculpt4d`, by default `~/.cache/sculpt4d`, and may be
  deleted at any time. Call it before anything is compiled.

  Returns:
    The folder; None if the user or the program has named one already
    (`JAX_COMPILATION_CACHE_DIR`), or if it cannot be written to.
  """
  import jax  # Not needed for --help.

  if _is_named():
    return None
  try:
    folder = _cache_home() / "sculpt4d" / f"compiled-{_machine()}"
    folder.mkdir(parents=True, exist_ok=True)
  except (OSError, RuntimeError):  # There is no home, or it is read-only.
    return None
  if not os.access(folder, os.W_OK | os.X_OK):
    return None
  use(folder)
  jax.config.update("jax_persistent_cache_min_compile_time_secs", _MIN_SECONDS)
  return folder


def use(folder: Any) -> None:
  """Names a folder for JAX's compilation cache, unless the user has one.

  Args:
    folder: Path, on this machine or in a store.
  """
  import jax

  if not _is_named():
    jax.config.update("jax_compilation_cache_dir", str(folder.absolute()))


def _is_named() -> bool:
  import jax

  return jax.config.jax_compilation_cache_dir is not None


def _cache_home() -> pathlib.Path:
  named = os.environ.get("XDG_CACHE_HOME", "")
  # The specification ignores relative paths.
  return (
    pathlib.Path(named)
    if os.path.isabs(named)
    else pathlib.Path.home() / ".cache"
  )


def _machine() -> str:
  """A name of the kind of processor.

  Programs for the CPU use the instructions of the one they were compiled on,
  which another machine with the same home may lack; JAX does not check.
  """
  kind = [platform.system(), platform.machine(), platform.processor()]
  try:
    lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    names = ("flags", "Features")
    kind += [line for line in lines if line.startswith(names)][:1]
  except OSError:  # Not Linux.
    pass
  return hashlib.sha256("\n".join(kind).encode()).hexdigest()[:12]
