"""Result of all cut-out methods, and their error for unsuitable clips."""

import dataclasses

import numpy as np
from scipy import ndimage

from sculpt4d_jax.io.video.frames import InputError
from sculpt4d_jax.io.video.frames import VideoFrames


class NotApplicable(InputError):
  """A method does not suit a clip; the message is a clause with the reason."""


@dataclasses.dataclass(frozen=True)
class Cutout:
  """A clip with its background made transparent, before it is checked.

  Attributes:
    frames: uint8 [F, height, width, 4], straight alpha; colours at soft edges
      are the object's own.
    confidence: Confidence in [0, 1]: 1 where the mask is given, near 0 where it
      is a guess.
    is_given: Whether the mask is the user's: then all its pieces are kept.
    notes: Sentences for the user.
  """

  frames: np.ndarray = dataclasses.field(repr=False)
  confidence: float
  is_given: bool = False
  notes: tuple[str, ...] = ()


def from_alpha(
  video: VideoFrames, alpha: np.ndarray, confidence: float
) -> Cutout:
  """A cut-out of a mask alone; colours of sure pixels spread over soft ones.

  Args:
    video: The clip.
    alpha: uint8 [F, height, width].
    confidence: Confidence in [0, 1].
  """
  colours = np.stack(
    [
      spread_colours(rgb, opacity > 230)
      for rgb, opacity in zip(video.frames[..., :3], alpha)
    ]
  )
  share = (alpha.astype(np.float32) / 255)[..., None]
  colours = share * video.frames[..., :3] + (1 - share) * colours
  colours = np.rint(colours).astype(np.uint8)
  return Cutout(
    np.concatenate([colours, alpha[..., None]], axis=-1), confidence
  )


def spread_colours(rgb: np.ndarray, sure: np.ndarray) -> np.ndarray:
  """Gives every pixel the colour of the nearest sure one, [H, W, 3]."""
  if not sure.any():
    return rgb
  rows, columns = ndimage.distance_transform_edt(
    ~sure, return_distances=False, return_indices=True
  )
  return rgb[rows, columns]
