"""Colours of a glTF primitive's vertices: material, picture, vertex colours.

The base colour's factor, its texture at the vertex and the vertex colour are
multiplied, as the specification says; the result is what the texture would show
there, in sRGB. A picture that cannot be read leaves its factor alone: colours
are worth no rejection.
"""

import io
import warnings

import numpy as np
from PIL import Image

from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import gltf_container
from sculpt4d_jax.io.assets import gltf_mesh

AssetError = asset_files.AssetError

_FORMATS = ("PNG", "JPEG", "WEBP")


def vertex_colours(
  asset: gltf_container.GltfFile, primitive: gltf_mesh.Primitive
) -> np.ndarray:
  """RGB in sRGB, uint8 [V, 3]; white where nothing is said."""
  colours = np.ones((primitive.num_vertices, 3))
  attributes = gltf_container.table(primitive.description, "attributes")
  try:
    if "material" in primitive.description:
      material = asset.item("materials", primitive.description["material"])
      colours = colours * _material(asset, material, attributes, len(colours))
    if "COLOR_0" in attributes:
      values = asset.accessor(attributes["COLOR_0"], ("VEC3", "VEC4"))
      if len(values) == len(colours):
        colours = colours * np.clip(values[:, :3].astype(np.float64), 0, 1)
  except AssetError:
    pass
  colours = np.where(np.isfinite(colours), colours, 1.0)
  return np.round(255 * _to_srgb(colours)).astype(np.uint8)


def _material(asset, material, attributes, count) -> np.ndarray:
  """Linear base colours [V, 3] or [3]."""
  surface = gltf_container.table(material, "pbrMetallicRoughness")
  factor = np.clip(
    np.asarray(surface.get("baseColorFactor", [1, 1, 1, 1]), np.float64)[:3],
    0,
    1,
  )
  texture = gltf_container.table(surface, "baseColorTexture")
  if "index" not in texture:
    return factor
  channel = (
    f"TEXCOORD_{gltf_container.whole(texture, 'texCoord', 'texture', 0)}"
  )
  coordinates = asset.accessor(attributes.get(channel), "VEC2")
  if len(coordinates) != count or not np.isfinite(coordinates).all():
    return factor
  source = asset.item("textures", texture["index"]).get("source")
  pixels = _pixels(asset.image_bytes(source), asset.limits.image_pixels)
  if pixels is None:
    return factor
  height, width = pixels.shape[:2]
  column = np.floor(coordinates[:, 0] % 1.0 * width).astype(int) % width
  row = np.floor(coordinates[:, 1] % 1.0 * height).astype(int) % height
  return factor * _to_linear(pixels[row, column] / 255.0)


def _pixels(content: bytes, max_pixels: int) -> np.ndarray | None:
  """RGB uint8 [h, w, 3]; None if the picture is damaged or too large."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        if image.width * image.height > max_pixels:
          return None
        return np.asarray(image.convert("RGB"))
  except Exception:  # Decoders raise anything.
    return None


def _to_linear(srgb: np.ndarray) -> np.ndarray:
  return np.where(
    srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4
  )


def _to_srgb(linear: np.ndarray) -> np.ndarray:
  linear = np.clip(linear, 0, 1)
  return np.where(
    linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055
  )
