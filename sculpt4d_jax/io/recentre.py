"""Hunyuan3D 2.1's preparation of one picture, reproduced byte for byte.

The object is cut out by its alpha, scaled so that its longer side fills `1 -
border_ratio` of a square, centred on white, and the square is resized. Clips
are prepared elsewhere (`matting/crop.py`), with one scale and centre for all
frames; this module is for comparisons with the released image-to-3D model.

The three resizing functions follow OpenCV's conventions (pixel centres at
half-integers, edges replicated, area = exact coverage). They differ from OpenCV
5.0 by at most one step of 255, where ties are rounded the other way.

Source: Hunyuan3D 2.1, `ImageProcessorV2`.
"""

import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError

Float = array_types.Float
NumpyArray = array_types.NumpyArray
UInt8 = array_types.UInt8


def preprocess(
  rgba: UInt8[NumpyArray, "height width channels"],
  size: int = 512,
  border_ratio: float = 0.15,
) -> tuple[Float[NumpyArray, "size size 3"], Float[NumpyArray, "size size"]]:
  """Recentres and resizes; image and mask as float32 in [-1, 1]."""
  rgb, mask = recentre_rgba(rgba, border_ratio)
  rgb = resize_bicubic(rgb, (size, size))
  mask = resize_nearest(mask, (size, size))
  return tuple(x.astype(np.float32) / 255 * 2 - 1 for x in (rgb, mask))


def recentre_rgba(
  rgba: UInt8[NumpyArray, "height width channels"],
  border_ratio: float = 0.15,
) -> tuple[UInt8[NumpyArray, "S S 3"], UInt8[NumpyArray, "S S"]]:
  """Centres the object on a white square.

  Args:
    rgba: Picture with straight alpha; without alpha, everything is object.
    border_ratio: Margin as a share of the square's side.

  Returns:
    Colours and mask; the side S is the picture's longer one.

  Raises:
    ValueError: The picture is unsuitable, the ratio is outside of [0, 1), or
      there is no object.
  """
  rgba = np.asarray(rgba)
  if rgba.dtype != np.uint8 or rgba.ndim != 3 or rgba.shape[2] not in (3, 4):
    raise UserError(
      "expected a uint8 picture [height, width, 3 or 4], got"
      f" {rgba.dtype} {rgba.shape}."
    )
  if not 0 <= border_ratio < 1:
    raise UserError(f"border_ratio={border_ratio} must lie in [0, 1).")
  if rgba.shape[2] == 3:
    opaque = np.full_like(rgba[..., :1], 255)
    rgba = np.concatenate([rgba, opaque], axis=-1)
  side = max(rgba.shape[:2])
  cut = _cut_out(rgba)
  scale = int(side * (1 - border_ratio)) / max(cut.shape[:2])
  height, width = (int(n * scale) for n in cut.shape[:2])
  if not (height and width):
    raise UserError(
      f"The object is {cut.shape[1]} x {cut.shape[0]} pixels: too thin to be"
      " resized."
    )
  top, left = (side - height) // 2, (side - width) // 2
  canvas = np.zeros((side, side, 4), np.uint8)
  canvas[top : top + height, left : left + width] = resize_area(
    cut, (height, width)
  )
  alpha = canvas[..., 3:].astype(np.float32) / 255
  rgb = canvas[..., :3] * alpha + np.float32(255) * (1 - alpha)
  # The reference truncates both, so some mask values are one step lower.
  return (
    np.clip(rgb, 0, 255).astype(np.uint8),
    (alpha[..., 0] * 255).astype(np.uint8),
  )


def resize_area(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """Each new pixel is the mean of the area that it covers; uint8 [H, W, ...].

  Enlarged in either direction, a new pixel is a mixture of two old ones in
  each, in OpenCV's fixed point of 11 bits.
  """
  if shape[0] <= image.shape[0] and shape[1] <= image.shape[1]:
    return _resample(image, shape, _coverage)
  rows, row_weights = _two_taps(shape[0], image.shape[0])
  columns, column_weights = _two_taps(shape[1], image.shape[1])
  trailing = (1,) * (image.ndim - 2)
  column_weights = column_weights.reshape(*column_weights.shape, *trailing)
  row_weights = row_weights.reshape(*row_weights.shape, 1, *trailing)
  out = (image.astype(np.int64)[:, columns] * column_weights).sum(2)
  out = ((row_weights * (out[rows] >> 4)) >> 16).sum(1)
  return np.clip((out + 2) >> 2, 0, 255).astype(np.uint8)


def resize_bicubic(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """Cubic convolution with a = -0.75, not antialiased; uint8 [H, W, ...]."""
  return _resample(image, shape, _cubic)


def resize_nearest(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
  """The old pixel under each new pixel's upper left corner; [H, W, ...]."""
  rows, columns = (
    np.minimum(np.arange(new) * (1 / (new / old)), old - 1).astype(int)
    for new, old in zip(shape, image.shape)
  )
  return image[rows[:, None], columns]


def _cut_out(rgba: np.ndarray) -> np.ndarray:
  """The box of alpha > 0 without last row and column, as in the reference."""
  rows, columns = np.nonzero(rgba[..., 3])
  if not len(rows):
    raise UserError("The picture is empty: its alpha is 0 everywhere.")
  if rows.min() == rows.max() or columns.min() == columns.max():
    raise UserError("The object in the picture is one pixel thin.")
  return rgba[rows.min() : rows.max(), columns.min() : columns.max()]


def _resample(image, shape, weights) -> np.ndarray:
  rows = weights(shape[0], image.shape[0])  # [new, old]
  columns = weights(shape[1], image.shape[1])
  out = np.tensordot(rows, image.astype(np.float64), 1)
  out = np.moveaxis(np.tensordot(columns, out, (1, 1)), 0, 1)
  return np.clip(np.rint(out), 0, 255).astype(np.uint8)


def _coverage(new: int, old: int) -> np.ndarray:
  """The fraction of each new pixel covered by each old one, [new, old]."""
  scale = old / new
  begin = np.arange(new)[:, None] * scale
  pixel = np.arange(old)
  covered = np.minimum(begin + scale, pixel + 1) - np.maximum(begin, pixel)
  covered = np.maximum(covered, 0)
  return covered / covered.sum(1, keepdims=True)


def _two_taps(new: int, old: int) -> tuple[np.ndarray, np.ndarray]:
  """Old pixels and their weights times 2048, each [new, 2]."""
  pixel = np.arange(new)
  first = np.floor(pixel * (old / new)).astype(int)
  second_share = ((pixel + 1) - (first + 1) * (new / old)).astype(np.float32)
  second_share = np.where(second_share > 0, second_share % 1, 0)
  second = np.minimum(first + 1, old - 1)
  weights = np.stack([1 - second_share, second_share], axis=-1)
  return (
    np.stack([first, second], axis=-1),
    np.rint(weights * 2048).astype(np.int64),
  )


def _cubic(new: int, old: int) -> np.ndarray:
  """Weights [new, old] of cubic convolution."""
  a = -0.75
  place = (np.arange(new) + 0.5) * (old / new) - 0.5
  first = np.floor(place).astype(int)
  weights = np.zeros((new, old))
  for tap in range(-1, 3):
    x = np.abs(place - first - tap)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
    pixel = np.clip(first + tap, 0, old - 1)
    np.add.at(weights, (np.arange(new), pixel), np.where(x <= 1, near, far))
  return weights
