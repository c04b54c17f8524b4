"""Finds background inside of an object's mask, which must colour no surface.

A cut-out keeps what the object encloses, and it cannot see background that is
thinner than its outline's band. Two kinds of background therefore have full
coverage:

  lines   where a part stands in front of another, edge pixels may be mixed with
          the background instead of the part behind (layered pictures, halos);
  areas   gaps between limbs that are closed in some frames.

On the surface they would show as lines and patches of the background's colour.
A line is a thin dip in the distance to the background's colour that begins at
the outline; thin marks inside of the object are its own. An area has the
background's colour; if most frames have such areas, the object has that colour
itself, and they are kept.
"""

import numpy as np
from scipy import ndimage

_INSIDE = 0.5  # Coverage.
_WIDEST_LINE = 0.02  # Of the picture's side.
_DIP = 0.85  # Share of the surroundings' distance that a line stays below.
# Cosine between the directions from the background's colour to a line's and to
# the object's; a mark of another colour lies elsewhere.
_ALIGNED = 0.95
_GROUND = 0.2  # Share of the object's distance that the background stays below.
# Share of the object that has the background's colour in most frames, above
# which it is the object's own.
_RARE = 0.003
_SINGLE_COLOUR = 12  # Median difference within a background, of 255.


def trusted(
  pictures: np.ndarray, masks: np.ndarray, ground: np.ndarray
) -> np.ndarray:
  """Coverage without trapped background.

  Args:
    pictures: uint8 [F, h, w, 3], or float in [0, 1].
    masks: Coverage in [0, 1], [F, h, w].
    ground: Colour of the background in each frame, in the pictures' units,
      [F, 3]; NaN where it has no single colour.

  Returns:
    float32 [F, h, w]; 0 on trapped background and next to it.
  """
  masks = np.asarray(masks, np.float32)
  lines, areas, shares = [], [], []
  scale = 255.0 if pictures.dtype == np.uint8 else 1.0
  for picture, mask, colour in zip(pictures, masks, ground):
    inside = mask > _INSIDE
    away = picture.astype(np.float32) / scale - np.float32(colour / scale)
    if not inside.any() or not np.isfinite(away).all():
      lines.append(np.zeros_like(inside))
      areas.append(np.zeros_like(inside))
      continue
    distance = np.linalg.norm(away, axis=-1)
    limit = _GROUND * np.median(distance[inside])
    areas.append(_without_rim(inside & (distance < limit)))
    lines.append(_lines(away, distance, inside))
    shares.append(areas[-1].sum() / inside.sum())
  is_own = bool(shares) and np.median(shares) > _RARE
  found = np.stack(lines) | (np.stack(areas) & (not is_own))
  around = ndimage.generate_binary_structure(2, 2)[None]
  return np.where(ndimage.binary_dilation(found, around), 0, masks)


def colour_of(frames: np.ndarray, alpha: np.ndarray) -> np.ndarray:
  """The colour of the background in each frame.

  Args:
    frames: The video before it was cut out, uint8 [F, h, w, 3].
    alpha: Its cut-out, uint8 [F, h, w].

  Returns:
    float64 [F, 3], from 0 to 255; NaN where it has no single colour.
  """
  result = np.full((len(frames), 3), np.nan)
  for index, (frame, covered) in enumerate(zip(frames, alpha)):
    behind = frame[covered == 0]
    if not len(behind):
      continue
    colour = np.median(behind, axis=0)
    spread = np.abs(behind - colour).max(axis=1)
    if np.median(spread) <= _SINGLE_COLOUR:
      result[index] = colour
  return result


def _lines(
  away: np.ndarray, distance: np.ndarray, inside: np.ndarray
) -> np.ndarray:
  """Thin dips towards the background's colour that begin at the outline."""
  reach = max(1, round(_WIDEST_LINE * max(inside.shape) / 2))
  size = 2 * reach + 1
  covered = np.where(inside, distance, 0)
  level = ndimage.grey_closing(covered, (size, size))
  dips = inside & (distance < _DIP * level)
  if not dips.any():
    return dips
  # The object's colour at a dip is that of the farthest pixel around it.
  rows, columns = np.nonzero(dips)
  own = away[_farthest(covered, reach, rows, columns)]
  cosine = np.einsum("px,px->p", away[dips], own) / np.maximum(
    distance[dips] * np.linalg.norm(own, axis=1), 1e-6
  )
  dips[dips] = (cosine > _ALIGNED) | (distance[dips] < _GROUND * level[dips])
  # Lines are dashed where pixels are coarse; gaps are bridged.
  bridged = ndimage.maximum_filter(dips | ~inside, size=reach + 1)
  labels, _ = ndimage.label(bridged, np.ones((3, 3)))
  outer = np.unique(labels[~inside])
  return dips & np.isin(labels, outer[outer > 0])


def _farthest(
  distance: np.ndarray, reach: int, rows: np.ndarray, columns: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Rows and columns of the largest distance around each of the pixels."""
  best = np.full(len(rows), -1.0)
  found = rows.copy(), columns.copy()
  for down in range(-reach, reach + 1):
    for right in range(-reach, reach + 1):
      row = np.clip(rows + down, 0, distance.shape[0] - 1)
      column = np.clip(columns + right, 0, distance.shape[1] - 1)
      better = distance[row, column] > best
      best[better] = distance[row, column][better]
      found[0][better], found[1][better] = row[better], column[better]
  return found


def _without_rim(area: np.ndarray) -> np.ndarray:
  """Areas at least three pixels wide; narrower ones belong to an outline."""
  return ndimage.binary_propagation(
    ndimage.binary_erosion(area, np.ones((3, 3))), mask=area
  )
