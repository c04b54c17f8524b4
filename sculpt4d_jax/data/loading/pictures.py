"""Pictures of examples: cut around the object, on white; depth and normals."""

from collections.abc import Mapping
import io

import numpy as np
from PIL import Image

from sculpt4d_jax.data.preparation import views as record_views
from sculpt4d_jax.data.records import schema


def square(alpha: np.ndarray, border: float) -> tuple[float, ...]:
  """One square around the object in all frames: left, top, right, bottom."""
  rows = np.flatnonzero(alpha.any(axis=(0, 2)))
  columns = np.flatnonzero(alpha.any(axis=(0, 1)))
  if not len(rows):
    return (0.0, 0.0, float(alpha.shape[2]), float(alpha.shape[1]))
  top, bottom = rows[0], rows[-1] + 1
  left, right = columns[0], columns[-1] + 1
  half = max(bottom - top, right - left) / 2 / (1 - border)
  x, y = (left + right) / 2, (top + bottom) / 2
  return (x - half, y - half, x + half, y + half)


def crop(
  pixels: np.ndarray,
  box: tuple[float, ...],
  size: int,
  resample: Image.Resampling = Image.Resampling.BOX,
) -> np.ndarray:
  """A square of a picture at another size; empty beyond the picture."""
  outside = int(
    np.ceil(
      max(
        0.0,
        -box[0],
        -box[1],
        box[2] - pixels.shape[1],
        box[3] - pixels.shape[0],
      )
    )
  )
  margin = ((outside, outside), (outside, outside)) + ((0, 0),) * (
    pixels.ndim - 2
  )
  shifted = tuple(x + outside for x in box)
  image = Image.fromarray(np.pad(pixels, margin))
  if image.mode == "RGBA":
    # Premultiplied: colours are averaged by their opacity.
    image = image.convert("RGBa")
  image = image.resize((size, size), resample, box=shifted)
  return np.asarray(image.convert("RGBA") if image.mode == "RGBa" else image)


def on_white(rgba: np.ndarray, gains: np.ndarray) -> np.ndarray:
  """Jittered colours on white, uint8 [F, S, S, 3]."""
  alpha = rgba[..., 3:].astype(np.float32) / 255
  rgb = rgba[..., :3].astype(np.float32) / 255
  brightness, contrast, saturation = gains.astype(np.float32)
  grey = rgb.mean(-1, keepdims=True)
  rgb = grey + (rgb - grey) * saturation
  rgb = np.clip(((rgb - 0.5) * contrast + 0.5) * brightness, 0, 1)
  return np.round(255 * (rgb * alpha + 1 - alpha)).astype(np.uint8)


def buffers(
  entry: Mapping[str, np.ndarray],
  frames: np.ndarray,
  box: tuple[float, ...],
  size: int,
) -> dict[str, np.ndarray]:
  """Depths and normals of the frames, cut to the box and resized."""
  near, far = entry["depth_range"].tolist()
  depths, normals = [], []
  for frame in frames.tolist():
    content = schema.unpack(entry["depth"], entry["depth_ends"], frame)
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
      steps = np.asarray(image).astype(np.int32)
    # Nearest: averages of different surfaces' depths and normals mean nothing.
    steps = crop(steps, box, size, Image.Resampling.NEAREST)
    depths.append(record_views.depth_of_steps(steps, near, far))
    content = schema.unpack(entry["normal"], entry["normal_ends"], frame)
    with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
      pixels = np.asarray(image.convert("RGB"))
    pixels = crop(pixels, box, size, Image.Resampling.NEAREST)
    normal = pixels.astype(np.float32) / 127.5 - 1
    normals.append(np.where(steps[..., None] > 0, normal, 0))
  return {"depth": np.stack(depths), "normal": np.stack(normals)}
