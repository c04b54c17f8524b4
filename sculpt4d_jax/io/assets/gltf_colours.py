"""Colours of a glTF primitive's vertices: material, picture, vertex colours.

The base colour factor, the texture at the vertex and the vertex colour are
multiplied, and emission is added; the result is the colour under white light,
in sRGB. Older materials have a diffuse colour instead of the base colour
(KHR_materials_pbrSpecularGlossiness). Pictures, texture coordinates and vertex
colours that cannot be read are left out with a warning: missing colours are no
reason to reject an asset. A malformed material is an error, like the rest of
the JSON.

Source: Khronos glTF 2.0 specification, sections 3.8 and 3.9; the extensions
KHR_materials_pbrSpecularGlossiness, KHR_materials_emissive_strength,
KHR_texture_transform, EXT_texture_webp.
"""

from collections.abc import Iterator, Sequence
import contextlib
import io
from typing import Any
import warnings

from absl import logging
import numpy as np
from PIL import Image

from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import gltf_container
from sculpt4d_jax.io.assets import gltf_mesh

AssetError = asset_files.AssetError

_FORMATS = ("PNG", "JPEG", "WEBP")
_CLAMPED, _MIRRORED = 33071, 33648  # Wrapping modes; others repeat.
_OLD_MATERIAL = "KHR_materials_pbrSpecularGlossiness"
_STRONGEST = 1e6  # Emission; 255 levels show no difference above it.
# A linear colour [3], and the JSON of the texture that it is multiplied by.
_Light = tuple[np.ndarray, dict[str, Any]]


def vertex_colours(
  asset: gltf_container.GltfFile, primitive: gltf_mesh.Primitive
) -> np.ndarray:
  """RGB in sRGB, uint8 [V, 3]; white if there are no colours.

  Raises:
    AssetError: The primitive's material is malformed.
  """
  count, description = primitive.num_vertices, primitive.description
  attributes = gltf_container.table(description, "attributes")
  base: _Light = np.ones(3), {}
  emitted: _Light = np.zeros(3), {}
  if "material" in description:
    number = description["material"]
    material = asset.item("materials", number)
    base = _base(material, f"material {number}")
    emitted = _emitted(material, f"material {number}")

  def textured(light: _Light) -> np.ndarray:
    factor, texture = light
    with _left_out_with_a_warning(asset, "a texture"):
      return factor * _texture(asset, texture, attributes, count)
    return factor

  colours = np.ones((count, 3)) * textured(base)
  with _left_out_with_a_warning(asset, "the vertices' colour"):
    if "COLOR_0" in attributes:
      values = asset.accessor(attributes["COLOR_0"], ("VEC3", "VEC4"))
      if len(values) != count:
        raise AssetError(f"there are {len(values):,} of {count:,} vertices.")
      colours = colours * np.clip(values[:, :3].astype(np.float64), 0, 1)
  if emitted[0].any():
    colours = colours + textured(emitted)
  colours = np.where(np.isfinite(colours), colours, 1.0)
  return np.round(255 * _to_srgb(colours)).astype(np.uint8)


@contextlib.contextmanager
def _left_out_with_a_warning(
  asset: gltf_container.GltfFile, what: str
) -> Iterator[None]:
  """Ends a block at an error that a malformed file causes, with a warning."""
  try:
    yield
  except (
    AssetError,
    ArithmeticError,
    LookupError,
    OSError,
    TypeError,
    ValueError,
  ) as error:
    logging.warning("%s: %s is left out: %s", asset.path.name, what, error)


def _base(material: dict[str, Any], owner: str) -> _Light:
  """Linear base colour [3] of a material, and the texture to multiply."""
  extensions = gltf_container.table(material, "extensions")
  if _OLD_MATERIAL in extensions:
    surface = gltf_container.table(extensions, _OLD_MATERIAL)
    names = "diffuseFactor", "diffuseTexture"
  else:
    surface = gltf_container.table(material, "pbrMetallicRoughness")
    names = "baseColorFactor", "baseColorTexture"
  return (
    _factor(surface, names[0], owner, (1, 1, 1, 1)),
    gltf_container.table(surface, names[1]),
  )


def _emitted(material: dict[str, Any], owner: str) -> _Light:
  """Linear light [3] that a material emits, and the texture to multiply."""
  extensions = gltf_container.table(material, "extensions")
  strong = gltf_container.table(extensions, "KHR_materials_emissive_strength")
  strength = strong.get("emissiveStrength", 1.0)
  if not _is_number(strength):
    raise AssetError(
      f"{owner}: emissiveStrength is {str(strength)[:24]!r}, not a number."
    )
  return (
    _factor(material, "emissiveFactor", owner, (0, 0, 0))
    * float(min(max(strength, 0), _STRONGEST)),
    gltf_container.table(material, "emissiveTexture"),
  )


def _factor(
  parent: dict[str, Any], name: str, owner: str, default: Sequence[float]
) -> np.ndarray:
  """Red, green and blue of a factor, each from 0 to 1, float64 [3]."""
  value = parent.get(name, default)
  if (
    not isinstance(value, list | tuple)
    or len(value) not in (3, 4)
    or not all(map(_is_number, value))
  ):
    raise AssetError(
      f"{owner}: {name} is {str(value)[:40]}, expected {len(default)} numbers"
      " from 0 to 1."
    )
  return np.array([min(max(x, 0.0), 1.0) for x in value[:3]], np.float64)


def _is_number(value: Any) -> bool:
  """Whether a JSON value is a number."""
  return isinstance(value, int | float) and not isinstance(value, bool)


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
