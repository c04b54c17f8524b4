"""USD's Python modules, if the package is installed.

USD imports modules from C++, too, and swallows whatever they raise: of Ctrl-C
only a printed traceback would remain. Python raises it in the main thread
alone; therefore another thread imports.
"""

from concurrent import futures
import importlib
import sys
import types

from sculpt4d_jax.errors import MissingPackageError

_NAMES = (
  "Gf",
  "Kind",
  "Sdf",
  "Tf",
  "Usd",
  "UsdGeom",
  "UsdShade",
  "UsdSkel",
  "UsdUtils",
  "Vt",
)


def load() -> types.SimpleNamespace:
  """The modules of `pxr` by their names.

  Raises:
    MissingPackageError: usd-core is not installed.
  """
  try:
    if all(f"pxr.{name}" in sys.modules for name in _NAMES):
      return _load()  # Nothing is left to import.
    with futures.ThreadPoolExecutor(1) as thread:
      return thread.submit(_load).result()
  except ImportError as error:
    raise MissingPackageError(
      "USD files need the package usd-core: pip install 'sculpt4d-jax[usd]'"
      " or pip install usd-core."
    ) from error


def _load() -> types.SimpleNamespace:
  importlib.import_module("pxr")
  return types.SimpleNamespace(
    **{name: importlib.import_module(f"pxr.{name}") for name in _NAMES}
  )
