"""Materials give the colours that glTF defines; malformed ones one sentence."""

import base64
import io
import json
import pathlib
import struct

import numpy as np
from PIL import Image
import pytest

from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import given_asset
from tests.io.assets import animated_assets_test


def _write(folder, material, **attributes):
  glb = animated_assets_test.Glb()
  glb.document["materials"] = [material]
  [primitive] = glb.document["meshes"][0]["primitives"]
  primitive["material"] = 0
  for name, (values, kind) in attributes.items():
    primitive["attributes"][name] = glb.add(values, kind)
  return glb.write(folder)


def _colours(path):
  asset = animated_assets.AnimatedAsset(path)
  played = asset.play(asset.clips[0], [0.0]).colours
  np.testing.assert_array_equal(given_asset.read(path).colours, played)
  return played


def _surface(**values):
  return {"pbrMetallicRoughness": values}


@pytest.mark.parametrize(
  "value",
  [0.5, [], [1], [1, 1], [1, 0, 0, 1, 1], "red", {}, None, [1, "1", 0, 1]]
  + [[True, 0, 0, 1], [[1], [0], [0], [1]]],
)
@pytest.mark.parametrize("read", [_colours, given_asset.read])
def test_a_base_colour_that_is_no_colour_is_one_sentence(tmp_path, value, read):
  path = _write(tmp_path, _surface(baseColorFactor=value))
  with pytest.raises(asset_files.AssetError) as failure:
    read(path)
  assert str(failure.value) == (
    f"material 0: baseColorFactor is {value}, expected 4 numbers from 0 to 1."
  )


@pytest.mark.parametrize(
  ("material", "message"),
  [
    ({"emissiveFactor": 1}, "material 0: emissiveFactor is 1, expected 3"),
    (
      {
        "extensions": {
          "KHR_materials_pbrSpecularGlossiness": {"diffuseFactor": [1]}
        }
      },
      r"material 0: diffuseFactor is \[1\], expected 4",
    ),
    (
      {
        "extensions": {
          "KHR_materials_emissive_strength": {"emissiveStrength": "much"}
        }
      },
      "material 0: emissiveStrength is 'much', not a number",
    ),
    ({"pbrMetallicRoughness": 3}, "'pbrMetallicRoughness' must be an object"),
    (_surface(baseColorTexture=[]), "'baseColorTexture' must be an object"),
  ],
)
def test_other_malformed_materials_are_one_sentence(
  tmp_path, material, message
):
  with pytest.raises(asset_files.AssetError, match=message):
    _colours(_write(tmp_path, material))


@pytest.mark.parametrize(
  ("value", "colour"),
  [
    ([1, 0, 0, 1], (255, 0, 0)),
    ([0, 1, 0], (0, 255, 0)),  # Without alpha, as some exporters write it.
    ([-1, 10**400, 1e308, 1], (0, 255, 255)),
    # 0.5 in linear light is 1.055 * 0.5 ** (1 / 2.4) - 0.055 = 0.7354 in sRGB.
    ([0.5, 0.5, 0.5, 1], (188, 188, 188)),
  ],
)
def test_base_colours(tmp_path, value, colour):
  path = _write(tmp_path, _surface(baseColorFactor=value))
  np.testing.assert_array_equal(_colours(path), [colour] * 3)


def test_strong_emission_is_added_up_to_white(tmp_path):
  strength = {"emissiveStrength": 10**400}
  material = _surface(baseColorFactor=[0, 0, 0, 1]) | {
    "emissiveFactor": [0.5, 0, 0],
    "extensions": {"KHR_materials_emissive_strength": strength},
  }
  path = _write(tmp_path, material)
  np.testing.assert_array_equal(_colours(path), [(255, 0, 0)] * 3)


@pytest.mark.parametrize(
  ("texture", "attributes", "message"),
  [
    # There are neither texture coordinates nor textures.
    ({"index": 0}, {}, "a texture is left out: accessors has no entry 'None'"),
    (
      {"index": 7},
      {"TEXCOORD_0": ([[0, 0]] * 3, "VEC2")},
      "a texture is left out: ",
    ),
    (
      {},
      {"COLOR_0": ([[1, 1, 1]] * 2, "VEC3")},
      "the vertices' colour is left out: there are 2 of 3 vertices.",
    ),
  ],
)
def test_what_cannot_be_read_is_left_out_with_a_warning_and_the_rest_is_kept(
  tmp_path, caplog, texture, attributes, message
):
  surface = _surface(baseColorFactor=[1, 0, 0, 1], baseColorTexture=texture)
  path = _write(tmp_path, surface, **attributes)
  np.testing.assert_array_equal(_colours(path), [(255, 0, 0)] * 3)
  assert f"asset.glb: {message}" in caplog.text


def test_a_texture_that_is_webp_is_read(tmp_path):
  """A case of a transformed texture with its PNG written as WebP."""
  case = pathlib.Path(__file__).parent / "cases/texture_transform_blue.glb"
  content = case.read_bytes()
  end = 20 + struct.unpack_from("<I", content, 12)[0]
  document = json.loads(content[20:end])
  view = document["bufferViews"][document["images"][0]["bufferView"]]
  start = end + 8 + view["byteOffset"]
  png = content[start : start + view["byteLength"]]
  file = io.BytesIO()
  Image.open(io.BytesIO(png)).convert("RGB").save(file, "WEBP", lossless=True)
  text = base64.b64encode(file.getvalue()).decode()
  document["images"] = [{"uri": f"data:image/webp;base64,{text}"}]
  document["textures"] = [{"extensions": {"EXT_texture_webp": {"source": 0}}}]
  document["extensionsUsed"] = document["extensionsRequired"] = [
    "EXT_texture_webp",
    "KHR_texture_transform",
  ]
  encoded = json.dumps(document).encode()
  encoded += b" " * (-len(encoded) % 4)
  binary = content[end:]
  header = struct.pack("<4sII", b"glTF", 2, 20 + len(encoded) + len(binary))
  chunk = struct.pack("<I4s", len(encoded), b"JSON")
  path = tmp_path / "webp.glb"
  path.write_bytes(header + chunk + encoded + binary)
  colours = _colours(path)
  np.testing.assert_array_equal(np.unique(colours, axis=0), [(0, 0, 255)])
