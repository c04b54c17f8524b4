"""The two surfaces of a registration: the moving model and its target.

Both are sampled points with normals. Matching finds nearest neighbours by
(position, scaled normal), which keeps the two sides of a thin part apart.
"""

import dataclasses

import numpy as np
from scipy import sparse
from scipy import spatial

from sculpt4d_jax.geometry import mesh as mesh_lib

TriangleMesh = mesh_lib.TriangleMesh


@dataclasses.dataclass(frozen=True)
class Model:
  """The moving mesh, in float64.

  Attributes:
    vertices: Rest positions [V, 3].
    faces: Vertex indices [T, 3].
    gather: Sparse [V, T]: sums over the faces at a vertex.
  """

  vertices: np.ndarray
  faces: np.ndarray
  gather: sparse.csr_array

  @classmethod
  def of(cls, vertices: np.ndarray, faces: np.ndarray) -> "Model":
    """The model of a mesh: vertices [V, 3], faces [T, 3]."""
    vertices = np.asarray(vertices, np.float64)
    faces = np.asarray(faces, np.int64)
    corners = (faces.T.ravel(), np.tile(np.arange(len(faces)), 3))
    gather = sparse.csr_array(
      (np.ones(faces.size), corners), shape=(len(vertices), len(faces))
    )
    return cls(vertices, faces, gather)

  def normals(self, vertices: np.ndarray) -> np.ndarray:
    """Unit normals [V, 3] of the mesh at other positions [V, 3]."""
    return unit(self.gather @ cross_products(vertices, self.faces))

  def vertex_areas(self) -> np.ndarray:
    """A third of the area of the faces at each vertex, at rest [V]."""
    areas = np.linalg.norm(cross_products(self.vertices, self.faces), axis=1)
    return self.gather @ areas / 6


class Target:
  """A frame's surface: points by area, with normals.

  Attributes:
    points: Positions [M, 3], in random order.
    normals: Unit normals, interpolated from the vertices [M, 3]; they find
      matches.
    planes: Unit normals of the faces [M, 3]: distances to these planes are
      correct at sharp edges too.
  """

  def __init__(
    self,
    vertices: np.ndarray,
    faces: np.ndarray,
    num_points: int,
    normal_scale: float,
    rng: np.random.Generator,
  ):
    """Samples a mesh.

    Args:
      vertices: Positions [V, 3].
      faces: Vertex indices [T, 3]; at least one face with an area.
      num_points: Points M.
      normal_scale: Weight of normals in the distance of `match`.
      rng: Randomness of the points.
    """
    model = Model.of(vertices, faces)
    self.points, face_ids, weights = sample(
      model.vertices, model.faces, num_points, rng
    )
    corners = model.normals(model.vertices)[model.faces[face_ids]]
    self.normals = unit(np.einsum("pc,pcx->px", weights, corners))
    faces_at = model.faces[face_ids]
    self.planes = unit(cross_products(model.vertices, faces_at))
    self._scale = normal_scale
    self._tree = spatial.cKDTree(self.features(self.points, self.normals))

  def features(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """The space in which distances are measured: [M, 6]."""
    return np.concatenate([points, self._scale * normals], axis=1)

  def match(
    self, points: np.ndarray, normals: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Nearest points of the target and the planes there, each [M, 3]."""
    _, rows = self._tree.query(self.features(points, normals))
    return self.points[rows], self.planes[rows]


def sample(
  vertices: np.ndarray,
  faces: np.ndarray,
  num_points: int,
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Points by area [M, 3], their faces [M] and barycentrics [M, 3].

  Source: Osada et al., Shape Distributions, 2002 (square-root barycentrics).
  """
  areas = np.linalg.norm(cross_products(vertices, faces), axis=1)
  face_ids = rng.choice(len(areas), num_points, p=areas / areas.sum())
  root = np.sqrt(rng.uniform(size=num_points))
  along = rng.uniform(size=num_points)
  weights = np.stack([1 - root, root * (1 - along), root * along], axis=1)
  points = np.einsum("pc,pcx->px", weights, vertices[faces[face_ids]])
  return points, face_ids, weights


def cross_products(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
  """Face normals times twice the areas [T, 3]."""
  first, second, third = (vertices[faces[:, corner]] for corner in range(3))
  return np.cross(second - first, third - first)


def unit(vectors: np.ndarray) -> np.ndarray:
  """Unit vectors [M, 3]; zero vectors stay zero."""
  length = np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / np.maximum(length, 1e-20)
