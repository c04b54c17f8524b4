"""Distances to a mesh, and inside tests.

Distance and sign are computed separately. The distance is exact. A point is
inside if the generalised winding number is above one half, which is robust to
open or self-intersecting meshes and small holes. (libigl's distance signed by
winding numbers is scaled by them, and too small near open surfaces.)

Source: Barill et al., Fast Winding Numbers for Soups and Clouds, 2018, and AABB
distance queries, both as implemented by libigl.
"""

import dataclasses

import igl
import numpy as np
from scipy import spatial

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib

TriangleMesh = mesh_lib.TriangleMesh


@dataclasses.dataclass(frozen=True)
class ClosestPoints:
  """The points of a mesh that are closest to query points.

  Attributes:
    distances: float64 [Q].
    face_ids: int32 [Q].
    positions: float64 [Q, 3].
  """

  distances: np.ndarray
  face_ids: np.ndarray
  positions: np.ndarray


def closest_points(mesh: TriangleMesh, points: np.ndarray) -> ClosestPoints:
  """Finds the closest points of a mesh.

  Args:
    mesh: Mesh with at least one face; it need not be closed.
    points: [Q, 3].

  Raises:
    ValueError: The mesh has no faces.
  """
  if mesh.is_empty:
    raise UserError("A mesh without faces has no closest point.")
  points = np.ascontiguousarray(points, np.float64)
  if not len(points):
    none = np.zeros(0)
    return ClosestPoints(none, none.astype(np.int32), points)
  square, face_ids, positions = igl.point_mesh_squared_distance(
    points, *_arrays(mesh)
  )
  return ClosestPoints(
    np.sqrt(np.maximum(square, 0.0)), face_ids.astype(np.int32), positions
  )


def unsigned_distance(
  mesh: TriangleMesh, points: np.ndarray, cap: float = np.inf
) -> np.ndarray:
  """Distances [Q] of points [Q, 3]; infinite if the mesh has no faces.

  Args:
    mesh: It need not be closed.
    points: [Q, 3].
    cap: Upper limit of the result. Searches are slow where many faces are about
      equally far (the centre of a ball); the cap avoids them.
  """
  if mesh.is_empty:
    return np.full(len(points), cap)
  if not np.isfinite(cap):
    return closest_points(mesh, points).distances
  near = np.flatnonzero(_may_be_within(mesh, points, cap))
  distances = np.full(len(points), float(cap))
  exact = closest_points(mesh, np.asarray(points)[near]).distances
  distances[near] = np.minimum(exact, cap)
  return distances


def _may_be_within(
  mesh: TriangleMesh, points: np.ndarray, cap: float
) -> np.ndarray:
  """Points [Q] that are not excluded by the balls around the faces."""
  corners = mesh.vertices.astype(np.float64)[mesh.faces]
  centres = corners.mean(1)
  radii = np.linalg.norm(corners - centres[:, None], axis=-1).max(1)
  distances, _ = spatial.cKDTree(centres).query(
    points, distance_upper_bound=cap + radii.max() + 1e-9
  )
  return np.isfinite(distances)


def winding_number(mesh: TriangleMesh, points: np.ndarray) -> np.ndarray:
  """Generalised winding numbers [Q] at points [Q, 3].

  1 inside of a closed mesh and 0 outside; overlapping parts add up, and a part
  wound inside out subtracts.
  """
  if mesh.is_empty or not len(points):
    return np.zeros(len(points))
  return igl.fast_winding_number(
    *_arrays(mesh), np.ascontiguousarray(points, np.float64)
  )


def signed_distance(
  mesh: TriangleMesh, points: np.ndarray, cap: float = np.inf
) -> np.ndarray:
  """Signed distances [Q], positive inside of a mesh that is wound outwards.

  `cap` bounds their size, see `unsigned_distance`.
  """
  distance = unsigned_distance(mesh, points, cap)
  if mesh.is_empty:
    return -distance
  # Outside of the box the winding number is below one half.
  used = mesh.vertices[np.unique(mesh.faces)]
  boxed = np.flatnonzero(
    np.all((points >= used.min(0)) & (points <= used.max(0)), axis=1)
  )
  inside = boxed[winding_number(mesh, np.asarray(points)[boxed]) > 0.5]
  signed = -distance
  signed[inside] = distance[inside]
  return signed


def pseudonormal_inside(mesh: TriangleMesh, points: np.ndarray) -> np.ndarray:
  """Whether points [Q, 3] are inside of a CLOSED mesh, by another method.

  The sign is that of the angle-weighted normal at the closest point, which is
  independent of winding numbers and can verify them.

  Source: Baerentzen and Aanaes, Signed Distance Computation Using the Angle
  Weighted Pseudonormal, 2005, in libigl.
  """
  signed = igl.signed_distance(
    np.ascontiguousarray(points, np.float64),
    *_arrays(mesh),
    sign_type=igl.SIGNED_DISTANCE_TYPE_PSEUDONORMAL,
  )[0]
  return signed < 0


def signed_volume(mesh: TriangleMesh) -> float:
  """Volume of a closed mesh; negative if it is wound inside out.

  For an open mesh: the volume of the cone over it from its centroid.
  """
  if mesh.is_empty:
    return 0.0
  corners = mesh.vertices.astype(np.float64)[mesh.faces]
  corners = corners - corners.mean(axis=(0, 1))
  cross = np.cross(corners[:, 1], corners[:, 2])
  return float(np.einsum("tx,tx->", corners[:, 0], cross) / 6)


def area(mesh: TriangleMesh) -> float:
  """Area of all faces."""
  cross = mesh.face_cross_products().astype(np.float64)
  return float(np.linalg.norm(cross, axis=1).sum() / 2)


def is_closed(mesh: TriangleMesh) -> bool:
  """Whether every edge is used once in each direction."""
  if mesh.is_empty:
    return False
  start = mesh.faces.reshape(-1).astype(np.int64)
  end = np.roll(mesh.faces, -1, axis=1).reshape(-1).astype(np.int64)
  count = mesh.num_vertices
  forward, backward = start * count + end, end * count + start
  return bool(np.array_equal(np.sort(forward), np.sort(backward)))


def _arrays(mesh: TriangleMesh) -> tuple[np.ndarray, np.ndarray]:
  return mesh.vertices.astype(np.float64), mesh.faces.astype(np.int64)
