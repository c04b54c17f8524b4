"""Cuts out moving objects in front of a still camera.

Each frame is compared with the median of the clip, which shows the scene behind
the object only where the object is absent for more than half of the time. An
object that sways in its place is part of the median: its changing outline is
found, its core is not. Clips in which the hull of the changing pixels covers
some place for longer are therefore rejected.
"""

import numpy as np
from scipy import ndimage

from sculpt4d_jax.io.matting import colour
from sculpt4d_jax.io.matting import cutout
from sculpt4d_jax.io.video.frames import VideoFrames

_SIDE = 320  # Working size of the longer side, pixels.
_MIN_FRAMES = 5
_MIN_MOTION = 18.0  # Distance of 8-bit RGB from the median frame.
_MAX_NOISE = 6.0
_MIN_OBJECT_SHARE = 0.7  # Share of the changed pixels.
_OUTLINE = 3  # Pixels from a rough outline to the inside.
_MAX_STAY = 0.5  # Share of the clip, at one pixel.


def cut_out(video: VideoFrames, argument: str) -> cutout.Cutout:
  """See `methods.py`; takes no argument."""
  del argument
  rgb = video.frames[..., :3]
  if len(rgb) < _MIN_FRAMES:
    raise cutout.NotApplicable("it is too short to tell what moves in it")
  frames = colour.shrink(rgb, _SIDE).astype(np.float32)
  frames = ndimage.gaussian_filter(frames, (0, 0.7, 0.7, 0))
  scene = np.median(frames, axis=0)
  distance = np.linalg.norm(frames - scene, axis=-1)
  noise = float(np.median(distance))
  threshold = max(_MIN_MOTION, 4 * noise)
  edge = np.ones(scene.shape[:2], bool)
  width = max(2, round(0.06 * min(edge.shape)))
  edge[width:-width, width:-width] = False
  is_still = (distance[:, edge] < threshold).mean() > 0.85
  if noise > _MAX_NOISE or not is_still:
    raise cutout.NotApplicable("its camera moves")
  masks = np.stack([_main_piece(d, threshold) for d in distance])
  coverage = masks.mean(axis=(1, 2))
  is_shown = (coverage > 0.002) & (coverage < 0.5)
  if is_shown.mean() < 0.6:
    raise cutout.NotApplicable("nothing moves in it")
  masks[~is_shown] = False
  hulls = np.stack([_hull(mask) for mask in masks])
  if np.quantile(hulls.mean(axis=0)[hulls.any(axis=0)], 0.98) > _MAX_STAY:
    raise cutout.NotApplicable("its object stays in one place")
  changed = distance > threshold
  share = (changed & masks)[is_shown].sum() / changed[is_shown].sum()
  if share < _MIN_OBJECT_SHARE:
    raise cutout.NotApplicable("more than one thing moves in it")
  alpha = np.stack([colour.soft_mask(mask, rgb.shape[1:3]) for mask in masks])
  return cutout.from_alpha(video, alpha, 0.5 * float(share))


def _main_piece(distance: np.ndarray, threshold: float) -> np.ndarray:
  """The largest component, and others of at least a fifth of its size."""
  mask = distance > threshold
  mask = ndimage.binary_closing(mask, iterations=2) | mask
  mask = ndimage.binary_fill_holes(ndimage.binary_opening(mask))
  labels, count = ndimage.label(mask)
  if not count:
    return mask
  area = np.bincount(labels.ravel())
  area[0] = 0
  kept = (area >= max(1, 0.2 * area.max()))[labels]
  # The outline is where object and scene are mixed half and half.
  peak = ndimage.maximum_filter(distance * kept, 2 * _OUTLINE + 1)
  inner = ndimage.binary_erosion(kept, iterations=_OUTLINE)
  return ndimage.binary_opening(inner | (kept & (distance > 0.45 * peak)))


def _hull(mask: np.ndarray) -> np.ndarray:
  from skimage import morphology  # Late, as few clips come here.

  return morphology.convex_hull_image(mask) if mask.any() else mask
