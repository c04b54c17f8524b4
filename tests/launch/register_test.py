"""The program register: its files, and bad input: one message, nothing left."""

from absl import flags
from absl.testing import flagsaver
import pytest

from launch import program
from launch import register
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.meshes import ply_obj
from tests.geometry.registration import shapes

if not flags.FLAGS.is_parsed():
  flags.FLAGS(["register_test", "--input=", "--output="])


def _write_cubes(folder, count=2):
  cube = shapes.box(cells=(4, 4, 4))
  meshes = [
    mesh_lib.TriangleMesh(
      cube.vertices @ shapes.turn(0.1 * index).T, cube.faces
    )
    for index in range(count)
  ]
  ply_obj.write_mesh_sequence(folder, meshes)
  return meshes


def _refuse(tmp_path, **settings):
  output = tmp_path / "out"
  settings = {"input": str(tmp_path / "in"), "output": str(output)} | settings
  with flagsaver.flagsaver(**settings):
    with pytest.raises(Exception) as caught:
      register.main([])
  message = program.user_message(caught.value)
  assert message, f"a traceback instead of a message: {caught.value!r}"
  assert not output.exists()
  return message


def test_a_folder_becomes_one_mesh(tmp_path, capsys):
  _write_cubes(tmp_path / "in")
  output = tmp_path / "out"
  with flagsaver.flagsaver(input=str(tmp_path / "in"), output=str(output)):
    register.main([])
  assert (output / "registered.glb").read_bytes()[:4] == b"glTF"
  assert (output / "registration.json").is_file()
  assert "2 of 2 frames registered" in capsys.readouterr().out


def test_missing_input(tmp_path):
  assert "no folder and no file" in _refuse(tmp_path)


def test_a_key_that_is_no_frame(tmp_path):
  _write_cubes(tmp_path / "in")
  assert "key=9" in _refuse(tmp_path, key="9")
  assert "--key=last" in _refuse(tmp_path, key="last")


def test_an_own_mesh_that_cannot_be_read(tmp_path):
  _write_cubes(tmp_path / "in")
  assert "no mesh file" in _refuse(tmp_path, mesh=str(tmp_path / "my.glb"))


def test_an_output_that_is_a_file(tmp_path):
  _write_cubes(tmp_path / "in")
  path = tmp_path / "file"
  path.write_text("mine")
  assert "is a file" in _refuse(tmp_path, output=str(path))
  assert path.read_text() == "mine"
