import os
import pathlib

from sculpt4d_jax import shipped

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_shipped_files_are_found_from_anywhere(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert shipped.find("weights/tiny") == ROOT / "weights" / "tiny"
  assert shipped.demo_clip().is_file()
  assert "tiny" in shipped.weight_names()


def test_a_file_of_the_user_wins(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  os.makedirs("weights/tiny")
  assert shipped.find("weights/tiny") == pathlib.Path("weights/tiny")


def test_what_is_nowhere_keeps_its_name(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert shipped.find("weights/none") == pathlib.Path("weights/none")
