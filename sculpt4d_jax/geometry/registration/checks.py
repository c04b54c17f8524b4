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


class Checker:
  """Checks positions of one mesh against frames."""

  def __init__(
    self, model: surfaces.Model, unit: float, num_samples: int = 3000
  ):
    """Prepares the rest pose.

    Args:
      model: The mesh at rest.
      unit: Length of the longest side of the box around all frames.
      num_samples: Points sampled on each surface.
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

  def check(self, vertices: np.ndarray, target: TriangleMesh) -> Check:
    """Checks positions [V, 3] against a frame; without faces it fails."""
    if target.is_empty or not self._whole.any():
      return NOTHING
    rng = np.random.default_rng(5)  # The same points for every attempt.
    faces = self._model.faces
    other = surfaces.Model.of(target.vertices, target.faces)
    count = self._num_samples
    points, face_ids, _ = surfaces.sample(vertices, faces, count, rng)
    to_target, nearest = _distances(points, other.vertices, other.faces)
    points, _, _ = surfaces.sample(other.vertices, other.faces, count, rng)
    to_model, _ = _distances(points, vertices, faces)
    ours = surfaces.cross_products(vertices, faces)[face_ids]
    theirs = surfaces.cross_products(other.vertices, other.faces)[nearest]
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
) -> tuple[np.ndarray, np.ndarray]:
  """Distances [M] of points to a mesh, and the nearest faces [M]."""
  square, face_ids, _ = igl.point_mesh_squared_distance(
    np.ascontiguousarray(points),
    np.ascontiguousarray(vertices, np.float64),
    np.ascontiguousarray(faces, np.int64),
  )
  return np.sqrt(np.maximum(square, 0.0)), face_ids
