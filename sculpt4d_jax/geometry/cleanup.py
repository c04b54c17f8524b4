"""Cleans up extracted meshes: removes specks, limits the number of faces."""

import fast_simplification
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib

TriangleMesh = mesh_lib.TriangleMesh


def face_components(mesh: TriangleMesh) -> np.ndarray:
  """Number of the connected piece each face belongs to, int32 [T].

  Faces are connected where they share a vertex. Pieces are numbered by their
  first face.
  """
  edges = np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]]])
  ones = np.ones(len(edges), bool)
  graph = sparse.coo_array(
    (ones, edges.T), shape=(mesh.num_vertices, mesh.num_vertices)
  )
  count, of_vertex = csgraph.connected_components(graph, directed=False)
  if count == 1:  # As most meshes have, which need no numbering.
    return np.zeros(mesh.num_faces, np.int32)
  _, first, of_face = np.unique(
    of_vertex[mesh.faces[:, 0]], return_index=True, return_inverse=True
  )
  rank = np.empty(len(first), np.int32)
  rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
  return rank[of_face]


def keep_largest_components(
  mesh: TriangleMesh,
  *,
  max_components: int | None = None,
  min_area_fraction: float = 0.01,
) -> TriangleMesh:
  """Removes small pieces; the rest keeps its order.

  Args:
    mesh: Any mesh.
    max_components: Largest number of pieces kept, by area; None: any number.
    min_area_fraction: Pieces with less area than this share of the largest
      piece's are removed.

  Raises:
    ValueError: An argument is out of range.
  """
  if max_components is not None and max_components < 1:
    raise UserError(f"max_components={max_components} must be at least 1.")
  if not 0 <= min_area_fraction <= 1:
    raise UserError(
      f"min_area_fraction={min_area_fraction} must lie in [0, 1]."
    )
  if mesh.is_empty:
    return mesh
  component = face_components(mesh)
  if not component.any():  # The only piece is the largest.
    return mesh
  # Float64 for sums over a million faces; the factor 2 does not matter.
  face_area = np.linalg.norm(mesh.face_cross_products(), axis=1)
  area = np.bincount(component, weights=face_area)
  keep = area >= min_area_fraction * area.max()
  if max_components is not None:
    # Stable: of equal pieces the first is kept.
    keep[np.argsort(-area, kind="stable")[max_components:]] = False
  return _select_faces(mesh, keep[component])


def simplify(mesh: TriangleMesh, max_faces: int) -> TriangleMesh:
  """Collapses edges until at most `max_faces` faces remain.

  Winding is kept. A mesh within the budget is returned unchanged; more faces
  may remain if the topology allows no further collapses.

  Raises:
    ValueError: The budget is below the 4 faces of the smallest closed mesh.

  Source: Garland and Heckbert, Surface Simplification Using Quadric Error
  Metrics, 1997, in the fast variant of the package fast-simplification.
  """
  if max_faces < 4:
    raise UserError(f"max_faces={max_faces} must be at least 4.")
  if mesh.num_faces <= max_faces:
    return mesh
  vertices, faces = fast_simplification.simplify(
    mesh.vertices, mesh.faces, target_count=max_faces
  )
  simple = TriangleMesh(vertices, faces)
  a, b, c = simple.faces.T
  return _select_faces(simple, (a != b) & (b != c) & (c != a))


def _select_faces(mesh: TriangleMesh, keep: np.ndarray) -> TriangleMesh:
  """The kept faces and the vertices they use."""
  if keep.all():
    return mesh
  faces = mesh.faces[keep]
  used = np.zeros(mesh.num_vertices, bool)
  used[faces] = True
  return TriangleMesh(mesh.vertices[used], (np.cumsum(used) - 1)[faces])
