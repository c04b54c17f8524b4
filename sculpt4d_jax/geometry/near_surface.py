"""What a coarse grid of a field says about a finer one, so that few points do.

Values between the coarse points are guessed by linear interpolation. Wherever
the guess puts the surface, the caller evaluates the field, and continues from
cell to cell as long as a cell that the surface crosses has a corner that is
only guessed. As neighbours on different sides of the surface have a crossing
between them whatever the guess, every piece of surface that has a coarse point
on each side is found whole.

A smaller piece may hide where a point is nearer to the level than its own slope
makes up for within a cell, and no neighbour lies on the other side to explain
that. The cells around such points are evaluated in full. What can be missed is a
piece that no coarse point is inside of, and that lies next to another surface.
"""

import numpy as np
from scipy import ndimage

# A point is suspicious if its value is within this many times the change of the
# field over the neighbouring points. A surface within half a cell's diagonal of
# a point is within 0.87 of the change along the steepest axis.
_REACH = 0.55


def interpolate(values: np.ndarray, resolution: int) -> np.ndarray:
  """Values of a grid [R+1] * 3 on a finer one, linear along each axis.

  Points that both grids have keep their values.
  """
  coarse = len(values) - 1
  index = np.arange(resolution + 1) * coarse
  low = np.minimum(index // resolution, coarse - 1)
  weight = ((index - low * resolution) / resolution).astype(np.float32)
  for axis in range(3):
    shape = [1, 1, 1]
    shape[axis] = -1
    w = weight.reshape(shape)
    first, second = values.take(low, axis), values.take(low + 1, axis)
    values = first * (1 - w) + second * w
  return values


def on_finer_grid(marks: np.ndarray, resolution: int) -> np.ndarray:
  """Marks of a grid at the points that a finer grid has in common with it."""
  coarse = len(marks) - 1
  fine = np.zeros((resolution + 1,) * 3, bool)
  index = np.arange(coarse + 1) * resolution
  common = index % coarse == 0
  place = index[common] // coarse
  fine[np.ix_(place, place, place)] = marks[np.ix_(common, common, common)]
  return fine


def hiding_places(
  values: np.ndarray, level: float, band: float, resolution: int
) -> np.ndarray:
  """Points of a finer grid where a piece of surface may hide.

  Args:
    values: Field on the coarse grid, [R+1] * 3.
    level: Value of the field on the surface.
    band: Values further than this from the level hide nothing.
    resolution: Cells an axis of the finer grid.

  Returns:
    Marks, bool [resolution + 1] * 3.
  """
  inside = values > level
  neighbours = dict(size=3, mode="nearest")
  explained = ndimage.maximum_filter(inside, **neighbours)
  explained &= ~ndimage.minimum_filter(inside, **neighbours)
  change = ndimage.maximum_filter(values, **neighbours)
  change -= ndimage.minimum_filter(values, **neighbours)
  distance = np.abs(values - level)
  hides = (distance <= _REACH * change) & (distance < band) & ~explained
  return _around(hides, resolution)


def _around(points: np.ndarray, resolution: int) -> np.ndarray:
  """Points of a finer grid within a coarse cell of marked coarse points."""
  coarse = len(points) - 1
  marks = np.zeros((resolution + 1,) * 3, bool)
  index = np.stack(np.nonzero(points))
  first = np.maximum((index - 1) * resolution // coarse, 0)
  last = np.minimum(-((-(index + 1) * resolution) // coarse), resolution)
  width = int((last - first).max(initial=0)) + 1
  for offset in np.ndindex((width,) * 3):
    place = np.minimum(first + np.array(offset)[:, None], last)
    marks[tuple(place)] = True
  return marks
