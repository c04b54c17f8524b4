"""Winding numbers of a closed mesh at all points of a grid.

A line through each column of the grid meets the surface in points where the
winding number changes by one, up where the line leaves through a face that is
wound outwards. The faces that a column meets are found by half-planes. A column
that runs exactly through an edge or a corner is shifted by an infinitesimal amount,
the same for all faces, so that each crossing is counted once.

Source: Edelsbrunner and Muecke, Simulation of Simplicity, 1990, for the shift.
"""

from collections.abc import Iterator

import numpy as np

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import mesh_distance

_CANDIDATES = 1 << 20  # Pairs of a face and a column tested at a time.


def grid_winding(
  mesh: mesh_lib.TriangleMesh, centres: np.ndarray
) -> np.ndarray:
  """Winding numbers at the points (x, y, z) with each coordinate of `centres`.

  Args:
    mesh: A closed mesh: every edge is used equally often in both directions, by
      positions. Parts may overlap, and each adds its own number.
    centres: Coordinates in ascending order, [R].

  Returns:
    float64 [R, R, R]: 1 inside a mesh that is wound outwards, 0 outside.
  """
  size = len(centres)
  # changes[column, i]: crossings with exactly i points of the column below.
  changes = np.zeros((size * size, size + 1))
  for columns, heights, signs in _crossings(mesh, centres):
    below = np.searchsorted(centres, heights)
    np.add.at(changes, (columns, below), signs)
  # A point is as deep as there are crossings above it.
  winding = np.cumsum(changes[:, :0:-1], axis=1)[:, ::-1]
  # Rounding can miss a face, and then a column does not end outside.
  odd = np.flatnonzero(changes.sum(1))
  if len(odd):
    x, y = centres[odd // size], centres[odd % size]
    points = np.empty((len(odd), size, 3))
    points[..., 0], points[..., 1] = x[:, None], y[:, None]
    points[..., 2] = centres
    winding[odd] = mesh_distance.winding_number(
      mesh, points.reshape(-1, 3)
    ).reshape(len(odd), size)
  return winding.reshape(size, size, size)


def _crossings(
  mesh: mesh_lib.TriangleMesh, centres: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
  """Columns [C], heights [C] and signs [C] of crossings, in portions."""
  corners = mesh.vertices.astype(np.float64)[mesh.faces]
  flat = corners[..., :2]
  first = np.searchsorted(centres, flat.min(1), "left")
  counts = np.searchsorted(centres, flat.max(1), "right") - first
  pairs = counts.prod(1)
  met = np.flatnonzero(pairs)
  ends = np.cumsum(pairs[met])
  begin = 0
  while begin < len(met):
    done = ends[begin - 1] if begin else 0
    end = max(np.searchsorted(ends, done + _CANDIDATES), begin + 1)
    faces = met[begin:end]
    number = np.repeat(np.arange(len(faces)), pairs[faces])
    rank = (
      np.arange(len(number)) - (ends[begin:end] - pairs[faces] - done)[number]
    )
    rows = counts[faces, 1][number]
    x = first[faces, 0][number] + rank // rows
    y = first[faces, 1][number] + rank % rows
    at = np.stack([centres[x], centres[y]], axis=1)
    signs, heights = _meet(corners[faces][number], at)
    hit = np.flatnonzero(signs)
    yield (x * len(centres) + y)[hit], heights[hit], signs[hit]
    begin = end


def _meet(corners: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Where vertical lines meet triangles.

  Args:
    corners: [C, 3, 3].
    at: The line of each triangle, [C, 2].

  Returns:
    1 where a line leaves upwards through the front of its triangle, -1 through
    the back, 0 where it misses it, [C]; and the heights [C].
  """
  weights, is_left = np.empty((2, 3, len(at)))
  for side in range(3):
    a, b = corners[:, (side + 1) % 3], corners[:, (side + 2) % 3]
    # Both faces of an edge compute the same numbers.
    swapped = (a[:, 0] > b[:, 0]) | ((a[:, 0] == b[:, 0]) & (a[:, 1] > b[:, 1]))
    low = np.where(swapped[:, None], b, a)
    dx, dy = (
      np.abs(b[:, 0] - a[:, 0]),
      np.where(swapped, -1, 1) * (b[:, 1] - a[:, 1]),
    )
    area = dx * (at[:, 1] - low[:, 1]) - dy * (at[:, 0] - low[:, 0])
    # Shifted by (e, e^2), a point on the edge is left of it if the edge falls.
    left = (area > 0) | ((area == 0) & (dy <= 0))
    weights[side] = np.where(swapped, -area, area)
    is_left[side] = left != swapped
  sides = is_left.sum(0)
  signs = np.where(sides == 3, 1.0, np.where(sides == 0, -1.0, 0.0))
  total = weights.sum(0)
  heights = np.einsum("sc,cs->c", weights, corners[..., 2])
  mean = corners[..., 2].mean(1)
  heights = np.divide(heights, total, out=mean, where=total != 0)
  return signs, heights
