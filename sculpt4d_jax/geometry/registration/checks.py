"""Checks of a frame's registration that need no true correspondences.

Distances are between points sampled on the two surfaces and the other surface,
exact, as shares of the longest side of the box around all frames. Lost limbs
are visible in the 99th percentile; the mean would hide a limb of a few per cent
of the area.
"""

import dataclasses

import igl
import numpy as np

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry.registration import surfaces

TriangleMesh = mesh_lib.TriangleMesh

_MIN_AREA = 1e-9  # Stretch is undefined for faces below this rest area.
_MAX_STRETCH = 2.0
FAR = 0.03  # Share of the box.
NUM_SAMPLES = 3000  # Points on each surface.


@dataclasses.dataclass(frozen=True)
class Check:
  """Measurements of `Checker.check`; see `result.FrameReport`.

  `far` is the share of a surface that is farther than `FAR` from the other one;
  the larger of both directions.
  """

  chamfer: float
  hausdorff99: float
  turned: float
  stretched: float
  far: float


NOTHING = Check(np.inf, np.inf, 1.0, 1.0, 1.0)


class Reference:
  """A frame's mesh, prepared once for all checks against it.

  Attributes:
    points: Points sampled on it [M, 3].
  """

  def __init__(self, mesh: TriangleMesh, num_samples: int = NUM_SAMPLES):
    """Samples the mesh and builds its search tree.

    Args:
      mesh: The mesh, with at least one face that has an area.
      num_samples: Points M.
    """
    self._vertices = np.ascontiguousarray(mesh.vertices, np.float64)
    self._faces = np.ascontiguousarray(mesh.faces, np.int64)
    rng = np.random.default_rng(6)  # The same points for every attempt.
    self.points, _, _ = surfaces.sample(
      self._vertices, self._faces, num_samples, rng
    )
    self._normals = surfaces.cross_products(self._vertices, self._faces)
    self._tree = igl.AABB()
    self._tree.init(self._vertices, self._faces)

  @classmethod
  def of(
    cls, mesh: TriangleMesh, num_samples: int = NUM_SAMPLES
  ) -> "Reference | None":
    """The reference of a mesh; None without a surface."""
    return cls(mesh, num_samples) if mesh.has_area else None

  def nearest(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distances [M] of points [M, 3], and normals of the nearest faces [M, 3].

    The normals' lengths are twice the faces' areas.
    """
    square, face_ids, _ = self._tree.squared_distance(
      self._vertices, self._faces, np.ascontiguousarray(points)
    )
    return np.sqrt(np.maximum(square, 0.0)), self._normals[face_ids]


class Checker:
  """Checks positions of one mesh against frames."""

  def __init__(
    self, model: surfaces.Model, unit: float, num_samples: int = NUM_SAMPLES
  ):
    """Prepares the rest pose.

    Args:
      model: The mesh at rest.
      unit: Length of the longest side of the box around all frames.
      num_samples: Points sampled on the mesh.
    """
    self._model, self._unit, self._num_samples = model, unit, num_samples
    first, second, self._areas = _edges_and_areas(model.vertices, model.faces)
    self._whole = self._areas > _MIN_AREA
    lengths = np.linalg.norm(first, axis=1, keepdims=True)
    along = first / np.maximum(lengths, 1e-30)
    across = second - np.einsum("tx,tx->t", second, along)[:, None] * along
    height = np.linalg.norm(across, axis=1)
    base = np.zeros((len(first), 2, 2))
    base[:, 0, 0] = lengths[:, 0]
    base[:, 0, 1] = np.einsum("tx,tx->t", second, along)
    base[:, 1, 1] = height
    self._inverse = np.linalg.inv(base[self._whole])

  def check(self, vertices: np.ndarray, reference: Reference | None) -> Check:
    """Checks positions [V, 3] against a frame; without a surface it fails."""
    if reference is None or not self._whole.any():
      return NOTHING
    rng = np.random.default_rng(5)  # The same points for every attempt.
    faces = self._model.faces
    points, face_ids, _ = surfaces.sample(
      vertices, faces, self._num_samples, rng
    )
    to_target, theirs = reference.nearest(points)
    to_model = _distances(reference.points, vertices, faces)
    ours = surfaces.cross_products(vertices, faces[face_ids])
    return Check(
      chamfer=float((to_target.mean() + to_model.mean()) / 2 / self._unit),
      hausdorff99=float(
        max(np.quantile(d, 0.99) for d in (to_target, to_model)) / self._unit
      ),
      turned=float((np.einsum("mx,mx->m", ours, theirs) < 0).mean()),
      stretched=self.stretched(vertices),
      far=float(
        max((d > FAR * self._unit).mean() for d in (to_target, to_model))
      ),
    )

  def stretched(self, vertices: np.ndarray) -> float:
    """Share of the rest area stretched beyond 2 or below 1/2."""
    first, second, _ = _edges_and_areas(vertices, self._model.faces)
    edges = np.stack([first, second], axis=2)[self._whole]  # [T, 3, 2]
    gradient = edges @ self._inverse
    # Singular values of [3, 2] matrices, from the eigenvalues of 2 x 2 ones.
    products = gradient.transpose(0, 2, 1) @ gradient
    half = (products[:, 0, 0] + products[:, 1, 1]) / 2
    root = np.hypot(
      (products[:, 0, 0] - products[:, 1, 1]) / 2, products[:, 0, 1]
    )
    bad = (half + root > _MAX_STRETCH**2) | (half - root < _MAX_STRETCH**-2)
    areas = self._areas[self._whole]
    return float((areas * bad).sum() / areas.sum())


def _edges_and_areas(
  vertices: np.ndarray, faces: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  first = vertices[faces[:, 1]] - vertices[faces[:, 0]]
  second = vertices[faces[:, 2]] - vertices[faces[:, 0]]
  return first, second, np.linalg.norm(np.cross(first, second), axis=1)


def _distances(
  points: np.ndarray, vertices: np.ndarray, faces: np.ndarray
) -> np.ndarray:
  """Distances [M] of points to a mesh."""
  square, _, _ = igl.point_mesh_squared_distance(
    np.ascontiguousarray(points),
    np.ascontiguousarray(vertices, np.float64),
    np.ascontiguousarray(faces, np.int64),
  )
  return np.sqrt(np.maximum(square, 0.0))
