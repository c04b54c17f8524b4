"""Points on a triangle mesh: uniform by area, or on its sharp edges.

A point is stored as a face and barycentrics in it. Evaluated on deformed meshes
of the same topology, they give the same material point in every frame:
consistent surface sampling.

An edge is sharp if the planes of its two faces meet at a dihedral angle above a
threshold: 0 on a flat surface, 90 degrees on a cube. Points are distributed to
  edges by the area of their two faces, so an edge between large faces gets more
  points than an equally long edge in a fine ornament.

Corners at exactly the same position count as one vertex, because files split
vertices at hard edges to store separate normals or texture coordinates. The
angle does not depend on the winding of the two faces. Boundary edges of an open
surface have one face, thus no angle, and are not sharp; edges with three or
more faces are.
"""

import dataclasses

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib

TriangleMesh = mesh_lib.TriangleMesh


@dataclasses.dataclass(frozen=True)
class SurfacePoints:
  """Points on the surface of a mesh.

  Attributes:
    positions: float32 [P, 3].
    normals: Unit normals of the faces, float32 [P, 3]; zero on a face that has
      collapsed to a line or a point.
    barycentrics: Weights of the corners of the face, float32 [P, 3], sum 1.
    face_ids: int32 [P].
  """

  positions: np.ndarray
  normals: np.ndarray
  barycentrics: np.ndarray
  face_ids: np.ndarray

  def __len__(self) -> int:
    return len(self.face_ids)


@dataclasses.dataclass(frozen=True)
class SharpEdges:
  """Sharp edges of a mesh, each given by its sides in two adjacent faces.

  Attributes:
    face_ids: Two of the faces at each edge, int32 [E, 2].
    corners: Start and end corner of the edge in each of these faces, 0..2,
      int32 [E, 2, 2]; the same end of the edge is listed first in both faces.
    lengths: float64 [E].
    areas: Area of the two faces at each edge together, float64 [E].
  """

  face_ids: np.ndarray
  corners: np.ndarray
  lengths: np.ndarray
  areas: np.ndarray

  def __len__(self) -> int:
    return len(self.lengths)


def sample_surface(
  mesh: TriangleMesh, num_points: int, rng: np.random.Generator
) -> SurfacePoints:
  """Samples points on a triangle mesh, uniformly by area.

  Args:
    mesh: Any triangle mesh; it need not be closed.
    num_points: Number of points P.
    rng: Randomness; the same state gives the same points.

  Returns:
    P points. Faces without area get none.

  Raises:
    ValueError: No face has positive area, or it is not finite.

  Source: Osada et al., Shape Distributions, 2002 (square-root barycentrics).
  """
  _check_num_points(num_points)
  areas = np.linalg.norm(_cross_products(mesh), axis=1)
  if not areas.sum() > 0.0 or not np.isfinite(areas.sum()):
    raise UserError(
      f"Cannot sample a surface of area {areas.sum() / 2}: the mesh has"
      f" {mesh.num_faces} faces and {mesh.num_vertices} vertices."
    )
  face_ids = _choose(areas, num_points, rng)
  root = np.sqrt(rng.random(num_points))
  split = rng.random(num_points)
  barycentrics = np.stack(
    [1.0 - root, root * (1.0 - split), root * split], axis=1
  )
  return points_at(mesh, face_ids, barycentrics)


def sample_sharp_edges(
  mesh: TriangleMesh,
  num_points: int,
  rng: np.random.Generator,
  *,
  angle_degrees: float = 30.0,
) -> SurfacePoints:
  """Samples points on the sharp edges of a mesh, weighted by area.

  An edge is drawn in proportion to the area of the two faces at it, and a point
  on it uniformly. Each point belongs to one of the two faces, drawn at random,
  and has that face's normal, so that both normals at an edge occur.

  Args:
    mesh: Any triangle mesh.
    num_points: Number of points P.
    rng: Randomness; the same state gives the same points.
    angle_degrees: Edges with a dihedral angle above this are sharp, 0..180.

  Returns:
    P points, or NO point if the mesh has no sharp edge. A caller that needs P
    rows falls back to `sample_surface`.
  """
  _check_num_points(num_points)
  edges = find_sharp_edges(mesh, angle_degrees)
  if not len(edges):
    return points_at(
      mesh, np.zeros([0], np.int32), np.zeros([0, 3], np.float32)
    )
  chosen = _choose(edges.areas, num_points, rng)
  side = rng.integers(0, 2, num_points)
  position = rng.random(num_points)
  corners = edges.corners[chosen, side]  # [P, 2]
  barycentrics = np.zeros([num_points, 3])
  rows = np.arange(num_points)
  barycentrics[rows, corners[:, 0]] = 1.0 - position
  barycentrics[rows, corners[:, 1]] = position
  return points_at(mesh, edges.face_ids[chosen, side], barycentrics)


def points_at(
  mesh: TriangleMesh, face_ids: np.ndarray, barycentrics: np.ndarray
) -> SurfacePoints:
  """Evaluates stored points on the original mesh or a deformed one.

  Args:
    mesh: A mesh with the faces that the points were sampled on; its vertices
      may have moved.
    face_ids: Integers [P].
    barycentrics: [P, 3].

  Raises:
    ValueError: The shapes differ or a face does not exist.
  """
  face_ids = np.asarray(face_ids, np.int32)
  barycentrics = np.asarray(barycentrics, np.float32)
  if face_ids.ndim != 1 or barycentrics.shape != (len(face_ids), 3):
    raise UserError(
      "Expected face_ids [P] and barycentrics [P, 3], got"
      f" {face_ids.shape} and {barycentrics.shape}."
    )
  if len(face_ids) and not (
    0 <= face_ids.min() and face_ids.max() < mesh.num_faces
  ):
    raise UserError(
      f"face_ids are {face_ids.min()}..{face_ids.max()}, but the mesh has"
      f" {mesh.num_faces} faces; is it the mesh that was sampled?"
    )
  corners = mesh.vertices[mesh.faces[face_ids]]  # [P, 3, 3]
  cross = np.cross(
    corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
  ).astype(np.float64)
  length = np.linalg.norm(cross, axis=1, keepdims=True)
  normals = np.where(length > 0.0, cross / np.where(length > 0, length, 1), 0)
  return SurfacePoints(
    positions=np.einsum("pc,pcx->px", barycentrics, corners),
    normals=normals.astype(np.float32),
    barycentrics=barycentrics,
    face_ids=face_ids,
  )


def find_sharp_edges(
  mesh: TriangleMesh, angle_degrees: float = 30.0
) -> SharpEdges:
  """Finds the edges with a dihedral angle above `angle_degrees`."""
  if not 0.0 <= angle_degrees <= 180.0:
    raise UserError(f"angle_degrees={angle_degrees} must lie in 0..180.")
  cross = _cross_products(mesh)
  areas = np.linalg.norm(cross, axis=1)
  solid = np.flatnonzero(areas > 0.0)  # Degenerate faces have no plane.
  normals = cross[solid] / areas[solid, None]
  welded = mesh.welded()[0].faces[solid]  # [T, 3]

  # All sides of all faces; rows 3 t + c for the side from corner c to c + 1.
  start = welded.reshape(-1)
  end = np.roll(welded, -1, axis=1).reshape(-1)
  forward = start < end
  key = np.minimum(start, end).astype(np.int64) * len(mesh.vertices)
  key += np.maximum(start, end)
  order = np.argsort(key, kind="stable")
  _, first, count = np.unique(key[order], return_index=True, return_counts=True)
  a, b = order[first[count >= 2]], order[first[count >= 2] + 1]

  # Consistently wound faces use their common edge in opposite directions.
  cosine = np.sum(normals[a // 3] * normals[b // 3], axis=1)
  cosine = np.where(forward[a] == forward[b], -cosine, cosine)
  sharp = cosine < np.cos(np.radians(angle_degrees))
  sharp |= count[count >= 2] > 2
  a, b = a[sharp], b[sharp]

  sides = np.stack([a, b], axis=1)  # [E, 2]
  corners = np.stack([sides % 3, (sides + 1) % 3], axis=2)  # [E, 2, 2]
  corners = np.where(forward[sides][..., None], corners, corners[..., ::-1])
  face_ids = solid[sides // 3].astype(np.int32)
  ends = mesh.vertices[mesh.faces[face_ids[:, :1], corners[:, 0]]].astype(
    np.float64
  )  # [E, 2, 3]
  return SharpEdges(
    face_ids=face_ids,
    corners=corners.astype(np.int32),
    lengths=np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1),
    areas=areas[face_ids].sum(1) / 2,
  )


def _check_num_points(num_points: int) -> None:
  if num_points < 0:
    raise UserError(f"num_points={num_points} must not be negative.")


def _cross_products(mesh: TriangleMesh) -> np.ndarray:
  """Face normals times twice the areas [T, 3], in float64: faces are small."""
  corners = mesh.vertices.astype(np.float64)[mesh.faces]
  return np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])


def _choose(
  weights: np.ndarray, num_draws: int, rng: np.random.Generator
) -> np.ndarray:
  """Draws indices in proportion to weights, never those of weight 0."""
  cumulative = np.cumsum(weights)
  draws = rng.random(num_draws) * cumulative[-1]
  chosen = np.searchsorted(cumulative, draws, side="right")
  return np.minimum(chosen, np.flatnonzero(weights)[-1]).astype(np.int32)
