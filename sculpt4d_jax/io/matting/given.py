"""Masks that the user gives: the source's alpha layer, or the whole frame."""

import numpy as np
from scipy import ndimage

from sculpt4d_jax.io.matting import cutout
from sculpt4d_jax.io.video.frames import VideoFrames

# Share of a frame's pixels; fewer are stray pixels.
_MIN_TRANSPARENT = 1e-3
_FAINT = 8  # Alpha up to which a pixel is taken as empty.
# Share of the largest alpha; a layer above it everywhere does not separate an
# object.
_EVEN = 0.8
# Drop shadows: alpha and largest channel up to which a pixel may be one, and
# the pixels by which they are wider than the soft edge of a black object.
_SHADE_ALPHA, _SHADE_COLOUR = 160, 48
_SHADE_WIDTH = 5
_MIN_SHADE = 1e-3  # Share of the object's pixels.


def from_alpha_layer(video: VideoFrames, argument: str) -> cutout.Cutout:
  """The alpha layer of the source; see `methods.py`.

  If the object itself is half transparent (a ghost, a faded export), alpha is
  scaled up, because meshes have only an inside and an outside.
  """
  del argument
  alpha = video.frames[..., 3]
  shown = alpha[alpha > _FAINT]
  full = float(np.quantile(shown, 0.9)) if shown.size else 255.0
  transparent = float((alpha < 0.5 * full).mean())
  if not video.has_alpha or (
    transparent < _MIN_TRANSPARENT and alpha.min() >= _EVEN * full
  ):
    raise cutout.NotApplicable("it has no alpha channel, or an even one")
  if transparent < _MIN_TRANSPARENT:
    raise cutout.NotApplicable("its alpha channel is opaque nearly everywhere")
  if full > 250:
    return _without_shadows(video.frames)
  frames = video.frames.copy()
  scaled = np.rint(alpha.astype(np.float32) * (255 / full))
  frames[..., 3] = np.minimum(scaled, 255).astype(np.uint8)
  note = (
    f"The object's alpha is {full / 255:.0%} where it is strongest; it was"
    " scaled to be opaque."
  )
  return cutout.Cutout(frames, 0.9, is_given=True, notes=(note,))


def _without_shadows(frames: np.ndarray) -> cutout.Cutout:
  """Empties wide parts that are dark and soft: shadows of an opaque object."""
  alpha = frames[..., 3]
  shadows = np.stack([_shadow(frame) for frame in frames])
  solid = (alpha > _SHADE_ALPHA).sum()
  if shadows.sum() < _MIN_SHADE * solid:
    return cutout.Cutout(frames, 1.0, is_given=True)
  result = frames.copy()
  result[..., 3][shadows] = 0
  note = (
    "Dark and soft parts of the alpha layer were taken for the object's shadow"
    " and left out."
  )
  return cutout.Cutout(result, 0.9, is_given=True, notes=(note,))


def _shadow(frame: np.ndarray) -> np.ndarray:
  """Pixels of a frame [H, W, 4] that are its object's shadow, bool [H, W]."""
  alpha, colour = frame[..., 3], frame[..., :3].max(axis=-1)
  soft = (alpha > 0) & (alpha <= _SHADE_ALPHA) & (colour <= _SHADE_COLOUR)
  wide = ndimage.binary_opening(soft, np.ones((_SHADE_WIDTH, _SHADE_WIDTH)))
  return ndimage.binary_propagation(wide, mask=soft)


def whole_frame(video: VideoFrames, argument: str) -> cutout.Cutout:
  """The entire frame is the object; see `methods.py`."""
  del argument
  frames = video.frames.copy()
  frames[..., 3] = 255
  return cutout.Cutout(frames, 1.0, is_given=True)
