import subprocess
import sys

import pytest

from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.io import usd_modules

# Ctrl-C arrives when a module is imported by USD itself, from C++.
_INTERRUPTED = """
import importlib.abc, os, signal, sys
from sculpt4d_jax.io import usd_modules

class Finder(importlib.abc.MetaPathFinder):
  def find_spec(self, name, path, target=None):
    if name == "pxr.Kind":
      os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)
try:
  usd_modules.load()
except KeyboardInterrupt:
  print("interrupted")
"""


def test_an_interrupt_is_not_lost_in_the_import():
  pytest.importorskip("pxr")
  run = subprocess.run(
    [sys.executable, "-c", _INTERRUPTED], capture_output=True, text=True
  )
  assert (run.stdout, run.stderr) == ("interrupted\n", "")


def test_modules_have_their_names():
  pytest.importorskip("pxr")
  assert usd_modules.load().UsdGeom.__name__ == "pxr.UsdGeom"


def test_a_missing_package_names_its_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "pxr", None)
  for name in list(sys.modules):
    if name.startswith("pxr."):
      monkeypatch.delitem(sys.modules, name)
  with pytest.raises(MissingPackageError, match=r"sculpt4d-jax\[usd\]"):
    usd_modules.load()
