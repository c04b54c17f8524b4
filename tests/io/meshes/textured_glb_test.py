import json
import os
import struct

import numpy as np
import pytest

from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import textured_mesh
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import gltf_container
from sculpt4d_jax.io.meshes import textured_glb
from tests.io import gltf_validator
from tests.io.meshes import textured_assets

FPS = textured_assets.FPS


def _document(path):
  content = path.read_bytes()
  length = struct.unpack_from("<I", content, 12)[0]
  return json.loads(content[20 : 20 + length])


def _play(path, num_frames):
  asset = animated_assets.AnimatedAsset(path)
  times = (np.arange(num_frames) / FPS).astype(np.float32)
  return asset.play(asset.clips[0], times)


def _assert_valid(path):
  report = gltf_validator.validate(path)
  assert report["issues"]["numErrors"] == 0, report["issues"]
  assert report["issues"]["numWarnings"] == 0, report["issues"]


@pytest.mark.parametrize("kind", ["textured", "coloured", "plain"])
def test_morph_targets_give_every_frame_back(tmp_path, kind):
  part = textured_assets.asset(kind)
  textured_glb.write_morph(tmp_path / "a.glb", [part], FPS)
  read = _play(tmp_path / "a.glb", 5)
  wanted = part.mesh.vertices[:, part.vertex_map]
  np.testing.assert_allclose(read.vertices, wanted, atol=1e-6)
  np.testing.assert_array_equal(read.faces, part.file_faces)


def test_between_frames_the_mesh_moves_straight(tmp_path):
  part = textured_assets.asset("plain")
  textured_glb.write_morph(tmp_path / "a.glb", [part], FPS)
  asset = animated_assets.AnimatedAsset(tmp_path / "a.glb")
  read = asset.play(asset.clips[0], [1.25 / FPS, 4.7 / FPS])
  frames = part.mesh.vertices
  np.testing.assert_allclose(
    read.vertices[0], 0.75 * frames[1] + 0.25 * frames[2], atol=1e-6
  )
  np.testing.assert_allclose(read.vertices[1], frames[4], atol=1e-6)


def test_frames_of_unequal_length_keep_their_times(tmp_path):
  part = textured_assets.asset("plain")
  starts = [0.0, 0.1, 0.35, 0.4, 0.9]
  textured_glb.write_morph(tmp_path / "a.glb", [part], FPS, times=starts)
  asset = animated_assets.AnimatedAsset(tmp_path / "a.glb")
  read = asset.play(asset.clips[0], np.float32(starts))
  np.testing.assert_allclose(read.vertices, part.mesh.vertices, atol=1e-6)
  assert asset.clips[0].end == pytest.approx(0.9 + 0.175)


def test_a_skin_moves_as_its_bones_and_trajectory(tmp_path):
  vertices, _, rig = textured_assets.bending_bar()
  trajectory = np.tile(np.eye(4), (5, 1, 1))
  trajectory[:, 0, 3] = 0.1 * np.arange(5)
  part = textured_assets.asset("textured")
  textured_glb.write_skin(
    tmp_path / "a.glb", part, rig, FPS, trajectory=trajectory
  )
  read = _play(tmp_path / "a.glb", 5)
  wanted = vertices + trajectory[:, None, :3, 3]
  np.testing.assert_allclose(
    read.vertices, wanted[:, part.vertex_map], atol=1e-6
  )
  document = _document(tmp_path / "a.glb")
  names = [node["name"] for node in document["nodes"]]
  assert names == ["mesh", "trajectory", "bone_00", "bone_01"]
  assert document["nodes"][2]["children"] == [3]


def test_runs_of_frames_take_turns(tmp_path):
  parts = [
    textured_assets.asset("plain", 2),
    textured_assets.asset("textured", 3, first_frame=2),
  ]
  textured_glb.write_morph(tmp_path / "a.glb", parts, FPS)
  document = _document(tmp_path / "a.glb")
  assert document["nodes"][1]["scale"] == [0, 0, 0]
  read = _play(tmp_path / "a.glb", 5)
  count = parts[0].mesh.num_vertices
  shown = np.abs(read.vertices).max(-1) > 0
  assert shown[:2, :count].any() and not shown[:2, count:].any()
  assert shown[2:, count:].any() and not shown[2:, :count].any()
  np.testing.assert_allclose(
    read.vertices[3, count:],
    parts[1].mesh.vertices[1, parts[1].vertex_map],
    atol=1e-6,
  )
  _assert_valid(tmp_path / "a.glb")


def test_seam_vertices_keep_the_normals_of_the_whole_mesh(tmp_path):
  part = textured_assets.asset("textured")
  textured_glb.write_morph(tmp_path / "a.glb", [part], FPS)
  file = gltf_container.GltfFile(tmp_path / "a.glb")
  attributes = file.document["meshes"][0]["primitives"][0]["attributes"]
  normals = file.accessor(attributes["NORMAL"], "VEC3")
  whole = part.mesh.frame(0).vertex_normals()
  np.testing.assert_allclose(normals, whole[part.vertex_map], atol=1e-6)


def test_materials_say_how_colours_are_shown(tmp_path):
  textured_glb.write_morph(
    tmp_path / "a.glb", [textured_assets.asset("textured")], FPS
  )
  document = _document(tmp_path / "a.glb")
  assert document["extensionsUsed"] == ["KHR_materials_unlit"]
  assert document["images"][0]["mimeType"] == "image/png"
  textured_glb.write_morph(
    tmp_path / "b.glb", [textured_assets.asset("coloured")], FPS
  )
  document = _document(tmp_path / "b.glb")
  assert "extensionsUsed" not in document and "images" not in document
  assert "COLOR_0" in document["meshes"][0]["primitives"][0]["attributes"]


@pytest.mark.parametrize("kind", ["textured", "coloured", "plain"])
@pytest.mark.parametrize("num_frames", [1, 5])
def test_the_khronos_validator_finds_nothing(tmp_path, kind, num_frames):
  part = textured_assets.asset(kind, num_frames)
  textured_glb.write_morph(tmp_path / "a.glb", [part], FPS)
  _assert_valid(tmp_path / "a.glb")
  if num_frames > 1:
    rig = textured_assets.bending_bar(num_frames)[2]
    textured_glb.write_skin(tmp_path / "b.glb", part, rig, FPS)
    _assert_valid(tmp_path / "b.glb")


def _write(parts, name="a.glb", fps=FPS):
  return lambda folder: textured_glb.write_morph(folder / name, parts, fps)


def _broken():
  part = textured_assets.asset("plain")
  vertices = part.mesh.vertices.copy()
  vertices[1, 0] = np.nan
  mesh = deforming_mesh.DeformingMesh(vertices, part.mesh.faces)
  return textured_mesh.TexturedMesh(mesh)


@pytest.mark.parametrize(
  "write, message",
  [
    (_write([]), "at least one mesh"),
    (_write([textured_assets.asset("plain")], "a.obj"), "ending in .glb"),
    (_write([textured_assets.asset("plain")], fps=0), "fps must be"),
    (
      _write([textured_assets.asset("plain", first_frame=1)]),
      "should start at frame 0",
    ),
    (_write([_broken()]), "not finite"),
    (
      lambda folder: textured_glb.write_skin(
        folder / "a.glb",
        textured_assets.asset("plain", 4),
        textured_assets.bending_bar(5)[2],
        FPS,
      ),
      "the rig has 5 frames",
    ),
  ],
)
def test_bad_input_is_refused(tmp_path, write, message):
  with pytest.raises(ValueError, match=message):
    write(tmp_path)
  assert not os.listdir(tmp_path)
