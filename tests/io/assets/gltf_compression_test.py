"""Compressed buffers play as the plain ones do."""

import json

import numpy as np
import pytest

from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import asset_files
from tests.io.assets import animated_assets_test as assets


def _play(path):
  asset = animated_assets.AnimatedAsset(path)
  return asset.play(asset.clips[0], [0.0, 0.5, 1.0])


def _add_view(glb, content, **fields):
  views = glb.document["bufferViews"]
  views.append(
    {"buffer": 0, "byteOffset": len(glb.binary), "byteLength": len(content)}
    | fields
  )
  glb.binary += content + b"\0" * (-len(content) % 4)
  return len(views) - 1


def test_draco(tmp_path):
  draco = pytest.importorskip("DracoPy", reason="needs the extra `compressed`")
  plain = _play(assets.Glb().write(tmp_path))
  glb = assets.Glb()
  primitive = glb.document["meshes"][0]["primitives"][0]
  content = draco.encode(
    np.eye(3, dtype=np.float32),
    np.array([[0, 1, 2]], np.uint32),
    quantization_bits=24,
    preserve_order=True,
  )
  view = _add_view(glb, content)
  for index in (primitive["attributes"]["POSITION"], primitive["indices"]):
    del glb.document["accessors"][index]["bufferView"]
  primitive["extensions"] = {
    "KHR_draco_mesh_compression": {
      "bufferView": view,
      "attributes": {"POSITION": 0},
    }
  }
  glb.document["extensionsRequired"] = ["KHR_draco_mesh_compression"]
  path = glb.write(tmp_path)
  mesh = _play(path)
  np.testing.assert_array_equal(mesh.faces, plain.faces)
  np.testing.assert_allclose(mesh.vertices, plain.vertices, atol=1e-6)
  # Damage is one sentence.
  glb.binary = glb.binary.replace(b"DRACO", b"DRAGO")
  with pytest.raises(asset_files.AssetError, match="Draco data cannot be"):
    _play(glb.write(tmp_path))


@pytest.mark.parametrize("damaged", [False, True])
def test_meshopt(tmp_path, damaged):
  meshopt = pytest.importorskip(
    "meshoptimizer", reason="needs the extra `compressed`"
  )
  plain = _play(assets.Glb().write(tmp_path))
  glb = assets.Glb()
  primitive = glb.document["meshes"][0]["primitives"][0]
  index = primitive["attributes"]["POSITION"]
  content = meshopt.encode_vertex_buffer(np.eye(3, dtype=np.float32), 3, 12)
  if damaged:
    content = b"\0" + content[1:]
  place = len(glb.binary)
  glb.binary += content + b"\0" * (-len(content) % 4)
  view = _add_view(glb, b"")
  glb.document["bufferViews"][view] = {
    "buffer": 0,
    "byteLength": 36,
    "extensions": {
      "EXT_meshopt_compression": {
        "buffer": 0,
        "byteOffset": place,
        "byteLength": len(content),
        "byteStride": 12,
        "count": 3,
        "mode": "ATTRIBUTES",
      }
    },
  }
  glb.document["accessors"][index]["bufferView"] = view
  glb.document["extensionsRequired"] = ["EXT_meshopt_compression"]
  path = glb.write(tmp_path)
  if damaged:
    with pytest.raises(asset_files.AssetError, match="meshopt data cannot be"):
      _play(path)
  else:
    np.testing.assert_allclose(_play(path).vertices, plain.vertices, atol=1e-6)


def test_pointers_play_as_channels_do(tmp_path):
  """KHR_animation_pointer names what a channel names."""
  plain = _play(assets.Glb().write(tmp_path))
  glb = assets.Glb()
  channels = glb.document["animations"][0]["channels"]
  for channel in channels:
    target = channel["target"]
    pointer = f"/nodes/{target['node']}/{target['path']}"
    channel["target"] = {
      "path": "pointer",
      "extensions": {"KHR_animation_pointer": {"pointer": pointer}},
    }
  np.testing.assert_array_equal(
    _play(glb.write(tmp_path)).vertices, plain.vertices
  )
  extension = channels[0]["target"]["extensions"]["KHR_animation_pointer"]
  # Colours move nothing; what would move something unknown is refused.
  channels.append(json.loads(json.dumps(channels[0])))
  other = channels[2]["target"]["extensions"]["KHR_animation_pointer"]
  other["pointer"] = "/materials/0/emissiveFactor"
  np.testing.assert_array_equal(
    _play(glb.write(tmp_path)).vertices, plain.vertices
  )
  extension["pointer"] = "/skins/0/joints"
  with pytest.raises(asset_files.AssetError, match="not supported"):
    _play(glb.write(tmp_path))


def test_attachments_that_are_left_out_are_named(tmp_path):
  glb = assets.Glb()
  prop = json.loads(json.dumps(glb.document["meshes"][0]))
  del prop["primitives"][0]["targets"]
  glb.document["meshes"].append(prop)
  glb.document["nodes"][1]["children"] = [2, 3]
  glb.document["nodes"] += [
    {"mesh": 1, "name": "sword"},
    {"mesh": 1, "name": "bow"},
  ]
  asset = animated_assets.AnimatedAsset(glb.write(tmp_path))
  asset.play(asset.clips[0], [0.0])
  assert asset.num_meshes == 3
  (left_out,) = asset.left_out
  assert left_out.name in ("sword", "bow")
  assert left_out.share == pytest.approx(1 / 3)
  assert "hangs on the joint 'nodes[1]'" in str(left_out)
  asset = animated_assets.AnimatedAsset(asset.path, attachments="none")
  asset.play(asset.clips[0], [0.0])
  assert {part.name for part in asset.left_out} == {"sword", "bow"}
