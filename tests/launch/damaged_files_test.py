"""Damaged meshes given to every program that reads some: one sentence each."""

import json
import pathlib
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
import trimesh

from launch import program
from sculpt4d_jax.cli import main as cli
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.io.meshes import usd

ROOT = pathlib.Path(__file__).resolve().parents[2]
GLB = [
  "empty.glb",
  "text.glb",
  "cut.glb",
  "header.glb",
  "count.glb",
  "negative.glb",
  "view.glb",
  "type.glb",
  "corner.glb",
]
PLY = ["empty.ply", "text.ply", "cut.ply", "count.ply", "corner.ply", "nan.ply"]
USD = [
  "empty.usda",
  "text.usda",
  "cut.usda",
  "text.usdc",
  "cut.usdc",
  "cut.usdz",
]


def meshes():
  box = trimesh.creation.box([0.5, 0.5, 0.5])
  return [
    mesh_lib.TriangleMesh(box.vertices + [x, 0, 0], box.faces)
    for x in (0.0, 0.1)
  ]


def damaged_json(content, damage):
  """A GLB whose JSON was changed."""
  (length,) = struct.unpack_from("<I", content, 12)
  document = json.loads(content[20 : 20 + length])
  match damage:
    case "count":
      document["accessors"][0]["count"] = 10**9
    case "negative":
      document["accessors"][0]["byteOffset"] = -12
    case "view":
      document["accessors"][0]["bufferView"] = 10**6
    case "type":
      document["accessors"][0]["componentType"] = "VEC3"
    case "corner":
      # Positions are read as corners.
      primitive = document["meshes"][0]["primitives"][0]
      primitive["indices"] = primitive["attributes"]["POSITION"]
  text = json.dumps(document).encode()
  text += b" " * (-len(text) % 4)
  rest = content[20 + length :]
  return (
    struct.pack("<4sII", b"glTF", 2, 20 + len(text) + len(rest))
    + struct.pack("<I4s", len(text), b"JSON")
    + text
    + rest
  )


def write_damaged(folder, name):
  """Writes a damaged file; the name says how, and in which format."""
  damage, _, suffix = name.partition(".")
  path = folder / name
  if suffix == "glb":
    glb.write_animated_glb(path, meshes(), 8.0)
  elif suffix == "ply":
    ply_obj.write_mesh(path, meshes()[0])
  else:
    pytest.importorskip("pxr", reason="needs the extra `usd`")
    usd.write_animated_usd(path, meshes(), 8.0)
  content = path.read_bytes()
  match damage, suffix:
    case "empty", _:
      content = b""
    case "text", _:
      content = b"this is no mesh\n" * 20
    case "cut", _:
      content = content[: len(content) // 2]
    case "header", _:
      content = content[:8] + struct.pack("<I", 2**31) + content[12:]
    case "count", "ply":
      content = re.sub(rb"(element vertex) \d+", rb"\1 999999999", content)
    case "corner", "ply":
      content = content[:-4] + struct.pack("<i", 10**6)
    case "nan", "ply":
      place = content.index(b"end_header\n") + len(b"end_header\n")
      content = (
        content[:place] + struct.pack("<f", np.nan) + content[place + 4 :]
      )
    case _:
      content = damaged_json(content, damage)
  path.write_bytes(content)
  return path


def as_sequence(path):
  """The path itself, or for a PLY the folder of a sequence with it."""
  if path.suffix != ".ply":
    return path
  folder = path.with_suffix("")
  ply_obj.write_mesh_sequence(folder, meshes())
  (folder / "frame_0001.ply").write_bytes(path.read_bytes())
  return folder


def assert_one_sentence(error, path):
  message = program.user_message(error)
  assert message, f"a traceback in place of a message: {error!r}"
  assert "\n" not in message and len(message) < 500
  assert any(name in message for name in (path.stem, "frame_0001", "frame 1 "))


@pytest.fixture(name="truth")
def truth_fixture(tmp_path):
  ply_obj.write_mesh_sequence(tmp_path / "truth", meshes())
  return tmp_path / "truth"


def refused(path, *arguments):
  """Runs the command `sculpt4d` in this process."""
  with pytest.raises(Exception) as caught:
    cli._run([*map(str, arguments), "--quiet"])
  assert_one_sentence(caught.value, path)


@pytest.mark.parametrize("name", GLB + PLY + USD)
def test_evaluate(name, truth, tmp_path):
  path = write_damaged(tmp_path, name)
  refused(path, "evaluate", as_sequence(path), truth)
  refused(path, "evaluate", truth, as_sequence(path))


@pytest.mark.parametrize("name", GLB + PLY + USD)
def test_register(name, tmp_path):
  path, output = write_damaged(tmp_path, name), tmp_path / "out"
  refused(path, "register", as_sequence(path), "-o", output)
  assert not output.exists()


@pytest.mark.parametrize("name", GLB + PLY)
def test_own_mesh_of_register(name, truth, tmp_path):
  path, output = write_damaged(tmp_path, name), tmp_path / "out"
  refused(path, "register", truth, "--mesh", path, "-o", output)
  assert not output.exists()


@pytest.mark.parametrize("name", GLB + PLY)
def test_known_frame_of_sample(name, tmp_path):
  path, output = write_damaged(tmp_path, name), tmp_path / "out"
  # Found before the clip is read.
  refused(path, "sample", "my.mp4", "--known", f"0:{path}", "-o", output)
  assert not output.exists()


# The program of `launch` in a separate process, with one file after another.
DRIVER = """
import importlib, json, sys
from absl import flags
from launch import program
module = importlib.import_module(sys.argv[1])
for arguments in json.loads(sys.argv[2]):
  flags.FLAGS.unparse_flags()
  flags.FLAGS([sys.argv[1], *arguments])
  try:
    module.main([])
    print("\\n!", "no error", flush=True)
  except Exception as error:
    message = program.user_message(error)
    print("\\n!", json.dumps(message or f"traceback: {error!r}"), flush=True)
  for name in flags.FLAGS:
    flags.FLAGS[name].unparse()
"""


@pytest.mark.parametrize("module", ["launch.evaluate", "launch.register"])
def test_programs_of_a_checkout(module, truth, tmp_path):
  names = GLB[:5] + PLY[:4]
  runs = []
  for name in names:
    path = as_sequence(write_damaged(tmp_path, name))
    if module == "launch.evaluate":
      runs.append([f"--predicted={path}", f"--truth={truth}"])
    else:
      runs.append([f"--input={path}", f"--output={tmp_path / 'out'}"])
  result = subprocess.run(
    [sys.executable, "-c", DRIVER, module, json.dumps(runs)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  said = re.findall(r"^! (.*)$", result.stdout, re.MULTILINE)
  assert len(said) == len(names), result.stderr
  for name, text in zip(names, said):
    stem = name.partition(".")[0]
    assert stem in text or "frame_0001" in text, (name, text)
    assert "traceback" not in text and "\\n" not in text, (name, text)
