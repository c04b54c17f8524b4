"""Imports point one way, as docs/architecture.md draws them."""

import ast
import pathlib
import re

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGE = "sculpt4d_jax"

# A room may import rooms of lower rank, and itself.
RANKS = {
  "array_types": 0,
  "errors": 0,
  "configs": 0,
  "kernels": 0,
  "shipped": 0,
  "preset_files": 1,
  "geometry": 1,
  "diffusion": 1,
  "partitioning": 1,
  "models": 2,
  "rendering": 2,
  "io": 2,
  "weights": 3,
  "data": 3,
  "inference": 4,
  "evaluation": 5,
  "training": 6,
  "api": 7,
  "cli": 8,
  "__main__": 9,
}


def _imports(path):
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom) and not node.level:
      yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _files(folder):
  return sorted((ROOT / folder).rglob("*.py"))


@pytest.mark.parametrize(
  "path", _files(PACKAGE), ids=lambda p: str(p.relative_to(ROOT))
)
def test_rooms_import_lower_rooms_only(path):
  parts = path.relative_to(ROOT / PACKAGE).parts
  room = parts[0].removesuffix(".py")
  if room == "__init__" or path.name == "__init__.py":
    return
  for name in _imports(path):
    assert name.split(".")[0] not in (
      "launch",
      "configs",
      "tests",
      "benchmarks",
    ), name
    if not name.startswith(f"{PACKAGE}."):
      continue
    other = name.split(".")[1]
    assert other == room or RANKS[other] < RANKS[room], (
      f"{room} imports {other}"
    )
    if other == "kernels":
      # The command `sculpt4d info` shows which backend would be taken.
      may = (
        "models/attention.py",
        "models/over_frames.py",
        "models/tpu_attention.py",
        "cli/info.py",
      )
      assert "/".join(parts) in may, f"only {may} may"


def test_kernels_need_nothing_of_ours():
  for path in _files("kernels"):
    for name in _imports(path):
      assert name.split(".")[0] not in (
        PACKAGE,
        "launch",
        "configs",
        "benchmarks",
      ), path


def test_configs_need_ml_collections_and_each_other_only():
  for path in _files("configs"):
    for name in _imports(path):
      assert name.startswith((f"{PACKAGE}.configs.", "ml_collections")), path


def test_files_hold_one_subject():
  for folder in (PACKAGE, "kernels", "launch", "configs", "benchmarks"):
    for path in _files(folder):
      lines = len(path.read_text().splitlines())
      assert lines <= 500, f"{path} has {lines} lines: two subjects?"


def test_nothing_imports_benchmarks():
  for folder in (PACKAGE, "kernels", "launch", "configs"):
    for path in _files(folder):
      for name in _imports(path):
        assert name.split(".")[0] != "benchmarks", path


def _flags(path):
  """Name, and whether it is required, of each flag that a module defines."""
  for node in ast.walk(ast.parse(path.read_text())):
    if not isinstance(node, ast.Call) or not node.args:
      continue
    called = getattr(node.func, "attr", "")
    name = getattr(node.args[0], "value", None)
    if called.startswith("DEFINE_"):
      required = any(word.arg == "required" for word in node.keywords)
      yield name, required
    elif called == "mark_flag_as_required":
      yield name, True


def test_programs_that_tests_import_go_together_in_one_process():
  # absl's flags belong to the process: two of one name end the second import,
  # and a required one ends every program that is run without it.
  imported = set()
  for path in _files("tests"):
    for name in _imports(path):
      if name.split(".")[0] in ("launch", "benchmarks"):
        file = ROOT / (name.replace(".", "/") + ".py")
        imported |= {file} if file.is_file() else set()
  owners, faults = {}, []
  for file in sorted(imported):
    for name, required in _flags(file):
      if required:
        faults.append(f"{file} requires --{name}")
      if owners.setdefault(name, file) != file:
        faults.append(f"{file} and {owners[name]} define --{name}")
  assert not faults, "\n".join(faults)


def test_the_page_of_rooms_names_every_room():
  page = (ROOT / "docs" / "architecture.md").read_text()
  rooms = page.split("## The rooms")[1].split("```")[1]
  named = set(re.findall(r"[a-z0-9_]+(?=/)", rooms))
  entries = set(re.findall(r"^ +([a-z_]+)(?=  | / )", rooms, re.MULTILINE))
  for folder in (PACKAGE, "kernels", "launch"):
    for path in (ROOT / folder).rglob("__init__.py"):
      room = path.parent
      assert room.name in named, f"{room.relative_to(ROOT)} has no line"
  for path in (ROOT / PACKAGE).glob("*.py"):
    if not path.name.startswith("__"):
      assert path.stem in entries, f"{path.name} has no line"
  folders = {path.name for path in ROOT.iterdir() if path.is_dir()}
  for top in (PACKAGE, "kernels", "launch", "benchmarks", "tests"):
    folders |= {path.name for path in (ROOT / top).rglob("*") if path.is_dir()}
  for name in named:
    assert name in folders, f"{name} does not exist"
