"""The program register: its files, and bad input: one message, nothing left."""

import os
import pathlib
import subprocess
import sys

import numpy as np
from PIL import Image

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.meshes import ply_obj
from tests.geometry.registration import shapes

ROOT = pathlib.Path(__file__).resolve().parents[2]


def _run(**settings):
  return subprocess.run(
    [
      sys.executable,
      "-m",
      "launch.register",
      *(f"--{name}={value}" for name, value in settings.items()),
    ],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )


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
  result = _run(**settings)
  assert result.returncode == 2, result.stderr
  assert "Traceback" not in result.stderr
  assert not output.exists()
  return result.stderr


def test_a_folder_becomes_one_mesh(tmp_path):
  _write_cubes(tmp_path / "in")
  output = tmp_path / "out"
  result = _run(input=tmp_path / "in", output=output)
  assert result.returncode == 0, result.stderr
  assert (output / "registered.glb").read_bytes()[:4] == b"glTF"
  assert (output / "registration.json").is_file()
  assert "2 of 2 frames registered" in result.stdout


def test_missing_input(tmp_path):
  assert "no folder and no file" in _refuse(tmp_path)


def test_a_key_that_is_no_frame(tmp_path):
  _write_cubes(tmp_path / "in")
  assert "key=9" in _refuse(tmp_path, key="9")
  assert "--key=last" in _refuse(tmp_path, key="last")


def test_an_own_mesh_that_cannot_be_read(tmp_path):
  _write_cubes(tmp_path / "in")
  assert "there is no" in _refuse(tmp_path, mesh=str(tmp_path / "my.glb"))


def test_an_output_that_is_a_file(tmp_path):
  _write_cubes(tmp_path / "in")
  path = tmp_path / "file"
  path.write_text("mine")
  assert "is a file" in _refuse(tmp_path, output=str(path))
  assert path.read_text() == "mine"


def test_bones_bring_a_skin_and_a_page(tmp_path):
  _write_cubes(tmp_path / "in")
  output = tmp_path / "out"
  settings = {"input": str(tmp_path / "in"), "output": str(output)}
  result = _run(**settings, bones="1")
  assert result.returncode == 0, result.stderr
  for name in ("registered_skin.glb", "registered.bvh", "viewer.html"):
    assert (output / name).is_file()


def test_bad_bones_and_a_video_of_another_length(tmp_path):
  _write_cubes(tmp_path / "in")
  assert "--bones=many" in _refuse(tmp_path, bones="many")
  picture = np.full((40, 40, 3), 255, np.uint8)
  picture[10:30, 10:30] = [200, 60, 30]
  Image.fromarray(picture).save(tmp_path / "one.png")
  message = _refuse(tmp_path, video=str(tmp_path / "one.png"))
  assert "expected 2 frames" in message
