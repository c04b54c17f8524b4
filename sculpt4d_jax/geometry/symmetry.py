"""Finds the mirror plane of a moving surface, and mirror partners of vertices.

A walking animal is not symmetric in any single frame: its left leg is forward
when the right one is back. The topology is constant, however, so partners can
be found in any frame, and each vertex uses the frame with the best match. The
plane is found in the most symmetric frame and transferred to the others by the
object's rigid motion; there it is refined by matching the mirrored surface to
the surface.

A plane is accepted only if the mirrored shape is close to the shape.
"""

import dataclasses

import numpy as np
from scipy import spatial

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry.registration import result

TriangleMesh = mesh_lib.TriangleMesh

_SAMPLES = 1200  # Vertices used to evaluate a plane.
_NORMAL_WEIGHT = 0.03  # Weight of normals, as a share of the size.
_TRIM = 0.8  # Share of the vertices that must match in a frame.
_YAWS = np.arange(0, 180, 15)
_REFINEMENTS = 8


@dataclasses.dataclass(frozen=True)
class Plane:
  """Points x with normal . x = offset."""

  normal: np.ndarray
  offset: float

  def mirror(self, points: np.ndarray) -> np.ndarray:
    """Mirror images of points [P, 3]."""
    height = points @ self.normal - self.offset
    return points - 2 * height[:, None] * self.normal

  def mirror_directions(self, vectors: np.ndarray) -> np.ndarray:
    """Mirrors directions [..., 3], which the plane's offset does not move."""
    return vectors - 2 * (vectors @ self.normal)[:, None] * self.normal


@dataclasses.dataclass(frozen=True)
class Symmetry:
  """Mirror partners of the vertices.

  Attributes:
    partner: The vertex nearest to a vertex's mirror image, int64 [V].
    distance: Distance to it in world units, [V]; compare with `size`.
    error: Mean distance of the mirrored shape to the shape in the most
      symmetric frame, as a share of the size.
    size: Longest side of the box around all frames.
    plane: The plane in that frame.
    frame: Number of that frame.
  """

  partner: np.ndarray
  distance: np.ndarray
  error: float
  size: float
  plane: Plane
  frame: int


def find(
  vertices: np.ndarray, faces: np.ndarray, max_error: float = 0.02
) -> Symmetry | None:
  """Finds the mirror plane.

  Args:
    vertices: Positions in all frames [F, V, 3].
    faces: Vertex indices [T, 3].
    max_error: Largest accepted mean distance of the mirrored shape to the
      shape, as a share of the size.

  Returns:
    The partners, or None.
  """
  vertices = np.asarray(vertices, np.float64)
  size = float((vertices.max((0, 1)) - vertices.min((0, 1))).max())
  shapes = [_Shape(frame, faces, size) for frame in vertices]
  scored = [
    (*shape.best_plane(_candidates(shape)), index)
    for index, shape in enumerate(shapes)
  ]
  error, plane, frame = min(scored, key=lambda entry: entry[0])
  if error > max_error * size:
    return None
  partner = np.arange(vertices.shape[1])
  distance = np.full(vertices.shape[1], np.inf)
  carried = result.fit_trajectory(vertices, vertices[frame])
  for shape, transform in zip(shapes, carried):
    normal = transform[:3, :3] @ plane.normal
    start = Plane(normal, plane.offset + float(normal @ transform[:3, 3]))
    _, refined = shape.refine(start)
    found, gap = shape.partners(refined)
    better = gap < distance
    partner[better], distance[better] = found[better], gap[better]
  return Symmetry(partner, distance, error / size, size, plane, frame)


class _Shape:
  """One frame's surface with a tree of places and normals."""

  def __init__(self, vertices: np.ndarray, faces: np.ndarray, size: float):
    self.vertices = vertices
    self.scale = _NORMAL_WEIGHT * size
    mesh = TriangleMesh(vertices, faces)
    self.normals = mesh.vertex_normals().astype(np.float64)
    self.centre = vertices.mean(0)
    self.tree = spatial.cKDTree(self._features(vertices, self.normals))
    step = max(1, len(vertices) // _SAMPLES)
    self.some = np.arange(0, len(vertices), step)

  def _features(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
    return np.concatenate([points, self.scale * normals], 1)

  def _match(
    self, plane: Plane, ids: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Vertices nearest to mirror images, and their 6-D distances."""
    gap, found = self.tree.query(
      self._features(
        plane.mirror(self.vertices[ids]),
        plane.mirror_directions(self.normals[ids]),
      )
    )
    return found, gap

  def best_plane(self, planes: list[Plane]) -> tuple[float, Plane]:
    scored = sorted(
      ((self._error(plane), i) for i, plane in enumerate(planes))
    )[:2]
    refined = [self.refine(planes[i]) for _, i in scored]
    return min(refined, key=lambda entry: entry[0])

  def refine(self, plane: Plane) -> tuple[float, Plane]:
    """Refits a plane to its matched pairs, several times."""
    best = (self._error(plane), plane)
    for _ in range(_REFINEMENTS):
      found, gap = self._match(plane, self.some)
      kept = gap <= np.quantile(gap, _TRIM)
      first, second = self.vertices[self.some[kept]], self.vertices[found[kept]]
      plane = _plane_between(first, second)
      error = self._error(plane)
      if error >= best[0]:
        break
      best = (error, plane)
    return best

  def _error(self, plane: Plane) -> float:
    """Trimmed mean distance of the mirrored vertices to the vertices."""
    found, _ = self._match(plane, self.some)
    mirrored = plane.mirror(self.vertices[self.some])
    gap = np.linalg.norm(mirrored - self.vertices[found], axis=1)
    return float(np.sort(gap)[: int(_TRIM * len(gap))].mean())

  def partners(self, plane: Plane) -> tuple[np.ndarray, np.ndarray]:
    """Partner of every vertex, and distance including normals."""
    return self._match(plane, np.arange(len(self.vertices)))


def _candidates(shape: _Shape) -> list[Plane]:
  """Upright planes through the centre, and planes of the principal axes."""
  yaw = np.radians(_YAWS)
  upright = np.stack([np.cos(yaw), np.zeros_like(yaw), np.sin(yaw)], 1)
  centred = shape.vertices - shape.centre
  _, axes = np.linalg.eigh(centred.T @ centred)
  normals = np.concatenate([upright, axes.T])
  return [Plane(n, float(n @ shape.centre)) for n in normals]


def _plane_between(first: np.ndarray, second: np.ndarray) -> Plane:
  """The plane that best mirrors points [P, 3] onto others [P, 3]."""
  a, b = first - first.mean(0), second - second.mean(0)
  # The normal is the direction in which the pairs agree least.
  cross = a.T @ b
  _, axes = np.linalg.eigh(cross + cross.T)
  normal = axes[:, 0]
  middle = (first.mean(0) + second.mean(0)) / 2
  return Plane(normal, float(normal @ middle))
