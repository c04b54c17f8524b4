import json
import os
import struct

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.io.meshes import ply_obj
from tests.io import clips
from tests.io import gltf_validator

TriangleMesh = mesh_lib.TriangleMesh


def _document(path):
  content = path.read_bytes()
  length = struct.unpack_from("<I", content, 12)[0]
  return json.loads(content[20 : 20 + length]), content[28 + length :]


def _floats(document, binary, accessor):
  accessor = document["accessors"][accessor]
  view = document["bufferViews"][accessor["bufferView"]]
  start = view["byteOffset"]
  return np.frombuffer(
    binary[start : start + view["byteLength"]], "<f4"
  ).tolist()


def test_two_frames_by_hand(tmp_path):
  path = tmp_path / "clip.glb"
  square = TriangleMesh(
    [[0, 0, 0], [2, 0, 0], [2, 2, 0], [0, 2, 0]], [[0, 1, 2], [0, 2, 3]]
  )
  glb.write_animated_glb(path, [clips.TRIANGLE, square], 2)
  document, binary = _document(path)
  assert path.read_bytes()[:4] == b"glTF"
  assert struct.unpack_from("<I", path.read_bytes(), 8)[0] == (
    path.stat().st_size
  )
  assert document["nodes"] == [
    {"name": "frame_0000", "scale": [1, 1, 1], "mesh": 0},
    {"name": "frame_0001", "scale": [0, 0, 0], "mesh": 1},
    {"name": "bounds", "mesh": 2},
  ]
  positions = [
    m["primitives"][0]["attributes"]["POSITION"] for m in document["meshes"]
  ]
  assert _floats(document, binary, positions[0]) == [
    0,
    0,
    0,
    1,
    0,
    0,
    0,
    1,
    0,
  ]
  assert document["accessors"][positions[1]]["max"] == [2, 2, 0]
  normals = document["meshes"][0]["primitives"][0]["attributes"]["NORMAL"]
  assert _floats(document, binary, normals) == [0, 0, 1] * 3
  samplers = document["animations"][0]["samplers"]
  assert [s["interpolation"] for s in samplers] == ["STEP", "STEP"]
  keys = [
    (
      _floats(document, binary, s["input"]),
      _floats(document, binary, s["output"])[::3],
    )
    for s in samplers
  ]
  # Frame 0 is seen from 0 to 0.5 s, frame 1 from 0.5 s to the end at 1 s.
  assert keys == [([0, 0.5], [1, 0]), ([0, 0.5, 1], [0, 1, 1])]


def test_a_file_at_rest_has_the_bounds_of_all_frames(tmp_path):
  small, large = clips.bumpy_sphere(0, 2), clips.bumpy_sphere(1, 2)
  small = TriangleMesh(small.vertices * 0.2, small.faces)
  large = TriangleMesh(large.vertices + [3, 0, 0], large.faces)
  path = tmp_path / "clip.glb"
  glb.write_animated_glb(path, [small, ply_obj.empty_mesh(), large], 8)
  scene = trimesh.load(path)
  at_rest = [
    scene.geometry[scene.graph[node][1]].vertices
    for node in scene.graph.nodes_geometry
    if np.linalg.det(scene.graph[node][0][:3, :3])
  ]
  points = np.concatenate(at_rest)
  both = np.concatenate([small.vertices, large.vertices])
  np.testing.assert_allclose(points.min(axis=0), both.min(axis=0), atol=1e-6)
  np.testing.assert_allclose(points.max(axis=0), both.max(axis=0), atol=1e-6)


@pytest.mark.parametrize("fps", [1, 12, 23.976, 30])
@pytest.mark.parametrize("num_frames", [1, 2, 7])
def test_exactly_one_frame_is_seen_at_any_time(tmp_path, num_frames, fps):
  path = tmp_path / "clip.glb"
  glb.write_animated_glb(path, [clips.TRIANGLE] * num_frames, fps)
  document, binary = _document(path)
  for time in (np.arange(4 * num_frames) + 0.5) / (4 * fps):
    scales = []
    for sampler in document["animations"][0]["samplers"]:
      times = _floats(document, binary, sampler["input"])
      values = _floats(document, binary, sampler["output"])[::3]
      scales.append(values[np.searchsorted(times, time, side="right") - 1])
    assert scales == [float(i == int(time * fps)) for i in range(num_frames)]
  ends = [
    _floats(document, binary, sampler["input"])[-1]
    for sampler in document["animations"][0]["samplers"]
  ]
  assert max(ends) == pytest.approx(num_frames / fps)


@pytest.mark.parametrize("fps", [8, 23.976])
def test_sequences_come_back_bit_for_bit(tmp_path, fps):
  meshes = clips.changing_clip(5)
  glb.write_animated_glb(tmp_path / "clip.glb", meshes, fps)
  read, read_fps = glb.read_animated_glb(tmp_path / "clip.glb")
  clips.assert_same_meshes(read, meshes)
  assert read_fps == fps


def test_more_vertices_than_short_indices_count(tmp_path):
  count = 65537
  vertices = np.random.default_rng(0).normal(size=(count, 3))
  faces = [[0, 1, count - 1], [65535, 65536, 2]]
  meshes = [TriangleMesh(vertices, faces)]
  glb.write_animated_glb(tmp_path / "clip.glb", meshes, 8)
  clips.assert_same_meshes(
    glb.read_animated_glb(tmp_path / "clip.glb")[0], meshes
  )
  report = gltf_validator.validate(tmp_path / "clip.glb")
  assert report["issues"]["numErrors"] == 0


@pytest.mark.parametrize(
  "meshes",
  [
    clips.changing_clip(5),
    [clips.TRIANGLE],
    [ply_obj.empty_mesh()] * 2,
    # The last vertex belongs to no face: it has no normal.
    [TriangleMesh(np.eye(4)[:, :3], [[0, 1, 2]])],
  ],
  ids=["changing", "one_frame", "all_empty", "loose_vertex"],
)
def test_the_khronos_validator_finds_nothing(tmp_path, meshes):
  glb.write_animated_glb(tmp_path / "clip.glb", meshes, 12)
  report = gltf_validator.validate(tmp_path / "clip.glb")
  assert report["issues"]["numErrors"] == 0, report["issues"]
  assert report["issues"]["numWarnings"] == 0, report["issues"]
  assert report["info"]["animationCount"] == 1


def test_the_khronos_validator_is_awake(tmp_path):
  path = tmp_path / "clip.glb"
  glb.write_animated_glb(path, [clips.TRIANGLE], 12)
  path.write_bytes(path.read_bytes().replace(b'"max":[1.0', b'"max":[9.0'))
  assert gltf_validator.validate(path)["issues"]["numErrors"] > 0


@pytest.mark.parametrize(
  "name, meshes, fps, message",
  [
    ("clip.gltf", [clips.TRIANGLE], 8, "ending in .glb, got '.gltf'"),
    ("clip.glb", [], 8, "at least one frame"),
    ("clip.glb", [clips.TRIANGLE], 0, "fps must be a positive number"),
    ("clip.glb", [clips.TRIANGLE], np.nan, "fps must be a positive"),
    (
      "clip.glb",
      [TriangleMesh(np.full((3, 3), np.inf), [[0, 1, 2]])],
      8,
      "frame 0: 3 of 3 vertices are not finite",
    ),
  ],
)
def test_bad_input_is_refused(tmp_path, name, meshes, fps, message):
  with pytest.raises(ValueError, match=message):
    glb.write_animated_glb(tmp_path / name, meshes, fps)
  assert not os.listdir(tmp_path)


def test_damaged_and_foreign_files_are_refused(tmp_path):
  path = tmp_path / "clip.glb"
  with pytest.raises(ValueError, match="there is no GLB file"):
    glb.read_animated_glb(path)
  path.write_bytes(b"PK\3\4 something else entirely")
  with pytest.raises(ValueError, match="does not start with glTF"):
    glb.read_animated_glb(path)
  glb.write_animated_glb(path, [clips.TRIANGLE], 8)
  path.write_bytes(path.read_bytes()[:-8])
  with pytest.raises(ValueError, match="is damaged"):
    glb.read_animated_glb(path)
  text = b'{"asset":{"version":"2.0"} }'
  path.write_bytes(
    struct.pack("<4sII", b"glTF", 2, 20 + len(text))
    + struct.pack("<I4s", len(text), b"JSON")
    + text
  )
  with pytest.raises(ValueError, match="not a mesh sequence"):
    glb.read_animated_glb(path)
