"""Valid assets are evaluated correctly; malicious ones are rejected early."""

import hashlib
import json
import os
import struct
import time
import zipfile

import numpy as np
import pytest

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.meshes import ply_obj

AssetError = asset_files.AssetError


class Glb:
  """A small GLB: a skinned and morphed triangle whose joint turns."""

  def __init__(self):
    self.binary = b""
    self.document = {
      "asset": {"version": "2.0", "copyright": "someone"},
      "scene": 0,
      "scenes": [{"nodes": [0, 1]}],
      "nodes": [{"mesh": 0, "skin": 0}, {"translation": [0, 0, 0]}],
      "bufferViews": [],
      "accessors": [],
    }
    position = self.add([[1, 0, 0], [0, 1, 0], [0, 0, 1]], "VEC3")
    joints = self.add(np.zeros((3, 4), np.uint8), "VEC4", 5121)
    weights = self.add([[1, 0, 0, 0]] * 3, "VEC4")
    target = self.add([[0, 0, 2], [0, 0, 0], [0, 0, 0]], "VEC3")
    indices = self.add(np.arange(3, dtype=np.uint16), "SCALAR", 5123)
    times = self.add([0.0, 1.0], "SCALAR")
    half = 0.5**0.5
    turns = self.add([[0, 0, 0, 1], [0, 0, half, half]], "VEC4")
    morph = self.add([0.0, 1.0], "SCALAR")
    self.document |= {
      "meshes": [
        {
          "primitives": [
            {
              "attributes": {
                "POSITION": position,
                "JOINTS_0": joints,
                "WEIGHTS_0": weights,
              },
              "indices": indices,
              "targets": [{"POSITION": target}],
            }
          ]
        }
      ],
      "skins": [{"joints": [1]}],
      "animations": [
        {
          "name": "turn",
          "samplers": [
            {"input": times, "output": turns},
            {"input": times, "output": morph},
          ],
          "channels": [
            {"sampler": 0, "target": {"node": 1, "path": "rotation"}},
            {"sampler": 1, "target": {"node": 0, "path": "weights"}},
          ],
        }
      ],
    }

  def add(self, values, kind, component=5126):
    dtype = {5126: "<f4", 5121: "<u1", 5123: "<u2"}[component]
    content = np.asarray(values, dtype).tobytes()
    document = self.document
    document["bufferViews"].append(
      {
        "buffer": 0,
        "byteOffset": len(self.binary),
        "byteLength": len(content),
      }
    )
    document["accessors"].append(
      {
        "bufferView": len(document["bufferViews"]) - 1,
        "componentType": component,
        "count": len(values),
        "type": kind,
      }
    )
    self.binary += content + b"\0" * (-len(content) % 4)
    return len(document["accessors"]) - 1

  def content(self):
    self.document.setdefault("buffers", [{"byteLength": len(self.binary)}])
    text = json.dumps(self.document).encode()
    text += b" " * (-len(text) % 4)
    total = 28 + len(text) + len(self.binary)
    return b"".join(
      [
        struct.pack("<4sII", b"glTF", 2, total),
        struct.pack("<I4s", len(text), b"JSON"),
        text,
        struct.pack("<I4s", len(self.binary), b"BIN\0"),
        self.binary,
      ]
    )

  def write(self, folder):
    path = folder / "asset.glb"
    path.write_bytes(self.content())
    return path


def _play(path, times=(0.0, 1.0)):
  asset = animated_assets.AnimatedAsset(path)
  return asset.play(asset.clips[0], times)


def test_a_pose_of_one_moment_is_not_added_to_motion(tmp_path):
  glb = Glb()
  moment = glb.add([0.0], "SCALAR")
  large = glb.add([[1800.0, 1800.0, 1800.0]], "VEC3")
  glb.document["animations"].append(
    {
      "name": "pose",
      "samplers": [{"input": moment, "output": large}],
      "channels": [{"sampler": 0, "target": {"node": 1, "path": "scale"}}],
    }
  )
  asset = animated_assets.AnimatedAsset(glb.write(tmp_path))
  assert [clip.name for clip in asset.clips] == ["turn", "pose"]
  mesh = asset.play(asset.clips[0], (0.0, 1.0))
  np.testing.assert_allclose(mesh.vertices[0], np.eye(3), atol=1e-6)


def test_skin_and_morph_by_hand(tmp_path):
  mesh = _play(Glb().write(tmp_path), (0.0, 1.0, 0.5))
  np.testing.assert_allclose(mesh.vertices[0], np.eye(3), atol=1e-6)
  # A quarter turn about z: x to y; the morph lifts the first vertex by 2.
  np.testing.assert_allclose(
    mesh.vertices[1], [[0, 1, 2], [-1, 0, 0], [0, 0, 1]], atol=1e-6
  )
  half = 0.5**0.5
  np.testing.assert_allclose(mesh.vertices[2, 0], [half, half, 1], atol=1e-6)
  np.testing.assert_allclose(mesh.rest, np.eye(3), atol=1e-6)


def test_cubic_spline_and_step(tmp_path):
  glb = Glb()
  # In-tangent, value, out-tangent of two keys: a cubic from 0 to 1 with slope
  # 0 at both ends is 3 u^2 - 2 u^3.
  output = glb.add([0.0, 0.0, 0.0, 0.0, 1.0, 0.0], "SCALAR")
  animation = glb.document["animations"][0]
  animation["samplers"][1] |= {"output": output, "interpolation": "CUBICSPLINE"}
  animation["samplers"][0]["interpolation"] = "STEP"
  mesh = _play(glb.write(tmp_path), (0.25, 0.99))
  assert mesh.vertices[0, 0, 2] == pytest.approx(2 * (3 / 16 - 2 / 64))
  np.testing.assert_allclose(mesh.vertices[1, 0, :2], [1, 0], atol=1e-6)


def test_one_attachment_a_joint(tmp_path):
  glb = Glb()
  prop = json.loads(json.dumps(glb.document["meshes"][0]))
  del prop["primitives"][0]["targets"]
  glb.document["meshes"].append(prop)
  glb.document["nodes"][1]["children"] = [2, 3]
  glb.document["nodes"] += [{"mesh": 1}, {"mesh": 1}]
  path = glb.write(tmp_path)
  for attachments, bodies in (("one", 2), ("all", 3), ("none", 1)):
    asset = animated_assets.AnimatedAsset(path, attachments=attachments)
    assert asset.play(asset.clips[0], [0.0]).num_faces == bodies


def test_parts_of_one_body_are_no_attachments(tmp_path):
  glb = Glb()
  part = json.loads(json.dumps(glb.document["meshes"][0]))
  del part["primitives"][0]["targets"]
  glb.document["meshes"].append(part)
  # Two pieces of a head and a hat on the joint; a chassis and a wheel on a
  # node that is none.
  glb.document["nodes"][1]["children"] = [2, 3, 4]
  glb.document["nodes"] += [
    {"mesh": 1, "name": name} for name in ("Head_2", "Head_3", "Hat")
  ]
  glb.document["nodes"] += [{"children": [6, 7]}]
  glb.document["nodes"] += [
    {"mesh": 1, "name": name} for name in ("chassis", "wheel")
  ]
  glb.document["scenes"][0]["nodes"].append(5)
  path = glb.write(tmp_path)
  for attachments, bodies in (("all", 6), ("none", 3)):
    asset = animated_assets.AnimatedAsset(path, attachments=attachments)
    assert asset.play(asset.clips[0], [0.0]).num_faces == bodies
  # The head or the hat, by the clip's name.
  kept = set()
  for name in "abcdefgh":
    glb.document["animations"][0]["name"] = name
    asset = animated_assets.AnimatedAsset(glb.write(tmp_path))
    kept.add(asset.play(asset.clips[0], [0.0]).num_faces)
  assert kept == {4, 5}


def _with_weights(num_bad, value, num_vertices=40):
  """A strip of two joints, of whose vertices the last ones lack weights."""
  glb = Glb()
  x = np.linspace(0.0, 1.0, num_vertices)
  points = np.stack([x, np.arange(num_vertices) % 2, 0 * x], 1)
  weights = np.zeros((num_vertices, 4))
  weights[x < 0.5, 0] = weights[x >= 0.5, 1] = 1.0
  weights[num_vertices - num_bad :] = value
  joints = np.zeros((num_vertices, 4), np.uint8)
  joints[:, 1] = 1
  primitive = {
    "attributes": {
      "POSITION": glb.add(points, "VEC3"),
      "JOINTS_0": glb.add(joints, "VEC4", 5121),
      "WEIGHTS_0": glb.add(weights, "VEC4"),
    },
    "mode": 5,
  }
  glb.document["meshes"] = [{"primitives": [primitive]}]
  glb.document["nodes"].append({"translation": [0, 0, 0]})
  glb.document["scenes"][0]["nodes"].append(2)
  glb.document["skins"] = [{"joints": [2, 1]}]
  animation = glb.document["animations"][0]
  del animation["samplers"][1], animation["channels"][1]
  return glb


@pytest.mark.parametrize("value", [np.nan, 0.0])
def test_vertices_without_weights_follow_their_neighbour(value, tmp_path):
  whole = _play(_with_weights(0, value).write(tmp_path))
  mended = _play(_with_weights(2, value).write(tmp_path))
  np.testing.assert_array_equal(mended.vertices, whole.vertices)
  assert np.abs(mended.vertices[1, -1] - mended.vertices[0, -1]).max() > 0.5


def test_many_broken_weights_are_refused(tmp_path):
  path = _with_weights(5, np.nan).write(tmp_path)
  with pytest.raises(AssetError, match="5 of 40 vertices are not finite"):
    _play(path)


def _truncated(glb):
  return glb.content()[:-40]


def _truncated_view(glb):
  glb.document["buffers"] = [{"byteLength": len(glb.binary) + 1000}]
  return glb.content()


def _accessor(**changes):
  def make(glb):
    glb.document["accessors"][0] |= changes
    return glb.content()

  return make


def _without_view(glb):
  del glb.document["accessors"][0]["bufferView"]
  glb.document["accessors"][0]["count"] = 10**9
  return glb.content()


def _nan_vertices(glb):
  glb.binary = struct.pack("<f", float("nan")) + glb.binary[4:]
  return glb.content()


def _cyclic_nodes(glb):
  glb.document["nodes"][1]["children"] = [2]
  glb.document["nodes"].append({"children": [1]})
  return glb.content()


def _uri(uri):
  def make(glb):
    glb.document["buffers"] = [{"byteLength": 4, "uri": uri}]
    return json.dumps(glb.document).encode()

  return make


def _deep_json(_):
  return b'{"asset":' + b"[" * 200_000


def _index_out_of_range(glb):
  glb.binary = glb.binary.replace(
    np.arange(3, dtype="<u2").tobytes(), b"\xff\xff\x00\x00\x01\x00"
  )
  return glb.content()


def _wrong_types(glb):
  glb.document["animations"][0]["samplers"][0]["interpolation"] = {"a": 1}
  glb.document["nodes"][1]["translation"] = "up"
  return glb.content()


def _backward_times(glb):
  glb.binary = glb.binary.replace(
    np.array([0, 1], "<f4").tobytes(), np.array([1, 0], "<f4").tobytes()
  )
  return glb.content()


_HOSTILE = {
  "truncated": (_truncated, "truncated"),
  "truncated view": (_truncated_view, "truncated"),
  "huge count": (_accessor(count=2**40), "not a size"),
  "count beyond the buffer": (_accessor(count=10**7), "bytes of a view"),
  "negative count": (_accessor(count=-1), "not a size"),
  "zeros without end": (_without_view, "limit"),
  "NaN vertices": (_nan_vertices, "not finite"),
  "cyclic nodes": (_cyclic_nodes, "two parents"),
  "parent folder": (_uri("../secret.bin"), "leads out"),
  "percent signs": (_uri("%2e%2e/secret.bin"), "leads out"),
  "absolute path": (_uri("/etc/hostname"), "not relative"),
  "scheme": (_uri("file:///etc/hostname"), "not relative"),
  "link": (_uri("link.bin"), "leads out"),
  "a pipe": (_uri("pipe.bin"), "no regular file"),
  "deep JSON": (_deep_json, "nested|cannot be read"),
  "index out of range": (_index_out_of_range, "vertex"),
  "wrong types": (_wrong_types, "numbers|malformed|interpolation"),
  "backward times": (_backward_times, "increase"),
  "nothing": (lambda glb: b"", "read"),
}


@pytest.mark.parametrize("name", _HOSTILE)
def test_hostile_gltf_is_refused(name, tmp_path):
  make, message = _HOSTILE[name]
  (tmp_path / "secret.bin").write_bytes(b"\0" * 4096)
  folder = tmp_path / "inside"
  folder.mkdir()
  (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
  os.mkfifo(folder / "pipe.bin")
  content = make(Glb())
  path = folder / ("a.glb" if content[:4] == b"glTF" else "a.gltf")
  path.write_bytes(content)
  start = time.monotonic()
  with pytest.raises(AssetError, match=message):
    _play(path)
  assert time.monotonic() - start < 5


def test_side_files_are_part_of_an_assets_identity(tmp_path):
  glb = Glb()
  glb.document["buffers"] = [
    {"byteLength": len(glb.binary), "uri": "my%20buffer.bin"}
  ]
  glb.document["images"] = [
    {"uri": "skin.png"},
    {"uri": "data:image/png;base64,AAAA"},
    {"uri": "../secret.png"},
    {"uri": "missing.png"},
  ]
  folder = tmp_path / "inside"
  folder.mkdir()
  path = folder / "a.gltf"
  path.write_text(json.dumps(glb.document))
  files = {
    folder / "my buffer.bin": glb.binary,
    folder / "skin.png": b"one picture",
    tmp_path / "secret.png": b"none of its business",
  }
  for file, content in files.items():
    file.write_bytes(content)
  first = animated_assets.content_hash(path)
  _play(path)
  for file, content in files.items():
    file.write_bytes(content + b"!")
    changed = animated_assets.content_hash(path) != first
    assert changed == (file.parent == folder), file
    file.write_bytes(content)
  assert animated_assets.content_hash(path) == first
  # Elsewhere, with the same files next to it, it is the same asset.
  other = tmp_path / "other"
  other.mkdir()
  for file in folder.iterdir():
    (other / file.name).write_bytes(file.read_bytes())
  assert animated_assets.content_hash(other / "a.gltf") == first


def test_embedded_assets_have_no_side_files(tmp_path):
  path = Glb().write(tmp_path)
  expected = hashlib.sha256(path.read_bytes()).hexdigest()
  assert animated_assets.content_hash(path) == expected
  path.write_bytes(b"no glTF at all")
  assert len(animated_assets.content_hash(path)) == 64


def test_random_damage_never_shows_another_error(tmp_path):
  rng = np.random.default_rng(0)
  content = np.frombuffer(Glb().content(), np.uint8)
  path = tmp_path / "a.glb"
  refused = 0
  for _ in range(200):
    damaged = content.copy()
    where = rng.integers(len(damaged), size=rng.integers(1, 20))
    damaged[where] = rng.integers(256, size=len(where))
    path.write_bytes(damaged[: rng.integers(1, len(damaged) + 1)].tobytes())
    try:
      _play(path)
    except AssetError:
      refused += 1
  assert refused > 150


def _sequence(folder, num_frames=3):
  corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
  faces = [[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]
  meshes = [
    mesh_lib.TriangleMesh(corners + 0.1 * frame, faces)
    for frame in range(num_frames)
  ]
  ply_obj.write_mesh_sequence(folder, meshes)
  return meshes


def test_folder_and_zip_of_meshes(tmp_path):
  meshes = _sequence(tmp_path / "walk")
  with zipfile.ZipFile(tmp_path / "walk.zip", "w") as archive:
    for path in (tmp_path / "walk").iterdir():
      archive.write(path, path.name)
  found = animated_assets.find_assets(tmp_path)
  assert [path.name for path in found] == ["walk", "walk.zip"]
  for path in found:
    mesh = _play(path, [0.0, 2 / animated_assets.SEQUENCE_RATE])
    np.testing.assert_array_equal(mesh.vertices[1], meshes[2].vertices)


def test_sequence_of_other_faces_is_refused(tmp_path):
  meshes = _sequence(tmp_path / "walk")
  changed = mesh_lib.TriangleMesh(meshes[1].vertices, meshes[1].faces[:, ::-1])
  ply_obj.write_mesh(tmp_path / "walk" / "frame_0001.ply", changed)
  with pytest.raises(AssetError, match="share their faces"):
    _play(tmp_path / "walk", [0.0, 0.04])


def test_zip_bomb_is_refused(tmp_path):
  path = tmp_path / "bomb.zip"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("frame_0.ply", b"\0" * (64 << 20))
    archive.writestr("frame_1.ply", b"\0" * (64 << 20))
  with pytest.raises(AssetError, match="unpacks"):
    animated_assets.AnimatedAsset(path)


def test_ply_that_claims_too_much_is_refused(tmp_path):
  folder = tmp_path / "walk"
  _sequence(folder)
  path = folder / "frame_0000.ply"
  path.write_bytes(path.read_bytes().replace(b"vertex 4", b"vertex 4000000000"))
  with pytest.raises(AssetError, match="claims"):
    _play(folder)


def test_links_out_of_the_folder_are_no_assets(tmp_path):
  outside = tmp_path / "outside"
  outside.mkdir()
  Glb().write(outside)
  inside = tmp_path / "inside"
  inside.mkdir()
  (inside / "link.glb").symlink_to(outside / "asset.glb")
  assert animated_assets.find_assets(inside) == []
