import json

import numpy as np
import pytest

from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.io.meshes import sequence_input
from sculpt4d_jax.io.meshes import usd
from tests.io import clips


def test_a_samples_folder_gives_its_times(tmp_path):
  meshes = clips.changing_clip(3)
  ply_obj.write_mesh_sequence(tmp_path, meshes)
  times = [1.0, 1.1, 1.4]
  (tmp_path / "run.json").write_text(
    json.dumps({"input": {"fps": 7.5, "timestamps": times}})
  )
  found = sequence_input.read(tmp_path)
  clips.assert_same_meshes(found.meshes, meshes)
  assert found.fps == 7.5
  np.testing.assert_allclose(found.times, [0, 0.1, 0.4])


def test_any_folder_of_meshes_is_read_in_natural_order(tmp_path):
  meshes = [m for m in clips.changing_clip(3) if not m.is_empty]
  for mesh, name in zip(meshes, ("a2.obj", "a10.ply")):
    ply_obj.write_mesh(tmp_path / name, mesh)
  found = sequence_input.read(tmp_path)
  assert [m.num_faces for m in found.meshes] == [
    m.num_faces for m in meshes[:2]
  ]


@pytest.mark.parametrize("suffix", [".glb", ".usdc"])
def test_files_of_ours_come_back(tmp_path, suffix):
  meshes = clips.changing_clip(4)
  path = tmp_path / f"clip{suffix}"
  if suffix == ".glb":
    glb.write_animated_glb(path, meshes, 8)
  else:
    pytest.importorskip("pxr", reason="usd-core is not installed.")
    usd.write_animated_usd(path, meshes, 8)
  found = sequence_input.read(path)
  clips.assert_same_meshes(found.meshes, meshes)
  assert found.fps == pytest.approx(8)


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("nothing", None, "no folder and no file"),
    ("clip.mp4", b"x", "expected a folder of meshes"),
    ("clip.glb", b"x", "holds no sequence"),
  ],
)
def test_what_holds_no_sequence_is_refused(tmp_path, name, content, message):
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    sequence_input.read(tmp_path / name)


def test_an_empty_folder_says_what_is_missing(tmp_path):
  with pytest.raises(ValueError, match="holds no frame_"):
    sequence_input.read(tmp_path)


def test_a_damaged_record_is_named(tmp_path):
  ply_obj.write_mesh_sequence(tmp_path, clips.changing_clip(2))
  (tmp_path / "run.json").write_text("{}")
  with pytest.raises(ValueError, match="run.json is not the record"):
    sequence_input.read(tmp_path)
