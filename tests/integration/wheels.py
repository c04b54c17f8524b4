"""Builds the wheel, and environments that have it and no checkout."""

import importlib.metadata
import os
import pathlib
import shutil
import site
import subprocess
import sys
import venv

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]


def build(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
  """The wheel, built from a copy of the tree, without network."""
  try:
    version = importlib.metadata.version("setuptools")
  except importlib.metadata.PackageNotFoundError:
    version = "0"
  if int(version.split(".")[0]) < 77:
    pytest.skip(f"needs setuptools >= 77 to build a wheel, found {version}.")
  source = tmp_path_factory.mktemp("source")
  for name in ("pyproject.toml", "README.md", "LICENSE"):
    shutil.copy(ROOT / name, source)
  ignored = shutil.ignore_patterns("__pycache__")
  for name in (
    "sculpt4d_jax",
    "kernels",
    "launch",
    "configs",
    "demo",
    "weights",
  ):
    shutil.copytree(ROOT / name, source / name, ignore=ignored)
  target = tmp_path_factory.mktemp("wheel")
  _pip("wheel", "--no-build-isolation", "--wheel-dir", target, source)
  [path] = target.glob("*.whl")
  return path


class Environment:
  """A virtual environment with the wheel over the packages of this one.

  The package `usd-core` is hidden: a wheel does not ask for it.
  """

  def __init__(self, folder: pathlib.Path, wheel: pathlib.Path):
    venv.create(folder, with_pip=False)
    self.folder = folder
    self._bin = folder / ("Scripts" if os.name == "nt" else "bin")
    _pip("install", wheel, python=self._bin / "python")
    [packages] = folder.glob("lib/python*/site-packages")
    base = "\n".join(site.getsitepackages())
    (packages / "base.pth").write_text(f"{base}\n")
    (packages / "pxr").mkdir()
    (packages / "pxr" / "__init__.py").write_text("raise ImportError\n")

  def run(
    self, program: str, *arguments: str, cwd: pathlib.Path
  ) -> subprocess.CompletedProcess:
    """Runs a program of the environment, far from the checkout."""
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
      [self._bin / program, *arguments],
      cwd=cwd,
      env=env | {"JAX_PLATFORMS": "cpu", "TQDM_DISABLE": "1"},
      capture_output=True,
      text=True,
      timeout=900,
      check=False,
    )


def _pip(command: str, *arguments: object, python: object = None) -> None:
  """Runs pip without an index and without dependencies."""
  where = ["--python", python] if python else []
  subprocess.run(
    [sys.executable, "-m", "pip", *where, command]
    + ["--quiet", "--no-deps", "--no-index", *arguments],
    check=True,
    timeout=300,
  )
