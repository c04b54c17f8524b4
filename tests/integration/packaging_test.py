"""The wheel: what is in it, and that it leaves `kernels` to its owner.

`kernels` is a distribution of Hugging Face's, which `transformers` looks for. A
stand-in of that name is put next to the installed wheel, so that the tests need
no network; where the real ones are installed they are tried too.
"""

import ast
import importlib.metadata
import os
import pathlib
import re
import subprocess
import sys
import textwrap
import tomllib
import zipfile

import pytest

from tests.integration import wheels

ROOT = pathlib.Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

USE_BOTH = """
    import importlib.metadata
    import numpy as np
    from sculpt4d_jax.kernels import block_sparse_attention as bsa
    import kernels

    assert kernels.OWNER == "stand-in", kernels.__file__
    assert importlib.metadata.version("kernels") == "9.9"
    assert bsa.__name__ == "sculpt4d_jax.kernels.block_sparse_attention"
    mask = bsa.BlockMask(
        num_frames=16, blocks_per_frame=32, schedule=(1, 1, 2, 4, 8, 16)
    )
    print(f"{100 * mask.density():.2f}", bsa.__file__)
"""

# Where the name to import is not that of the distribution.
DISTRIBUTIONS = {
  "imath": "alembic3d",
  "cv2": "opencv-python-headless",
  "PIL": "pillow",
  "absl": "absl-py",
  "igl": "libigl",
  "open_clip": "open_clip_torch",
  "orbax": "orbax-checkpoint",
  "pxr": "usd-core",
  "skimage": "scikit-image",
}

# What benchmarks compare with if it is installed; nothing needs it.
COMPARED_WITH = {"torch"}


def requirements(name):
  lines = (ROOT / name).read_text().splitlines()
  lines = [line.partition("#")[0].strip() for line in lines]
  return {line for line in lines if line and not line.startswith("-r")}


def run_python(code, *, path="", cwd):
  result = subprocess.run(
    [sys.executable, "-c", textwrap.dedent(code)],
    cwd=cwd,
    env={**os.environ, "PYTHONPATH": str(path), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  return result.stdout.strip()


def make_stand_in(site):
  """A distribution named kernels, as Hugging Face's lies in site-packages."""
  (site / "kernels").mkdir(parents=True)
  (site / "kernels" / "__init__.py").write_text('OWNER = "stand-in"\n')
  metadata = site / "kernels-9.9.dist-info"
  metadata.mkdir()
  (metadata / "METADATA").write_text(
    "Metadata-Version: 2.1\nName: kernels\nVersion: 9.9\n"
  )


# Folders of files that a wheel has inside the package.
SHIPPED = {
  "demo": "sculpt4d_jax.shipped.demo",
  **{
    f"weights/{path.name}": f"sculpt4d_jax.shipped.weights.{path.name}"
    for path in (ROOT / "weights").iterdir()
    if path.is_dir()
  },
}


def test_declared_packages_are_those_in_the_tree():
  folders = set(SHIPPED.values())
  for root, prefix in (("sculpt4d_jax", ""), ("kernels", "sculpt4d_jax.")):
    for path in (ROOT / root).rglob("__init__.py"):
      parts = path.parent.relative_to(ROOT).parts
      folders.add(prefix + ".".join(parts))
  settings = PROJECT["tool"]["setuptools"]
  assert set(settings["packages"]) == folders
  for folder, package in SHIPPED.items():
    assert settings["package-dir"][package] == folder
    assert settings["package-data"][package]


def test_requirements_agree_with_the_project():
  extras = PROJECT["project"]["optional-dependencies"]
  needed = set(PROJECT["project"]["dependencies"]) | set(extras["usd"])
  assert requirements("requirements.txt") == needed
  assert requirements("requirements-test.txt") == set(extras["test"])


def imported_distributions(*folders, at_start_only=False):
  """What the code imports besides itself and the standard library."""
  names = set()
  for path in (path for f in folders for path in (ROOT / f).rglob("*.py")):
    tree = ast.parse(path.read_text())
    for node in tree.body if at_start_only else ast.walk(tree):
      if isinstance(node, ast.Import):
        names |= {alias.name.partition(".")[0] for alias in node.names}
      elif isinstance(node, ast.ImportFrom) and not node.level:
        names.add(node.module.partition(".")[0])
  own = {"sculpt4d_jax", "kernels", "launch", "configs"}
  names -= own | set(sys.stdlib_module_names)
  return {DISTRIBUTIONS.get(name, name.replace("_", "-")) for name in names}


def test_every_import_is_declared_and_every_requirement_imported():
  project = PROJECT["project"]
  listed = [*project["dependencies"]]
  for extra in project["optional-dependencies"].values():
    listed += extra
  declared = {re.match(r"[\w-]+", entry)[0] for entry in listed}
  used = imported_distributions("sculpt4d_jax", "kernels", "launch", "configs")
  assert used - COMPARED_WITH <= declared
  for requirement in project["dependencies"]:
    assert re.match(r"[\w-]+", requirement)[0] in used


def test_kernels_need_jax_and_numpy_only():
  assert imported_distributions("kernels", at_start_only=True) <= {
    "jax",
    "numpy",
  }
  assert imported_distributions("kernels") <= {"jax", "numpy"} | COMPARED_WITH


def test_kernels_folder_is_no_package():
  # With an __init__.py it would hide the other `kernels` in a checkout.
  assert not (ROOT / "kernels" / "__init__.py").exists()


def test_checkout_does_not_hide_the_other_kernels(tmp_path):
  make_stand_in(tmp_path)
  output = run_python(USE_BOTH, path=tmp_path, cwd=ROOT)
  density, where = output.split()
  assert density == "35.23"
  assert pathlib.Path(where).is_relative_to(ROOT / "kernels")


@pytest.fixture(name="wheel", scope="module")
def wheel_fixture(tmp_path_factory):
  return wheels.build(tmp_path_factory)


@pytest.fixture(name="site", scope="module")
def site_fixture(wheel, tmp_path_factory):
  """A site-packages with the wheel and the stand-in in it."""
  site = tmp_path_factory.mktemp("site")
  subprocess.run(
    [
      sys.executable,
      "-m",
      "pip",
      "install",
      "--quiet",
      "--no-deps",
      "--no-index",
      "--target",
      site,
      wheel,
    ],
    check=True,
    timeout=300,
  )
  make_stand_in(site)
  return site


def _version(name):
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


@pytest.mark.slow
def test_wheel_holds_the_library_and_nothing_beside_it(wheel):
  names = set(zipfile.ZipFile(wheel).namelist())
  tops = {name.split("/")[0] for name in names}
  assert {re.sub(r"-.*\.dist-info$", "", top) for top in tops} == {
    "sculpt4d_jax"
  }
  assert wheel.name.endswith("py3-none-any.whl")
  expected = {
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "sculpt4d_jax").rglob("*")
    if path.is_file() and "__pycache__" not in path.parts
  } | {
    "sculpt4d_jax/" + path.relative_to(ROOT).as_posix()
    for folder in ("kernels", "configs")
    for pattern in ("*.py", "*.json")
    for path in (ROOT / folder).rglob(pattern)
  }
  for folder in SHIPPED:
    expected |= {
      f"sculpt4d_jax/shipped/{folder}/{path.name}"
      for path in (ROOT / folder).iterdir()
    }
  assert {name for name in names if ".dist-info/" not in name} == expected
  assert any(name.endswith("licenses/LICENSE") for name in names)


@pytest.mark.slow
def test_installed_wheel_leaves_kernels_to_its_owner(site, tmp_path):
  density, where = run_python(USE_BOTH, path=site, cwd=tmp_path).split()
  assert density == "35.23"
  assert pathlib.Path(where).is_relative_to(site / "sculpt4d_jax" / "kernels")


@pytest.mark.slow
def test_installed_models_find_their_kernels(site, tmp_path):
  output = run_python(
    """
      from sculpt4d_jax.models import attention
      import sys
      print([name for name in sys.modules if name.split(".")[0] == "kernels"])
      """,
    path=site,
    cwd=tmp_path,
  )
  assert output == "[]"


@pytest.mark.slow
@pytest.mark.skipif(
  not (_version("kernels") and _version("transformers")),
  reason="needs Hugging Face's kernels and transformers.",
)
@pytest.mark.parametrize("in_checkout", [True, False])
def test_transformers_finds_the_real_kernels(wheel, tmp_path, in_checkout):
  with zipfile.ZipFile(wheel) as archive:
    archive.extractall(tmp_path / "site")
  output = run_python(
    """
      import importlib.metadata
      from sculpt4d_jax.kernels import block_sparse_attention
      import kernels
      from transformers.utils import import_utils

      # Any version will do: which ones transformers wants is its affair.
      assert import_utils.is_kernels_available("0", "999")
      assert callable(kernels.get_kernel)
      print(kernels.__version__ == importlib.metadata.version("kernels"))
      """,
    path="" if in_checkout else tmp_path / "site",
    cwd=ROOT if in_checkout else tmp_path,
  )
  assert output == "True"
