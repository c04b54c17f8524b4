"""Colours of a glTF primitive's vertices: material, picture, vertex colours.

The base colour factor, the texture at the vertex and the vertex colour are
multiplied, and emission is added; the result is the colour under white light,
in sRGB. Older materials have a diffuse colour instead of the base colour
(KHR_materials_pbrSpecularGlossiness). If a picture cannot be read, only the
factor is used: missing colours are no reason to reject an asset.

Source: Khronos glTF 2.0 specification, sections 3.8 and 3.9; the extensions
KHR_materials_pbrSpecularGlossiness, KHR_materials_emissive_strength,
KHR_texture_transform, EXT_texture_webp.
"""

import io
from typing import Any
import warnings

import numpy as np
from PIL import Image

from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import gltf_container
from sculpt4d_jax.io.assets import gltf_mesh

AssetError = asset_files.AssetError

_FORMATS = ("PNG", "JPEG", "WEBP")
_CLAMPED, _MIRRORED = 33071, 33648  # Wrapping modes; others repeat.
_OLD_MATERIAL = "KHR_materials_pbrSpecularGlossiness"


def vertex_colours(
  asset: gltf_container.GltfFile, primitive: gltf_mesh.Primitive
) -> np.ndarray:
  """RGB in sRGB, uint8 [V, 3]; white if there are no colours."""
  count = primitive.num_vertices
  colours, emitted = np.ones((count, 3)), np.zeros(3)
  attributes = gltf_container.table(primitive.description, "attributes")
  try:
    if "material" in primitive.description:
      material = asset.item("materials", primitive.description["material"])
      colours = colours * _base(asset, material, attributes, count)
      emitted = _emitted(asset, material, attributes, count)
    if "COLOR_0" in attributes:
      values = asset.accessor(attributes["COLOR_0"], ("VEC3", "VEC4"))
      if len(values) == count:
        colours = colours * np.clip(values[:, :3].astype(np.float64), 0, 1)
  except (AssetError, TypeError, ValueError):
    pass
  colours = colours + emitted
  colours = np.where(np.isfinite(colours), colours, 1.0)
  return np.round(255 * _to_srgb(colours)).astype(np.uint8)


def _base(
  asset: gltf_container.GltfFile,
  material: dict[str, Any],
  attributes: dict[str, Any],
  count: int,
) -> np.ndarray:
  """Linear base colours [V, 3] or [3]."""
  extensions = gltf_container.table(material, "extensions")
  if _OLD_MATERIAL in extensions:
    surface = gltf_container.table(extensions, _OLD_MATERIAL)
    names = "diffuseFactor", "diffuseTexture"
  else:
    surface = gltf_container.table(material, "pbrMetallicRoughness")
    names = "baseColorFactor", "baseColorTexture"
  factor = np.asarray(surface.get(names[0], [1, 1, 1, 1]), np.float64)[:3]
  factor = np.clip(factor, 0, 1)
  return factor * _texture(
    asset, gltf_container.table(surface, names[1]), attributes, count
  )


def _emitted(
  asset: gltf_container.GltfFile,
  material: dict[str, Any],
  attributes: dict[str, Any],
  count: int,
) -> np.ndarray:
  """Linear light that a material emits, [V, 3] or [3]."""
  factor = np.asarray(material.get("emissiveFactor", [0, 0, 0]), np.float64)
  extensions = gltf_container.table(material, "extensions")
  strong = gltf_container.table(extensions, "KHR_materials_emissive_strength")
  factor = np.clip(factor[:3], 0, 1) * strong.get("emissiveStrength", 1.0)
  if not (np.isfinite(factor).all() and factor.any()):
    return np.zeros(3)
  return factor * _texture(
    asset, gltf_container.table(material, "emissiveTexture"), attributes, count
  )


def _texture(
  asset: gltf_container.GltfFile,
  texture: dict[str, Any],
  attributes: dict[str, Any],
  count: int,
) -> np.ndarray:
  """Linear colours of a texture at the vertices, [V, 3]; else ones."""
  if "index" not in texture:
    return np.ones(3)
  extensions = gltf_container.table(texture, "extensions")
  transform = gltf_container.table(extensions, "KHR_texture_transform")
  number = gltf_container.whole(texture, "texCoord", "texture", 0)
  number = gltf_container.whole(transform, "texCoord", "texture", number)
  coordinates = asset.accessor(attributes.get(f"TEXCOORD_{number}"), "VEC2")
  if len(coordinates) != count or not np.isfinite(coordinates).all():
    return np.ones(3)
  coordinates = _transformed(coordinates.astype(np.float64), transform)
  entry = asset.item("textures", texture["index"])
  extensions = gltf_container.table(entry, "extensions")
  webp = gltf_container.table(extensions, "EXT_texture_webp")
  source = webp.get("source", entry.get("source"))
  pixels = _pixels(asset.image_bytes(source), asset.limits.image_pixels)
  if pixels is None:
    return np.ones(3)
  height, width = pixels.shape[:2]
  sampler = (
    asset.item("samplers", entry["sampler"]) if "sampler" in entry else {}
  )
  column = _texels(coordinates[:, 0], width, sampler.get("wrapS"))
  row = _texels(coordinates[:, 1], height, sampler.get("wrapT"))
  return _to_linear(pixels[row, column] / 255.0)


def _transformed(
  coordinates: np.ndarray, transform: dict[str, Any]
) -> np.ndarray:
  """Texture coordinates [V, 2] scaled, turned and moved."""
  if not transform:
    return coordinates
  scale = np.asarray(transform.get("scale", [1, 1]), np.float64)
  offset = np.asarray(transform.get("offset", [0, 0]), np.float64)
  angle = float(transform.get("rotation", 0.0))
  cosine, sine = np.cos(angle), np.sin(angle)
  turn = np.array([[cosine, sine], [-sine, cosine]])
  result = (coordinates * scale) @ turn.T + offset
  return np.where(np.isfinite(result), result, 0.0)


def _texels(coordinate: np.ndarray, size: int, wrap: int | None) -> np.ndarray:
  """Numbers of pixels along an axis."""
  if wrap == _CLAMPED:
    coordinate = np.clip(coordinate, 0, 1)
    return np.minimum((coordinate * size).astype(int), size - 1)
  if wrap == _MIRRORED:
    coordinate = coordinate % 2.0
    coordinate = np.minimum(coordinate, 2 - coordinate)
    return np.minimum((coordinate * size).astype(int), size - 1)
  return np.floor(coordinate % 1.0 * size).astype(int) % size


def _pixels(content: bytes, max_pixels: int) -> np.ndarray | None:
  """RGB uint8 [h, w, 3]; None if the picture is damaged or too large."""
  try:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore")
      with Image.open(io.BytesIO(content), formats=_FORMATS) as image:
        if image.width * image.height > max_pixels:
          return None
        return np.asarray(image.convert("RGB"))
  except Exception:  # Decoders raise many types.
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
