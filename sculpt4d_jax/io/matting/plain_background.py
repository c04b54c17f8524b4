"""Removes a plain background: one colour, a gradient, or a floor before a wall.

A pixel is background if its colour lies near the ground's (`ground.py`) AND it
is connected to the border through such pixels: parts of the object that happen
to have the background's colour stay, as long as the object encloses them. Gaps
that its parts enclose go where there is evidence for them (`gaps.py`). For a
saturated ground (green and blue screens) whose colour the object does not have,
the colour alone decides, so that all gaps inside the object are removed.

Shadows on the ground count as ground: they have its hue, less light and, unlike
the object, no sharp edge. The background region is grown into them from
outside.

Along the outline, alpha is the pixel's distance from the background's colour,
relative to that of the object just inside (the matting equation
c = alpha * f + (1 - alpha) * b, with f from the nearest inner pixel), and the
background's share is taken out of the colour.
"""

from collections.abc import Callable
import concurrent.futures
import dataclasses
from typing import TypeVar

import numpy as np
from scipy import ndimage

from sculpt4d_jax.io.matting import canvas
from sculpt4d_jax.io.matting import cutout
from sculpt4d_jax.io.matting import gaps
from sculpt4d_jax.io.matting import ground as ground_lib
from sculpt4d_jax.io.video.frames import VideoFrames

T = TypeVar("T")

_FRAMES_AT_A_TIME = 2  # More would take gigabytes for frames of 4K.
_SPECK = 1e-4  # Share of the frame's pixels.
# Remaining light in the darkest shadow, and the slope of an edge relative to
# the brightness range around it (an outline changes within four pixels).
_DARKEST_SHADOWS = (0.3, 0.6, 0.8, 1.0)  # The last removes none.
_SHADOW_SLOPE = 0.16
_SHADOW_REACH = 6  # Pixels.
_MAX_LOST_EDGES = 0.15
_MIN_SHADED_GROUND = 60.0  # Brightness; shadows on darker ground are invisible.
# A screen's colour: difference of its largest and smallest channel, and the
# distances, relative to it, at which a pixel is fully screen and fully object.
_MIN_SCREEN_CHROMA = 80.0
_SCREEN_LOW, _SCREEN_HIGH = 0.15, 0.4


_SHADOW_DOUBT = (
  "The object has the hue of its background, so that its shadow cannot be told"
  " from it and may be part of the cut-out."
)


@dataclasses.dataclass(frozen=True)
class Removal:
  """Result of `remove`.

  Attributes:
    colours: uint8 [F, height, width, 3], without the background's share.
    alpha: uint8 [F, height, width].
    confidence: Confidence in (0, 1]: the plain share of the border, reduced by
      its noise.
    notes: Doubts, as sentences.
  """

  colours: np.ndarray
  alpha: np.ndarray
  confidence: float
  notes: tuple[str, ...] = ()


def cut_out(video: VideoFrames, argument: str) -> cutout.Cutout:
  """See `methods.py`; takes no argument."""
  del argument
  result = _remove_in_window(video.frames[..., :3])
  if result is None:
    result = remove(video.frames[..., :3])
  if result is None:
    raise cutout.NotApplicable(
      "its background is not plain: the border of its frames varies in colour"
    )
  frames = np.concatenate([result.colours, result.alpha[..., None]], axis=-1)
  return cutout.Cutout(frames, result.confidence, notes=result.notes)


def _remove_in_window(rgb: np.ndarray) -> Removal | None:
  """Removes the background of a window's area, and all around the window.

  Returns:
    The cut-out; None if there is no window, or its area shows no object.
  """
  area = canvas.find(rgb)
  if area is None:
    return None
  result = remove(rgb[:, *area])
  if result is None or not result.alpha.any():
    return None
  colours = np.full_like(rgb, 255)
  alpha = np.zeros(rgb.shape[:3], np.uint8)
  colours[:, *area], alpha[:, *area] = result.colours, result.alpha
  rows, columns = area
  note = (
    "It looks like a screen recording: only the plain area of a window (rows"
    f" {rows.start} to {rows.stop}, columns {columns.start} to {columns.stop})"
    " was searched for the object."
  )
  return Removal(colours, alpha, result.confidence, (note, *result.notes))


def remove(rgb: np.ndarray) -> Removal | None:
  """Removes the background of uint8 [F, height, width, 3], if it is plain.

  Returns:
    The cut-out, or None where less than 70 % of the border fits a plain ground.
  """
  ground = ground_lib.fit(rgb)
  if ground is None:
    return None
  for _ in range(2):
    ground = ground_lib.refit(ground, rgb)
  patterns = [s.pattern(rgb.shape[1:3]) for s in ground.surfaces]
  masks, doubt = _masks(rgb, ground, patterns)
  enclosed = gaps.find(rgb, ground, patterns, masks)
  masks &= ~enclosed.masks
  colours, alpha = np.full_like(rgb, 255), np.zeros(rgb.shape[:3], np.uint8)
  is_keyed = _is_screen(ground)

  def matte(index: int) -> None:
    frame, mask = rgb[index], masks[index]
    share_limit = _key(frame, ground, patterns, index, mask) if is_keyed else 1
    raw, _ = ground_lib.difference(ground, patterns, frame, index)
    _matte(frame, raw, mask, share_limit, ground, colours[index], alpha[index])

  _of_frames(matte, len(rgb))
  noise = ground.noise / ground_lib.MAX_NOISE
  confidence = ground.plain_share * (1 - 0.5 * noise) * (0.5 if doubt else 1)
  notes = [doubt] if is_keyed else [doubt, enclosed.note]
  return Removal(colours, alpha, confidence, tuple(filter(None, notes)))


def _masks(
  rgb: np.ndarray, ground: ground_lib.Ground, patterns: list[np.ndarray]
) -> tuple[np.ndarray, str]:
  """Masks of the object without shadows, bool [F, H, W], and a doubt."""
  doubt = ""
  first = None
  for darkest in _DARKEST_SHADOWS:
    masks, lost = _masks_without_shadows(rgb, ground, patterns, darkest)
    # A shadow has no sharp edges. If removal takes many of them, a grey object
    # on a grey ground would be lost together with its shadow.
    if lost <= _MAX_LOST_EDGES:
      break
    first = masks if first is None else first
  # A large part looks like shadow and cannot be told from the object.
  if first is not None and first.sum() < 0.6 * masks.sum():
    doubt = _SHADOW_DOUBT
  return masks, doubt


def _masks_without_shadows(
  rgb: np.ndarray,
  ground: ground_lib.Ground,
  patterns: list[np.ndarray],
  darkest: float,
) -> tuple[np.ndarray, float]:
  """Masks [F, H, W], and the share of the object's sharp edges they lost.

  Args:
    rgb: The frames.
    ground: Model of the background.
    patterns: Patterns of its surfaces.
    darkest: Part of its light that the ground keeps in the darkest shadow.
  """
  masks = np.zeros(rgb.shape[:3], bool)

  def separate(index: int) -> tuple[int, int]:
    """Finds one frame's mask; the numbers of its sharp edges and lost ones."""
    smooth = ground.smooth(rgb[index])
    clean, distance = ground_lib.difference(ground, patterns, smooth, index)
    background = _flood(distance, ground.threshold)
    whole = _without_specks(~background, distance, ground.threshold)
    if darkest == 1:
      masks[index] = whole
      return 0, 0
    grown, is_soft = _shadows(smooth, clean, background, ground, darkest)
    rest = ~(background | grown)
    masks[index] = _without_specks(rest, distance, ground.threshold)
    edges = ~is_soft & whole & (distance > 2 * ground.threshold)
    solid = ndimage.binary_opening(masks[index], iterations=3)
    lost = edges & ~ndimage.binary_dilation(solid, iterations=6)
    return int(edges.sum()), int(lost.sum())

  counts = _of_frames(separate, len(rgb))
  num_edges, num_lost = (sum(column) for column in zip(*counts))
  return masks, num_lost / max(1, num_edges)


def _of_frames(function: Callable[[int], T], count: int) -> list[T]:
  """Results for the frames' indices; filters of two frames run at once."""
  with concurrent.futures.ThreadPoolExecutor(_FRAMES_AT_A_TIME) as pool:
    return list(pool.map(function, range(count)))


def _flood(distance: np.ndarray, threshold: float) -> np.ndarray:
  """Pixels like the background and connected to the border, bool [H, W]."""
  alike = ground_lib.alike(distance, threshold)
  # Paths of one or two pixels are leaks through the outline.
  wide = ndimage.minimum_filter(alike, 3, mode="nearest")
  joined = ground_lib.joined_to_border(wide)
  return ndimage.maximum_filter(joined, 3) & alike


def _shadows(
  frame: np.ndarray,
  difference: np.ndarray,
  background: np.ndarray,
  ground: ground_lib.Ground,
  darkest: float,
) -> tuple[np.ndarray, np.ndarray]:
  """Shadows that begin at the background, and where no edge is, bool [H, W].

  Args:
    frame: Smoothed, float [H, W, 3].
    difference: The frame less the ground.
    background: Mask of what is known to be background.
    ground: Its model.
    darkest: Part of its light that the ground keeps in the darkest shadow.
  """
  behind = frame - difference
  brightness = np.maximum(ground_lib.lengths(behind), 1)
  light = (frame * behind).sum(axis=-1) / brightness**2
  tint = ground_lib.lengths(frame - light[..., None] * behind)
  # Less light makes a camera's hue less sure, and compression's too.
  limit = ground.threshold + 0.04 * brightness
  is_shade = (tint < limit) & (light > darkest)
  is_shade &= (light < 1.02) & (brightness > _MIN_SHADED_GROUND)
  lit = ndimage.gaussian_filter(light * brightness, 1.0)
  slope = np.hypot(ndimage.sobel(lit, 0), ndimage.sobel(lit, 1)) / 8
  size = 2 * _SHADOW_REACH + 1
  span = ndimage.maximum_filter(lit, size) - ndimage.minimum_filter(lit, size)
  is_soft = slope < np.maximum(_SHADOW_SLOPE * span, 1.0 + 0.3 * ground.noise)
  way = (is_shade & is_soft) | background
  way = ndimage.minimum_filter(way, 5, mode="nearest")
  grown = ndimage.binary_propagation(
    way & ndimage.binary_dilation(background, iterations=3), mask=way
  )
  grown = ndimage.maximum_filter(grown, 5) & (is_shade | background)
  return grown, is_soft


def _is_screen(ground: ground_lib.Ground) -> bool:
  return _chroma(ground) >= _MIN_SCREEN_CHROMA


def _chroma(ground: ground_lib.Ground) -> float:
  colour = np.median(ground.surfaces[0].levels, axis=0)
  return float(np.ptp(np.clip(colour, 0, 255)))


def _key(
  frame: np.ndarray,
  ground: ground_lib.Ground,
  patterns: list[np.ndarray],
  index: int,
  mask: np.ndarray,
) -> np.ndarray | float:
  """The most that a pixel can be object, by its colour, float [H, W]."""
  smooth = ndimage.gaussian_filter(frame.astype(np.float32), (0.5, 0.5, 0))
  _, distance = ground_lib.difference(ground, patterns, smooth, index)
  chroma = _chroma(ground)
  low = max(ground.threshold, _SCREEN_LOW * chroma)
  high = max(1.5 * low, _SCREEN_HIGH * chroma)
  inner = ndimage.binary_erosion(mask, iterations=4)
  if inner.any() and ((distance > low) & (distance < high))[inner].mean() > 0.1:
    return 1.0  # The object has such colours itself.
  return np.clip((distance - low) / (high - low), 0, 1)


def _matte(
  frame: np.ndarray,
  difference: np.ndarray,
  mask: np.ndarray,
  share_limit: np.ndarray | float,
  ground: ground_lib.Ground,
  colours: np.ndarray,
  alpha: np.ndarray,
) -> None:
  """Writes colours [H, W, 3] and alpha [H, W] of one frame, where not 0."""
  if not mask.any():
    return
  distance = ground_lib.lengths(difference)
  if ground.sigma:
    distance = ndimage.gaussian_filter(distance, 0.6)
  # Coarse chroma blurs an outline over four pixels.
  band = max(4, round(0.005 * max(mask.shape)))
  region = _bounding_slices(mask, margin=2 * band)
  mask, distance = mask[region], distance[region]
  inner = ndimage.binary_erosion(mask, iterations=band, border_value=1)
  reference = _reference_distance(distance, mask, inner, band)
  offset = 1.5 * ground.raw_noise if ground.sigma else 0.0
  share = (distance - offset) / np.maximum(reference - offset, 1e-6)
  share = np.where(mask, np.where(inner, 1, np.clip(share, 0, 1)), 0)
  if isinstance(share_limit, np.ndarray):
    share = np.minimum(share, share_limit[region])
  share = share[..., None]
  # c = share * f + (1 - share) * b, solved for f; damped where share is low.
  added = difference[region] * (1 / np.maximum(share, 0.3) - 1)
  own = np.clip(np.rint(frame[region] + added), 0, 255)
  colours[region] = np.where(share > 0, own, 255).astype(np.uint8)
  alpha[region] = np.rint(255 * share[..., 0]).astype(np.uint8)


def _bounding_slices(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
  slices = []
  for axis in (1, 0):
    inside = np.flatnonzero(mask.any(axis=axis))
    low, high = inside[0] - margin, inside[-1] + 1 + margin
    slices.append(slice(max(0, int(low)), int(high)))
  return tuple(slices)


def _reference_distance(
  distance: np.ndarray, mask: np.ndarray, inner: np.ndarray, band: int
) -> np.ndarray:
  """How far the object's own colour is from the background's, per pixel."""
  # Thin parts have no inside: their strongest pixel stands for it.
  peak = ndimage.maximum_filter(distance * mask, 2 * band + 1)
  if not inner.any():
    return peak
  away, (rows, columns) = ndimage.distance_transform_edt(
    ~inner, return_indices=True
  )
  return np.where(away <= 2 * band, distance[rows, columns], peak)


def _without_specks(
  mask: np.ndarray, distance: np.ndarray, threshold: float
) -> np.ndarray:
  """Drops components that are tiny, or small and faint."""
  labels, count = ndimage.label(mask, np.ones((3, 3)))
  if not count:
    return mask
  area = np.bincount(labels.ravel(), minlength=count + 1) / mask.size
  strong = np.bincount(labels[distance > 2 * threshold], minlength=count + 1)
  keep = (area > _SPECK) & ((area > 10 * _SPECK) | (strong > 0))
  keep[0] = False
  return keep[labels]
