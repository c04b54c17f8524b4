"""Crops all frames of a clip alike.

The model must see the object's motion in the picture, so frames are not centred
separately. One square around the object's box over all frames is cut out of
every frame, and the object is put on a plain background.
"""

import dataclasses

import numpy as np
from PIL import Image

from sculpt4d_jax.errors import UserError

# Alpha above this counts for the object's box. Faint residue in compressed
# alpha layers and soft mattes would widen it.
_BOX_ALPHA = 25
WHITE = (255, 255, 255)


@dataclasses.dataclass(frozen=True)
class CropBox:
  """A square in pixels of the source frames; may reach beyond them."""

  left: float
  top: float
  side: float


@dataclasses.dataclass(frozen=True)
class ClipImages:
  """The frames as input of the image encoder.

  Attributes:
    images: uint8 [F, size, size, 3], the object on the plain background.
    masks: uint8 [F, size, size], 255 on the object.
    box: Box that was cut out of every source frame.
  """

  images: np.ndarray
  masks: np.ndarray
  box: CropBox


def crop_clip(
  frames: np.ndarray,
  size: int,
  border_ratio: float = 0.15,
  background: tuple[int, int, int] = WHITE,
) -> ClipImages:
  """Cuts the same square out of all frames and scales it to `size`.

  Args:
    frames: uint8 [F, height, width, 4], straight alpha.
    size: Side of the pictures returned.
    border_ratio: Total margin around the longer side of the object's box, as a
      fraction of the picture's side.
    background: Colour put behind the object.

  Returns:
    Pictures, masks and the square.

  Raises:
    ValueError: No frame shows an object, or the arguments are invalid.

  Source: Hunyuan3D 2.1, `ImageProcessorV2` (border ratio 0.15, white), which
  centres a single picture; here the box is that of the whole clip.
  """
  if frames.ndim != 4 or frames.shape[-1] != 4 or frames.dtype != np.uint8:
    raise UserError(
      "frames must be uint8 [F, height, width, 4], got"
      f" {frames.dtype} {list(frames.shape)}."
    )
  if not 0 <= border_ratio < 1:
    raise UserError(f"border_ratio must be in [0, 1), got {border_ratio}.")
  if size < 1:
    raise UserError(f"size must be positive, got {size}.")
  box = object_square(frames[..., 3], border_ratio)
  window = _Window(box, frames.shape[1:3])
  images = np.empty((len(frames), size, size, 3), np.uint8)
  masks = np.empty((len(frames), size, size), np.uint8)
  for index, frame in enumerate(frames):
    # Compositing before resampling is equivalent to resampling premultiplied
    # colours: pixels of alpha 0 leave no halo.
    opaque = composite(frame, background)
    images[index] = window.resample(opaque, size, background)
    masks[index] = window.resample(frame[..., 3], size, 0)
  return ClipImages(images=images, masks=masks, box=box)


def object_square(alpha: np.ndarray, border_ratio: float) -> CropBox:
  """The square around the object's box over all frames of [F, height, width].

  Raises:
    ValueError: The object is in no frame.
  """
  shown = (alpha > _BOX_ALPHA).any(axis=0)
  if not shown.any():
    raise UserError(
      "No frame shows an object: alpha is (nearly) 0 everywhere; check the"
      " background removal."
    )
  rows = np.flatnonzero(shown.any(axis=1))
  columns = np.flatnonzero(shown.any(axis=0))
  top, bottom = int(rows[0]), int(rows[-1]) + 1
  left, right = int(columns[0]), int(columns[-1]) + 1
  side = max(bottom - top, right - left) / (1 - border_ratio)
  return CropBox(
    left=(left + right - side) / 2, top=(top + bottom - side) / 2, side=side
  )


def composite(
  frames: np.ndarray, background: tuple[int, int, int]
) -> np.ndarray:
  """Puts uint8 [..., 4] with straight alpha on a colour: uint8 [..., 3]."""
  alpha = frames[..., 3:].astype(np.uint16)
  behind = np.asarray(background, np.uint16)
  mixed = frames[..., :3] * alpha + behind * (255 - alpha)
  return ((mixed + 127) // 255).astype(np.uint8)


class _Window:
  """Cuts a square, which may extend beyond the frame, and resamples it."""

  def __init__(self, box: CropBox, frame_shape: tuple[int, int]):
    height, width = frame_shape
    # Whole pixels around the square; the rest of the cut is fractional.
    self._left, self._top = int(np.floor(box.left)), int(np.floor(box.top))
    right = int(np.ceil(box.left + box.side))
    bottom = int(np.ceil(box.top + box.side))
    self._shape = (bottom - self._top, right - self._left)
    self._rows = slice(max(0, self._top), min(height, bottom))
    self._columns = slice(max(0, self._left), min(width, right))
    x, y = box.left - self._left, box.top - self._top
    self._cut = (x, y, x + box.side, y + box.side)

  def resample(
    self, picture: np.ndarray, size: int, fill: int | tuple[int, int, int]
  ) -> np.ndarray:
    canvas = np.empty(self._shape + picture.shape[2:], np.uint8)
    canvas[:] = fill
    inside = picture[self._rows, self._columns]
    top, left = self._rows.start - self._top, self._columns.start - self._left
    canvas[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
    resized = Image.fromarray(canvas).resize(
      (size, size), Image.Resampling.BICUBIC, box=self._cut
    )
    return np.asarray(resized)
