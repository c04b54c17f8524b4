"""Finds the plain area of a window in a screen recording.

The area has one colour, is a rectangle with sides parallel to the frame's, and
is surrounded by other things (a title bar, panels, a desktop) on at least two
adjacent sides. A wall above a floor or bars above and below have a single side
or two opposite ones and are no window.
"""

import numpy as np
from scipy import ndimage

_NEAR = 10.0  # Distance of RGB colours up to which they count as equal.
_MIN_AREA, _MAX_AREA = 0.15, 0.95  # Shares of the frame.
_MIN_FILLED = 0.93  # Part of the rectangle that the area and its holes fill.
_REACH = 3  # Pixels on both sides of an edge; compression blurs it.
_MIN_INSIDE, _MAX_OUTSIDE = 0.8, 0.25  # Shares of a side of the area's colour.
_MAX_FRAMES = 9


def find(rgb: np.ndarray) -> tuple[slice, slice] | None:
  """Rows and columns of the area, without its edge; None if there is none.

  Args:
    rgb: uint8 [F, H, W, 3].
  """
  frames = np.unique(np.linspace(0, len(rgb) - 1, _MAX_FRAMES).astype(int))
  still = np.median(rgb[frames], axis=0)
  near = np.linalg.norm(still - _commonest(still), axis=-1) < _NEAR
  labels, count = ndimage.label(near)
  if not count:
    return None
  largest = np.bincount(labels.ravel())[1:].argmax() + 1
  area = labels == largest
  box = ndimage.find_objects(labels)[largest - 1]
  filled = ndimage.binary_fill_holes(area[box])
  share = filled.size / area.size
  if not _MIN_AREA <= share <= _MAX_AREA or filled.mean() < _MIN_FILLED:
    return None
  rows, columns = (_edges(near, box, axis) for axis in (0, 1))
  if not (any(rows) and any(columns)):
    return None
  return tuple(
    slice(s.start + (_REACH if low else 0), s.stop - (_REACH if high else 0))
    for s, (low, high) in zip(box, (rows, columns))
  )


def _commonest(picture: np.ndarray) -> np.ndarray:
  """The commonest colour of a picture [H, W, 3]."""
  coarse = (picture // 8).astype(np.int64)
  codes = (coarse[..., 0] * 32 + coarse[..., 1]) * 32 + coarse[..., 2]
  values, counts = np.unique(codes, return_counts=True)
  return np.median(picture[codes == values[counts.argmax()]], axis=0)


def _edges(
  near: np.ndarray, box: tuple[slice, slice], axis: int
) -> tuple[bool, bool]:
  """Whether the rectangle ends at a straight edge at each end of an axis."""
  along = near if axis == 0 else near.T
  across, other = box[axis], box[1 - axis]
  results = []
  for line, outwards in ((across.start, -1), (across.stop - 1, 1)):
    inside, outside = line - outwards * _REACH, line + outwards * _REACH
    results.append(
      0 <= outside < len(along)
      and along[inside, other].mean() >= _MIN_INSIDE
      and along[outside, other].mean() <= _MAX_OUTSIDE
    )
  return results[0], results[1]
