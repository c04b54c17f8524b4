"""A triangle mesh and the conventions that every geometry function shares.

Space is right-handed, y up, z towards the viewer, normalised to [-1, 1]^3 by
one box for a whole animation. Faces are wound counter-clockwise seen from
outside. Fields are positive inside and negative outside; the surface is at 0.
"""

import dataclasses

import numpy as np

from sculpt4d_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TriangleMesh:
  """A triangle mesh.

  Attributes:
    vertices: Positions, float32 [V, 3].
    faces: Vertex indices, int32 [T, 3], counter-clockwise seen from outside.
  """

  vertices: np.ndarray
  faces: np.ndarray

  def __post_init__(self):
    vertices = np.ascontiguousarray(self.vertices, dtype=np.float32)
    faces = np.ascontiguousarray(self.faces, dtype=np.int32)
    if vertices.ndim != 2 or vertices.shape[1] != 3:
      raise UserError(f"vertices must be [V, 3], got {vertices.shape}.")
    if faces.ndim != 2 or faces.shape[1] != 3:
      raise UserError(f"faces must be [T, 3], got {faces.shape}.")
    if faces.size and (faces.min() < 0 or faces.max() >= len(vertices)):
      raise UserError(
        f"faces index vertices {faces.min()}..{faces.max()}, but the mesh"
        f" has {len(vertices)} vertices."
      )
    object.__setattr__(self, "vertices", vertices)
    object.__setattr__(self, "faces", faces)

  @property
  def num_vertices(self) -> int:
    """Number of vertices V, those without faces included."""
    return len(self.vertices)

  @property
  def num_faces(self) -> int:
    """Number of triangles T."""
    return len(self.faces)

  @property
  def is_empty(self) -> bool:
    """Whether there are no faces; there may be vertices."""
    return self.num_faces == 0

  @property
  def has_area(self) -> bool:
    """Whether any face has a positive area."""
    return bool(self.face_cross_products().any())

  def welded(self) -> tuple["TriangleMesh", np.ndarray]:
    """Joins vertices at the same position.

    Returns:
      The mesh, with all its faces, and the new index of each vertex [V].
    """
    # -0.0 becomes 0.0.
    places, rows = np.unique(self.vertices + 0.0, axis=0, return_inverse=True)
    rows = rows.reshape(-1)
    return TriangleMesh(places, rows[self.faces]), rows

  def face_cross_products(self) -> np.ndarray:
    """Face normals times twice the face areas, float32 [T, 3]."""
    corners = self.vertices[self.faces]
    return np.cross(
      corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    )

  def vertex_normals(self) -> np.ndarray:
    """Area-weighted unit normals, float32 [V, 3]; zero on unused vertices."""
    corners = self.faces.ravel()
    cross = self.face_cross_products().repeat(3, axis=0)
    # Five times faster than np.add.at.
    sums = [np.bincount(corners, x, self.num_vertices) for x in cross.T]
    normals = np.stack(sums, axis=-1)
    length = np.linalg.norm(normals, axis=1, keepdims=True)
    return (normals / np.maximum(length, 1e-20)).astype(np.float32)
