"""Polygons of scene files as triangles, and their frames as one mesh."""

from collections.abc import Iterable

import numpy as np

from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.io.assets import asset_files

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


def join_frames(
  frames: Iterable[tuple[np.ndarray, np.ndarray]], max_bytes: int
) -> deforming_mesh.DeformingMesh:
  """One deforming mesh of the frames of a scene.

  Args:
    frames: Vertices [V, 3] and triangles [T, 3] of one time after the other.
    max_bytes: All vertices together may take; counted as they come.

  Raises:
    AssetError: Topology changes, there are no faces, positions are not finite,
      or there are more of them than allowed.
  """
  budget = asset_files.Budget(max_bytes)
  positions, faces = [], None
  for vertices, triangles in frames:
    budget.take(vertices.nbytes, "the animated vertices")
    if faces is None:
      faces = triangles
    elif not np.array_equal(faces, triangles) or len(vertices) != len(
      positions[0]
    ):
      raise AssetError("the faces change over time; no point can be followed.")
    positions.append(vertices)
  result = np.stack(positions)
  if not len(faces):
    raise AssetError("the meshes have no faces.")
  if not np.isfinite(result).all():
    raise AssetError("vertices are not finite.")
  return deforming_mesh.DeformingMesh(result, faces)
