"""Files on which the library of USD crashes are errors of one sentence.

Other versions of the library may read the two cases, or raise errors.
"""

import pathlib
import shutil

import pytest

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import sequences
from sculpt4d_jax.io.assets import usd_trial
from sculpt4d_jax.io.meshes import sequence_input

pytest.importorskip("pxr", reason="needs the extra `usd`")
CASES = pathlib.Path(__file__).parent / "cases"


@pytest.mark.parametrize("name", ["aborts_usd.usdc", "crashes_usd.usdc"])
@pytest.mark.parametrize("read", [sequence_input.read, sequences.read])
def test_a_file_on_which_usd_crashes(name, read):
  with pytest.raises(UserError) as failure:
    read(CASES / name)
  assert str(CASES / name) in str(failure.value)
  assert "\n" not in str(failure.value)


def test_whole_files_and_files_with_other_errors_pass(tmp_path):
  usd_trial.check(CASES / "appears_at_12.usda")
  usd_trial.check(CASES / "damaged_names.usdc")
  usd_trial.check(tmp_path / "missing.usda")


@pytest.mark.parametrize("name", ["SIGABRT", "SIGSEGV"])
def test_the_signal_is_named(tmp_path, monkeypatch, name):
  shutil.copy(CASES / "appears_at_12.usda", tmp_path / "a.usda")
  crash = f"import os, signal; os.kill(os.getpid(), signal.{name})"
  monkeypatch.setattr(usd_trial, "_CODE", crash)
  with pytest.raises(UserError, match=rf"a.usda: .*crashes on it \({name}\)"):
    sequence_input.read(tmp_path / "a.usda")


def test_a_file_on_which_usd_hangs(tmp_path, monkeypatch):
  shutil.copy(CASES / "appears_at_12.usda", tmp_path / "a.usda")
  monkeypatch.setattr(usd_trial, "_CODE", "import time; time.sleep(100)")
  monkeypatch.setattr(usd_trial, "_SECONDS", 0.5)
  with pytest.raises(UserError, match=r"a.usda: .*not done with it after"):
    sequence_input.read(tmp_path / "a.usda")
