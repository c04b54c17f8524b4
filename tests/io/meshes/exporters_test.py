import sys

import numpy as np
import pytest

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import usd_modules
from sculpt4d_jax.io.meshes import exporters
from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.io.meshes import usd
from tests.io import clips

MESHES = clips.changing_clip(3)
TIMES = np.array([0.0, 0.25, 0.75])


def read_back(name, folder):
  """The meshes of a file, by the reader that belongs to the format."""
  file = exporters.EXPORTERS[name].file
  if "*" in file:
    return [ply_obj.read_mesh(path) for path in sorted(folder.glob(file))]
  read = glb.read_animated_glb if name == "glb" else usd.read_animated_usd
  return read(folder / file)[0]


@pytest.mark.parametrize("name", exporters.EXPORTERS)
def test_every_format_gives_back_the_meshes(name, tmp_path):
  exporter = exporters.EXPORTERS[name]
  if not exporter.is_available():
    pytest.skip(f"the extra {exporter.extra} is not installed.")
  exporter.write(tmp_path / exporter.file, MESHES, 4.0, times=TIMES)
  for mesh, read in zip(MESHES, read_back(name, tmp_path), strict=True):
    # OBJ has the digits of float32 in text.
    np.testing.assert_allclose(read.vertices, mesh.vertices, atol=1e-6)
    np.testing.assert_array_equal(read.faces, mesh.faces)


def test_files_of_two_formats_do_not_meet():
  files = [each.file for each in exporters.EXPORTERS.values()]
  assert len(set(files)) == len(files)


def test_a_list_of_formats_is_read_once_each():
  assert exporters.parse("glb, obj,glb") == ("glb", "obj")


@pytest.mark.parametrize("text", ["stl", "glb,fbx", ",", ""])
def test_an_unknown_format_is_refused_with_those_that_exist(text):
  with pytest.raises(UserError, match="expected some of ply, obj, glb"):
    exporters.parse(text)


def test_a_format_without_its_package_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "pxr", None)  # Importing it fails.
  with pytest.raises(UserError, match=r"usdz .*sculpt4d-jax\[usd\]"):
    exporters.parse("glb,usdz")


def test_the_help_names_every_format_and_its_extra():
  text = exporters.help_text()
  assert all(f"{name} (" in text for name in exporters.EXPORTERS)
  assert "extra usd" in text and "default: ply,glb,usd" in text


def test_glb_says_when_players_need_more_time(tmp_path, caplog):
  # absl has its own logger, whose level other tests set.
  caplog.set_level("INFO", logger="absl")
  glb.write_for_players(tmp_path / "a.glb", MESHES, 4.0, times=TIMES)
  assert "of the clip's speed" not in caplog.text
  glb.write_for_players(tmp_path / "b.glb", MESHES, 120.0)
  assert "b.glb plays at 0.15 of the clip's speed" in caplog.text


@pytest.mark.parametrize(
  "names, is_loaded", [(None, True), (["ply", "glb"], False), (["usdz"], True)]
)
def test_libraries_are_loaded_for_the_formats_that_need_them(
  names, is_loaded, monkeypatch
):
  pytest.importorskip("pxr")
  calls = []
  monkeypatch.setattr(usd_modules, "load", lambda: calls.append(1))
  exporters.load_libraries(names)
  assert bool(calls) == is_loaded
