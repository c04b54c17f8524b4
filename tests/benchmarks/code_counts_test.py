"""Counts of a file and of a checkout, worked by hand."""

import pathlib
import subprocess

import pytest

from benchmarks import code_counts
from sculpt4d_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCE = '''"""A docstring
of two lines."""

# A reason.
def area(width: int, height, *rest) -> int:  # noqa: D103
  """One line."""
  text = """not a
  docstring"""
  return width * height  # Another reason.


class Box:
  def __init__(self, side: float):
    self.side = side

  def test_nothing(self): ...
'''


def test_counts_of_a_file():
  found = code_counts.count(SOURCE)
  # def, text (two lines), return, class, def, self.side, def.
  assert (found.lines, found.code, found.comments) == (16, 8, 2)
  assert (found.arguments, found.annotated, found.tests) == (4, 2, 1)
  assert found.density == 25.0


def test_checkouts_stand_side_by_side(tmp_path):
  files = {
    "sculpt4d_jax/io/one.py": SOURCE,
    "sculpt4d_jax/io/two.py": "X = 1\n",
    "sculpt4d_jax/io/__init__.py": "",
    "configs/base.py": "X = 1\n",
    "tests/io/one_test.py": "def test_a(): ...\ndef test_b(): ...\n",
    "benchmarks/three.py": "X = 1\n",
    "unknown.py": "X = 1\n",
  }
  for name, text in files.items():
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text)
  git = lambda *args: subprocess.run(["git", *args], cwd=tmp_path, check=True)
  git("init", "-q")
  git("add", *(name for name in files if name != "unknown.py"))
  text = code_counts.table({"here": code_counts.count_tree(tmp_path)})
  for row in (
    "| files, lines: product | 4, 18 |",
    "| comments per 100 code lines | 20.0 |",
    "| annotated arguments | 2 of 4 (50.0 %) |",
    "| modules with a test of their name | 1 of 2 |",
    "| test functions per module | 1.0 |",
  ):
    assert row in text


def test_a_folder_that_is_no_checkout_is_refused(tmp_path):
  with pytest.raises(UserError, match="no checkout"):
    code_counts.count_tree(tmp_path)


def test_the_hardest_files_exist():
  assert all((ROOT / path).is_file() for path in code_counts.HARDEST)
