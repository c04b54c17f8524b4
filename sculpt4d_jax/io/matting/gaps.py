"""Finds gaps that parts of the object enclose, such as ground between two legs.

A region inside the outline that looks like the ground is a gap, or a part of
the object with the ground's colour (a cartoon's white eye on a white page).
Its colour must fit the ground much better than the ground's threshold asks, and
one of two facts must speak for a gap:

  it opens     Around its time, the same place of the object, between the same
               parts, is ground that is connected to the border: the legs of a
               walking animal enclose it at times. A patch of the object moves
               with its part and stays enclosed.
  it follows   Its colours vary in position like those of an uneven ground
               (a gradient, a vignette), which the paint of an object does not.

Regions without such evidence stay with the object.
"""

from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np
from scipy import ndimage

from sculpt4d_jax.io.matting import ground as ground_lib

_MIN_AREA = 3e-4  # Share of the frame's pixels; smaller ones are no gap.
_MIN_PIXELS = 12
# Largest mean and median differences from the ground, relative to the
# threshold below which a pixel at the border counts as ground.
_MAX_OFFSET = 0.25
_MAX_MEDIAN = 0.6
# A region and its successor: ratio of areas, and distance relative to the side
# of a square of the same area, after the object's own motion.
_MAX_GROWTH = 2.5
_MAX_STEP = 1.0
_REACH = 2  # Frames before and after, in which a region may open.
_MIN_OPENED = 0.5  # Part of the region that is open ground then.
# Spread of the ground's colour below a region, in levels and relative to its
# noise, and the part of it that may remain without explanation.
_MIN_SPREAD = 3.0
_MIN_SPREAD_TO_NOISE = 4.0
_MAX_UNEXPLAINED = 0.4
_NOTABLE = 0.02  # Share of the object's pixels.


@dataclasses.dataclass(frozen=True)
class Gaps:
  """Result of `find`.

  Attributes:
    masks: True in the gaps, bool [F, H, W].
    undecided: Largest share of a frame's object, in [0, 1], that has the
      ground's colour and was not found to be a gap.
  """

  masks: np.ndarray
  undecided: float

  @property
  def note(self) -> str:
    """A sentence about large undecided regions, or ""."""
    if self.undecided < _NOTABLE:
      return ""
    return (
      f"Up to {self.undecided:.0%} of the object has exactly the colour of the"
      " background and is enclosed by the rest; it was kept. If it is a gap,"
      " give a clip with an alpha channel or before a green screen."
    )


@dataclasses.dataclass(frozen=True)
class _Region:
  """An enclosed region of one frame.

  Attributes:
    frame: Number of the frame.
    mask: Its pixels, bool [H, W].
    core: Those that do not touch another region.
    centre: Row and column of its centre.
    area: Number of pixels.
  """

  frame: int
  mask: np.ndarray
  core: np.ndarray
  centre: np.ndarray
  area: int


def find(
  rgb: np.ndarray,
  ground: ground_lib.Ground,
  patterns: Sequence[np.ndarray],
  masks: np.ndarray,
) -> Gaps:
  """Finds the gaps of the object of a clip.

  Args:
    rgb: uint8 [F, H, W, 3].
    ground: Model of the background.
    patterns: `Surface.pattern` of its surfaces.
    masks: The object with its gaps, bool [F, H, W].
  """
  gaps = np.zeros_like(masks)
  regions = list(_regions(rgb, ground, patterns, masks))
  if not regions:
    return Gaps(gaps, 0.0)
  centres = np.stack([_centre(mask) for mask in masks])
  undecided = np.zeros(len(masks))
  for chain in _chains(regions, centres):
    is_gap = any(
      _opens(region, masks, centres, chain) for region in chain
    ) or _follows(chain, rgb, ground, patterns)
    for region in chain:
      if is_gap:
        gaps[region.frame] |= region.mask
      else:
        size = masks[region.frame].sum()
        undecided[region.frame] += region.area / size
  return Gaps(gaps, float(undecided.max()))


def _regions(
  rgb: np.ndarray,
  ground: ground_lib.Ground,
  patterns: Sequence[np.ndarray],
  masks: np.ndarray,
) -> Iterator[_Region]:
  """Enclosed regions whose colour and noise are those of the ground."""
  smallest = max(_MIN_PIXELS, _MIN_AREA * masks[0].size)
  for index, (frame, mask) in enumerate(zip(rgb, masks)):
    if mask.sum() <= smallest:
      continue
    smooth = ground.smooth(frame)
    clean, distance = ground_lib.difference(ground, patterns, smooth, index)
    if not mask.all():
      # Noise that white or black cuts off shifts the ground's mean.
      clean -= np.median(clean[~mask], axis=0)
    labels, count = ndimage.label(mask & (distance < ground.threshold))
    areas = np.bincount(labels.ravel(), minlength=count + 1)
    alike = mask & ground_lib.alike(distance, ground.threshold)
    for label in np.flatnonzero(areas >= smallest):
      if label == 0:
        continue
      pixels = labels == label
      core = ndimage.binary_erosion(pixels)
      if core.sum() < _MIN_PIXELS or not _fits(clean[core], ground.threshold):
        continue
      # Compression causes ringing along the edge.
      whole = ndimage.binary_propagation(pixels, mask=alike)
      yield _Region(index, whole, core, _centre(pixels), int(whole.sum()))


def _fits(clean: np.ndarray, threshold: float) -> bool:
  """Whether differences from the ground [P, 3] are those of ground itself."""
  offset = np.abs(clean.mean(axis=0)).max()
  median = np.median(ground_lib.lengths(clean))
  return bool(
    offset < _MAX_OFFSET * threshold and median < _MAX_MEDIAN * threshold
  )


def _centre(mask: np.ndarray) -> np.ndarray:
  """Mean row and column of a mask; of an empty one, its middle."""
  if not mask.any():
    return np.array(mask.shape) / 2
  return np.array(ndimage.center_of_mass(mask))


def _chains(
  regions: Sequence[_Region], centres: np.ndarray
) -> list[list[_Region]]:
  """Joins regions that continue each other in consecutive frames."""
  chains: list[list[_Region]] = []
  for region in regions:
    for chain in chains:
      if region.frame == chain[-1].frame + 1 and _continues(
        chain[-1], region, centres
      ):
        chain.append(region)
        break
    else:
      chains.append([region])
  return chains


def _continues(first: _Region, other: _Region, centres: np.ndarray) -> bool:
  """Whether two regions of different frames can be the same."""
  growth = max(first.area, other.area) / min(first.area, other.area)
  step = (other.centre - centres[other.frame]) - (
    first.centre - centres[first.frame]
  )
  side = np.sqrt(max(first.area, other.area))
  return growth <= _MAX_GROWTH and np.hypot(*step) <= _MAX_STEP * side


def _opens(
  region: _Region,
  masks: np.ndarray,
  centres: np.ndarray,
  chain: Sequence[_Region],
) -> bool:
  """Whether a region is joined to the ground outside in a frame close by."""
  frames = {each.frame for each in chain}
  for index in range(region.frame - _REACH, region.frame + _REACH + 1):
    if not 0 <= index < len(masks) or index in frames:
      continue
    if not masks[index].any():
      continue
    step = np.rint(centres[index] - centres[region.frame]).astype(int)
    place = _moved(region.mask, *step)
    open_ground = ~masks[index] & _between(masks[index])
    if (place & open_ground).sum() >= _MIN_OPENED * region.area:
      return True
  return False


def _moved(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
  """A mask [H, W] moved by whole pixels; what leaves the frame is lost."""
  result = np.zeros_like(mask)
  height, width = mask.shape
  if abs(rows) < height and abs(columns) < width:
    result[
      max(0, rows) : height + min(0, rows),
      max(0, columns) : width + min(0, columns),
    ] = mask[
      max(0, -rows) : height + min(0, -rows),
      max(0, -columns) : width + min(0, -columns),
    ]
  return result


def _between(mask: np.ndarray) -> np.ndarray:
  """Pixels with the object on both sides, in their row or their column."""
  result = np.zeros_like(mask)
  for axis in (0, 1):
    before = np.maximum.accumulate(mask, axis=axis)
    after = np.flip(
      np.maximum.accumulate(np.flip(mask, axis=axis), axis=axis), axis=axis
    )
    result |= before & after
  return result


def _follows(
  chain: Sequence[_Region],
  rgb: np.ndarray,
  ground: ground_lib.Ground,
  patterns: Sequence[np.ndarray],
) -> bool:
  """Whether the colours vary in position as those of the ground do."""
  if len(ground.surfaces) > 1:
    return False  # Each region would have to be assigned to one of them.
  # Levels are left out: light that changes also changes the object.
  behind = [patterns[0][region.core] for region in chain]
  clean = []
  for region in chain:
    smooth = ground.smooth(rgb[region.frame])
    difference, _ = ground_lib.difference(
      ground, patterns, smooth, region.frame
    )
    clean.append(difference[region.core])
  spread = np.concatenate(behind).std(axis=0).max()
  rest = np.concatenate(clean).std(axis=0).max()
  return bool(
    spread >= max(_MIN_SPREAD, _MIN_SPREAD_TO_NOISE * ground.noise)
    and rest <= _MAX_UNEXPLAINED * spread
  )
