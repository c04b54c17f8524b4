"""Polygons of scene files as triangles."""

import numpy as np

from sculpt4d_jax.io import asset_files

AssetError = asset_files.AssetError


def fan_triangles(
    counts: np.ndarray, corners: np.ndarray, num_points: int
) -> np.ndarray:
  """Cuts polygons into fans around their first corners.

  Args:
    counts: Corners of each polygon; those below 3 give no triangle.
    corners: Vertex indices of all polygons, one after the other.
    num_points: Vertices that there are.

  Returns:
    Vertex indices, int32 [T, 3], in the polygons' own winding.

  Raises:
    AssetError: The counts do not add up, or a vertex does not exist.
  """
  counts = np.asarray(counts, np.int64).reshape(-1)
  corners = np.asarray(corners, np.int64).reshape(-1)
  if counts.sum() != len(corners) or (counts < 0).any():
    raise AssetError("a mesh's face counts and indices do not match.")
  if len(corners) and not (0 <= corners.min() and corners.max() < num_points):
    raise AssetError("a face has a vertex that does not exist.")
  begin = np.cumsum(counts) - counts
  fans = np.maximum(counts - 2, 0)
  first = np.repeat(begin, fans)
  offset = np.arange(fans.sum()) - np.repeat(np.cumsum(fans) - fans, fans)
  rows = np.stack([first, first + offset + 1, first + offset + 2], axis=1)
  return corners[rows].astype(np.int32)
