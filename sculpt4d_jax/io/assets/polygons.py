"""Polygons of scene files as triangles, and their frames as one mesh.

Convex polygons become fans; others are cut by mapbox's ear clipping.
"""

from collections.abc import Hashable, Iterable

import numpy as np

from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.io.assets import asset_files

AssetError = asset_files.AssetError

# A corner is turned inwards if the sine of its angle is below minus this.
_STRAIGHT = 1e-6


class Faces:
  """Triangles of the meshes of a scene, the same in all frames.

  A polygon is cut once, in the frame that is read first: a moving one may be
  concave at another corner later, and its triangles must not change then.
  """

  def __init__(self):
    self._known: dict[Hashable, tuple[np.ndarray, ...]] = {}

  def triangles(
    self,
    mesh: Hashable,
    counts: np.ndarray,
    corners: np.ndarray,
    points: np.ndarray,
  ) -> np.ndarray:
    """The triangles of a mesh, int32 [T, 3]; see `triangulate`.

    Args:
      mesh: Key of the mesh.
      counts: Corners of each polygon.
      corners: Vertex indices of all polygons.
      points: Positions [V, 3].
    """
    known = self._known.get(mesh)
    if (
      known is not None
      and known[3] == len(points)
      and np.array_equal(known[0], counts)
      and np.array_equal(known[1], corners)
    ):
      return known[2]
    made = triangulate(counts, corners, points)
    self._known[mesh] = counts, corners, made, len(points)
    return made


def triangulate(
  counts: np.ndarray, corners: np.ndarray, points: np.ndarray
) -> np.ndarray:
  """Cuts polygons into triangles.

  Args:
    counts: Corners of each polygon; those below 3 give no triangle.
    corners: Vertex indices of all polygons, one after the other.
    points: Positions of the vertices, float [V, 3].

  Returns:
    Vertex indices, int32 [T, 3], in the polygons' own winding.

  Raises:
    AssetError: The counts do not add up, or a vertex does not exist.
    ImportError: A polygon is concave, and mapbox_earcut is not installed.
  """
  counts = np.asarray(counts, np.int64).reshape(-1)
  corners = np.asarray(corners, np.int64).reshape(-1)
  fans = fan_triangles(counts, corners, len(points))
  concave = np.flatnonzero(_is_concave(counts, corners, points))
  if not len(concave):
    return fans
  begin = np.cumsum(counts) - counts
  first = np.cumsum(np.maximum(counts - 2, 0)) - np.maximum(counts - 2, 0)
  for polygon in concave:
    number = counts[polygon]
    ring = corners[begin[polygon] : begin[polygon] + number]
    cut = _clip_ears(points[ring])
    # Degenerate rings may give fewer; those keep their fan.
    if len(cut) == number - 2:
      fans[first[polygon] : first[polygon] + number - 2] = ring[cut]
  return fans


def _is_concave(
  counts: np.ndarray, corners: np.ndarray, points: np.ndarray
) -> np.ndarray:
  """Polygons with a corner that is turned inwards, bool [polygons]."""
  result = np.zeros(len(counts), bool)
  large = np.flatnonzero(counts > 3)
  if not len(large):
    return result
  begin = np.cumsum(counts) - counts
  sizes = counts[large]
  owner = np.repeat(np.arange(len(large)), sizes)
  place = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)

  def corner(step: int) -> np.ndarray:
    index = begin[large][owner] + (place + step) % sizes[owner]
    return points[corners[index]].astype(np.float64)

  here, before, after = corner(0), corner(-1), corner(1)
  # Newell's normal; the sum of the corners' cross products is twice the area.
  normal = np.zeros((len(large), 3))
  centre = np.zeros((len(large), 3))
  np.add.at(centre, owner, here / sizes[owner][:, None])
  np.add.at(
    normal, owner, np.cross(here - centre[owner], after - centre[owner])
  )
  turn = np.cross(here - before, after - here)
  lengths = np.linalg.norm(here - before, axis=1)
  lengths *= np.linalg.norm(after - here, axis=1)
  lengths *= np.linalg.norm(normal, axis=1)[owner]
  sine = (turn * normal[owner]).sum(1)
  inward = (sine < -_STRAIGHT * lengths) & np.isfinite(sine)
  result[large[owner[inward]]] = True
  return result


def _clip_ears(ring: np.ndarray) -> np.ndarray:
  """Triangles [n - 2, 3] of a polygon's corners [n, 3], in its winding."""
  try:
    import mapbox_earcut
  except ImportError as error:
    raise MissingPackageError(
      "A polygon is concave, which needs the package mapbox_earcut: pip install"
      " 'sculpt4d-jax[usd]' or pip install mapbox_earcut."
    ) from error
  ring = np.asarray(ring, np.float64)
  ring = ring - ring.mean(0)
  normal = np.cross(ring, np.roll(ring, -1, axis=0)).sum(0)
  # The plane whose third axis is the normal, seen from outside.
  axes = np.linalg.svd(normal[None])[2]
  u = axes[1]
  v = np.cross(normal / max(np.linalg.norm(normal), 1e-300), u)
  flat = np.ascontiguousarray(np.stack([ring @ u, ring @ v], axis=1))
  cut = mapbox_earcut.triangulate_float64(
    flat, np.array([len(ring)], np.uint32)
  )
  cut = np.asarray(cut, np.int64).reshape(-1, 3)
  a, b, c = (flat[cut[:, i]] for i in range(3))
  area = (b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]
  cut[area < 0] = cut[area < 0][:, ::-1]
  return cut


def fan_triangles(
  counts: np.ndarray, corners: np.ndarray, num_points: int
) -> np.ndarray:
  """Cuts polygons into fans around their first corners.

  Args:
    counts: Corners of each polygon; those below 3 give no triangle.
    corners: Vertex indices of all polygons, one after the other.
    num_points: Number of vertices.

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
    frames: Vertices, float64 [V, 3], and triangles [T, 3] of one time after
      the other. Far from the origin they are moved to it.
    max_bytes: Limit on all vertices together, checked frame by frame.

  Raises:
    AssetError: Topology changes, there are no faces, positions are not finite,
      or their number exceeds the limit.
  """
  budget = asset_files.Budget(max_bytes)
  positions, faces, offset = [], None, np.zeros(3)
  for vertices, triangles in frames:
    budget.take(vertices.size * 4, "the animated vertices")
    if faces is None:
      faces = triangles
      if len(vertices):
        offset = deforming_mesh.rounding_offset(vertices)
    elif not np.array_equal(faces, triangles) or len(vertices) != len(
      positions[0]
    ):
      raise AssetError("the faces change over time; no point can be followed.")
    positions.append((vertices - offset).astype(np.float32))
  result = np.stack(positions)
  if not len(faces):
    raise AssetError("the meshes have no faces.")
  if not np.isfinite(result).all():
    raise AssetError("vertices are not finite.")
  return deforming_mesh.DeformingMesh(result, faces)
