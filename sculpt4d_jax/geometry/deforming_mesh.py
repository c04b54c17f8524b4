"""A deforming mesh: one topology, with vertex positions for every frame.

`frame(i)` gives ordinary meshes. A point stored as (face, barycentrics) on one
frame is the same material point on all others (`geometry/sampling.py`).
"""

from collections.abc import Iterator, Sequence
import dataclasses

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib

TriangleMesh = mesh_lib.TriangleMesh


@dataclasses.dataclass(frozen=True)
class DeformingMesh:
  """An animated triangle mesh.

  Attributes:
    vertices: Positions, float32 [F, V, 3].
    faces: Vertex indices, int32 [T, 3].
    rest: Positions at rest, where points are sampled, float32 [V, 3]; those of
      frame 0 if there is no better pose.
    colours: RGB of the vertices, uint8 [V, 3], or None.
  """

  vertices: np.ndarray
  faces: np.ndarray
  rest: np.ndarray | None = None
  colours: np.ndarray | None = None

  def __post_init__(self):
    vertices = np.ascontiguousarray(self.vertices, np.float32)
    if vertices.ndim != 3 or vertices.shape[2] != 3 or not len(vertices):
      raise UserError(f"vertices must be [F, V, 3], got {vertices.shape}.")
    rest = vertices[0] if self.rest is None else self.rest
    mesh = TriangleMesh(rest, self.faces)
    if mesh.num_vertices != vertices.shape[1]:
      raise UserError(
        f"rest has {mesh.num_vertices} vertices, the frames have"
        f" {vertices.shape[1]}."
      )
    if self.colours is not None:
      colours = np.ascontiguousarray(self.colours, np.uint8)
      if colours.shape != (vertices.shape[1], 3):
        raise UserError(
          f"colours must be [{vertices.shape[1]}, 3], got {colours.shape}."
        )
      object.__setattr__(self, "colours", colours)
    object.__setattr__(self, "vertices", vertices)
    object.__setattr__(self, "faces", mesh.faces)
    object.__setattr__(self, "rest", mesh.vertices)

  @property
  def num_frames(self) -> int:
    """Number of frames F."""
    return len(self.vertices)

  @property
  def num_vertices(self) -> int:
    """Number of vertices V, equal in all frames."""
    return self.vertices.shape[1]

  @property
  def num_faces(self) -> int:
    """Number of triangles T, equal in all frames."""
    return len(self.faces)

  def frame(self, index: int) -> TriangleMesh:
    """The mesh of one frame, without colours."""
    return TriangleMesh(self.vertices[index], self.faces)

  def frames(self) -> Iterator[TriangleMesh]:
    """Yields the meshes of all frames in order."""
    return (self.frame(index) for index in range(self.num_frames))

  def rest_mesh(self) -> TriangleMesh:
    """The mesh of the rest pose, with the frames' faces."""
    return TriangleMesh(self.rest, self.faces)

  def select_faces(self, keep: np.ndarray) -> "DeformingMesh":
    """The faces of a mask [T], and the vertices they use."""
    faces = self.faces[keep]
    used = np.zeros(self.num_vertices, bool)
    used[faces] = True
    return DeformingMesh(
      self.vertices[:, used],
      (np.cumsum(used) - 1)[faces],
      self.rest[used],
      None if self.colours is None else self.colours[used],
    )


def normalise(mesh: DeformingMesh, extent: float = 0.95) -> DeformingMesh:
  """Brings an animation into [-extent, extent]^3 with ONE box for all frames.

  The box is that of the vertices that faces use; its longest side becomes
  2 * extent. Motion of the whole object is kept.

  Raises:
    ValueError: The box has no size or is not finite.
  """
  used = np.unique(mesh.faces)
  if not len(used):
    raise UserError("The mesh has no faces.")
  seen = mesh.vertices[:, used].astype(np.float64)
  low, high = seen.min((0, 1)), seen.max((0, 1))
  size = (high - low).max()
  if not (np.isfinite(size) and size > 0):
    raise UserError(f"The animation's box has the size {size}.")
  centre, scale = (low + high) / 2, 2 * extent / size
  return DeformingMesh(
    (mesh.vertices - centre) * scale,
    mesh.faces,
    (mesh.rest - centre) * scale,
    mesh.colours,
  )


def drop_doubled_faces(mesh: DeformingMesh) -> DeformingMesh:
  """Keeps the first of faces that have the same corners in all frames.

  Some exporters duplicate a surface with reversed winding, for viewers that
  cull back faces. A surface and its reversed copy enclose no volume; without
  the copy it is a solid again.

  Args:
    mesh: Any animation; corners are compared at rest and in three frames.

  Returns:
    The same mesh if there are no duplicates.
  """
  last = mesh.num_frames - 1
  seen = [mesh.rest, *(mesh.vertices[i] for i in (0, last // 2, last))]
  places = np.concatenate(seen, axis=1)  # [V, 12]
  _, welded = np.unique(places, axis=0, return_inverse=True)
  corners = np.sort(welded.reshape(-1)[mesh.faces], axis=1)
  _, first = np.unique(corners, axis=0, return_index=True)
  if len(first) == mesh.num_faces:
    return mesh
  keep = np.zeros(mesh.num_faces, bool)
  keep[first] = True
  return mesh.select_faces(keep)


# Positions are moved to the origin if float32 rounds them by more than this
# share of the box, a tenth of a record's resolution.
_ROUNDING = 1e-6


def rounding_offset(points: np.ndarray) -> np.ndarray:
  """The offset to subtract from positions before they are rounded to float32.

  Args:
    points: Positions of one frame, float64 [V, 3].

  Returns:
    The centre of their box, float64 [3], if they lie so far from the origin
    that float32 would change their shape; else zeros.
  """
  low, high = points.min(0), points.max(0)
  size = (high - low).max()
  step = np.abs(points).max() * 2.0**-24
  if not np.isfinite(size) or step <= _ROUNDING * size:
    return np.zeros(3)
  return (low + high) / 2


@dataclasses.dataclass(frozen=True)
class Motion:
  """Measures of an animation's motion, in units of the object's size.

  The size is the diagonal of a frame's box, its median over the frames.

  Attributes:
    travel: The largest distance of a vertex from its position in frame 0.
    deformation: The same without each frame's mean motion.
    size_ratio: Largest over smallest diagonal of a frame's box.
    share_of_box: The object's size over the diagonal of the animation's box;
      small if the object moves through a large scene.
    stretch: Growth of an edge's length over frame 0: the length that
      99.9 % of the total edge length stay below, as a ratio.
  """

  travel: float
  deformation: float
  size_ratio: float
  share_of_box: float
  stretch: float


def measure_motion(mesh: DeformingMesh) -> Motion:
  """Measures an animation; all its positions must be finite."""
  used = np.unique(mesh.faces)
  seen = mesh.vertices[:, used].astype(np.float64)
  diagonals = np.linalg.norm(seen.max(1) - seen.min(1), axis=1)
  size = max(float(np.median(diagonals)), 1e-30)
  whole = np.linalg.norm(seen.max((0, 1)) - seen.min((0, 1)))
  moved = seen - seen[0]
  shift = moved.mean(1, keepdims=True)
  return Motion(
    travel=float(np.linalg.norm(moved, axis=-1).max() / size),
    deformation=float(np.linalg.norm(moved - shift, axis=-1).max() / size),
    size_ratio=float(diagonals.max() / max(diagonals.min(), 1e-30)),
    share_of_box=float(size / max(whole, 1e-30)),
    stretch=_stretch(mesh, size),
  )


def _stretch(mesh: DeformingMesh, size: float) -> float:
  edges = np.concatenate(
    [mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]
  )
  edges = np.unique(np.sort(edges, axis=1), axis=0)

  def lengths(frame: int) -> np.ndarray:
    ends = mesh.vertices[frame].astype(np.float64)[edges]
    return np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)

  first = lengths(0)
  # An edge of zero length may become short without counting as stretched.
  floor = np.maximum(first, 0.01 * size)
  worst = np.ones(len(edges))
  for frame in range(1, mesh.num_frames):
    worst = np.maximum(worst, lengths(frame) / floor)
  order = np.argsort(worst)
  share = np.cumsum(floor[order]) / floor.sum()
  return float(worst[order][min(np.searchsorted(share, 0.999), len(order) - 1)])


def by_topology(meshes: Sequence[DeformingMesh]) -> list[list[int]]:
  """Numbers of the meshes with equal faces, in order of the first of each."""
  groups: list[list[int]] = []
  for index, mesh in enumerate(meshes):
    for group in groups:
      if np.array_equal(meshes[group[0]].faces, mesh.faces):
        group.append(index)
        break
    else:
      groups.append([index])
  return groups
