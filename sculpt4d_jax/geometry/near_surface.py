"""Predicts from a coarse grid where a finer one needs evaluation.

Values between the coarse points are estimated by linear interpolation. The
caller evaluates the field where the estimate puts the surface, and continues
from cell to cell while a cell that the surface crosses has a corner that is
only estimated. As neighbours on different sides of the surface have a crossing
between them whatever the estimate, every piece of surface that has a coarse
point on each side is found completely.

A smaller piece may hide near a point whose value is closer to the level than
the field can change within a cell, if no neighbour on the other side explains
this. Nor may a surface further away: towards it, values come closer to the level
from point to point, while the point next to a hidden piece is closer than both
its neighbours along a steep axis. Without this second condition a shell of
points around every known surface, just out of its reach, would be suspicious.
The cells around suspicious points are evaluated completely. A piece can be
missed only if no coarse point is inside it and it lies next to another surface.
"""

import numpy as np

# A point is suspicious if its value is within this many times the change of the
# field over the neighbouring points. A surface within half a cell's diagonal of
# a point is within 0.87 of the change along the steepest axis.
_REACH = 0.55

# An axis is steep if the field changes along it by this share of the most. Above
# a ridge, points are closest along the axes that run past it; a larger share
# leaves more of them out, and at 0.8 some thin sheets are missed.
_STEEP = 0.6


def interpolate(values: np.ndarray, resolution: int) -> np.ndarray:
  """Interpolates values of a grid [R+1] * 3 to a finer one, linearly.

  Points that both grids have keep their values.
  """
  coarse = len(values) - 1
  if resolution == 2 * coarse:
    return _doubled(values)
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


def _doubled(values: np.ndarray) -> np.ndarray:
  """`interpolate` to half the spacing, in a quarter of its time."""
  half = np.float32(0.5)
  dtype = np.result_type(values, half)
  for axis in range(3):
    shape = list(values.shape)
    shape[axis] = 2 * shape[axis] - 1
    finer = np.empty(shape, dtype)
    before = (slice(None),) * axis
    finer[(*before, slice(None, None, 2))] = values
    halves = values * half
    first, second = (halves[index] for index in _neighbours(axis))
    np.add(first, second, out=finer[(*before, slice(1, None, 2))])
    values = finer
  return values


def on_finer_grid(marks: np.ndarray, resolution: int) -> np.ndarray:
  """Transfers marks of a grid to the points it shares with a finer grid."""
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
  """Finds points of a finer grid where a piece of surface may hide.

  Args:
    values: Field on the coarse grid, [R+1] * 3.
    level: Value of the field on the surface.
    band: Largest difference to the level of values that may hide a piece.
    resolution: Number of cells along an axis of the finer grid.

  Returns:
    Marks, bool [resolution + 1] * 3.
  """
  highest = _among_neighbours(values, np.maximum)
  lowest = _among_neighbours(values, np.minimum)
  explained = (highest > level) & (lowest <= level)
  distance = np.abs(values - level)
  hides = distance <= _REACH * (highest - lowest)
  hides &= (distance < band) & ~explained
  hides &= _closest_along_steep_axis(values, distance)
  return _around(hides, resolution)


def _among_neighbours(values: np.ndarray, choose: np.ufunc) -> np.ndarray:
  """The largest or smallest value of each point's 3^3 neighbourhood."""
  for axis in range(values.ndim):
    but_last, but_first = _neighbours(axis)
    chosen = values.copy()
    choose(chosen[but_last], values[but_first], out=chosen[but_last])
    choose(chosen[but_first], values[but_last], out=chosen[but_first])
    values = chosen
  return values


def _closest_along_steep_axis(
  values: np.ndarray, distance: np.ndarray
) -> np.ndarray:
  """Points at most as far as both neighbours on an axis of steep change."""
  slopes, closest = [], []
  for axis in range(values.ndim):
    but_last, but_first = _neighbours(axis)
    change = np.abs(values[but_first] - values[but_last])
    slope = np.zeros_like(values)
    slope[but_last] = change
    np.maximum(slope[but_first], change, out=slope[but_first])
    slopes.append(slope)
    is_closest = np.ones(values.shape, bool)
    is_closest[but_last] = distance[but_last] <= distance[but_first]
    is_closest[but_first] &= distance[but_first] <= distance[but_last]
    closest.append(is_closest)
  steep = _STEEP * np.maximum.reduce(slopes)
  return np.logical_or.reduce(
    [
      (slope >= steep) & is_closest
      for slope, is_closest in zip(slopes, closest)
    ]
  )


def _neighbours(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
  """Indices of all points but the last on an axis, and of all but the first."""
  before = (slice(None),) * axis
  return (*before, slice(None, -1)), (*before, slice(1, None))


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
