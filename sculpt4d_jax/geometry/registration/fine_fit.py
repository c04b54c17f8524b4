"""The fine fit, in which all vertices move as rigidly as possible.

Minimises  ARAP(x; rest) + w |x - c|^2, where c is the foot of a vertex on the
tangent plane of its match. A vertex without a match has c = x, which keeps its
position. The matrix L + w I is therefore constant, and one factorisation is
used for all frames and iterations.

Source: Sorkine and Alexa, As-Rigid-As-Possible Surface Modeling, 2007.
"""

import igl
import numpy as np
from scipy import sparse
from scipy.sparse import linalg

from sculpt4d_jax.geometry.registration import rotations
from sculpt4d_jax.geometry.registration import settings as settings_lib
from sculpt4d_jax.geometry.registration import surfaces

_MAX_COTANGENT = 100.0


class FineFit:
  """The factorised matrix of a model."""

  def __init__(
    self, model: surfaces.Model, settings: settings_lib.FineSettings
  ):
    self._model, self._settings = model, settings
    size = len(model.vertices)
    laplacian = igl.cotmatrix(model.vertices, model.faces).tocoo()
    off = laplacian.row != laplacian.col
    rows, columns = laplacian.row[off], laplacian.col[off]
    # Faces without area have no cotangents.
    weights = np.nan_to_num(laplacian.data[off], nan=0.0)
    weights = np.clip(weights, settings.min_cotangent, _MAX_COTANGENT)
    adjacency = sparse.csr_array((weights, (rows, columns)), shape=(size, size))
    degree = adjacency.sum(1)
    self._pull = settings.pull * degree.mean()
    diagonal = sparse.diags_array(degree + self._pull)
    self._solve = linalg.splu(
      (diagonal - adjacency).tocsc(),
      permc_spec="MMD_AT_PLUS_A",
      options={"SymmetricMode": True},
      diag_pivot_thresh=0.0,
    ).solve
    self._adjacency = adjacency
    self._rest = model.vertices
    self._spokes = degree[:, None] * self._rest - adjacency @ self._rest

  def fit(
    self,
    vertices: np.ndarray,
    target: surfaces.Target,
    num_iterations: int | None = None,
  ) -> np.ndarray:
    """Moves vertices [V, 3] that are close to a target onto it."""
    for _ in range(num_iterations or self._settings.num_iterations):
      goal = self._goal(vertices, target)
      vertices = self._solve(self._bends(vertices) + self._pull * goal)
    return vertices

  def relax(
    self, vertices: np.ndarray, goal: np.ndarray, num_iterations: int
  ) -> np.ndarray:
    """Positions near given ones [V, 3] that are as rigid as possible."""
    for _ in range(num_iterations):
      vertices = self._solve(self._bends(vertices) + self._pull * goal)
    return vertices

  def _goal(self, vertices: np.ndarray, target: surfaces.Target) -> np.ndarray:
    normals = self._model.normals(vertices)
    points, facing = target.match(vertices, normals)
    offsets = points - vertices
    along = np.einsum("vx,vx->v", offsets, facing)
    near = np.einsum("vx,vx->v", offsets, offsets) < self._settings.gate**2
    cosines = np.einsum("vx,vx->v", normals, facing)
    matched = near & (cosines > self._settings.min_normal_cosine)
    return vertices + np.where(matched, along, 0.0)[:, None] * facing

  def _bends(self, vertices: np.ndarray) -> np.ndarray:
    """The right-hand side of ARAP: edges rotated with their vertices.

    Sums over the edges i j of a vertex i, of weights w, rest positions r and
    positions v, are written as products with the matrix of weights:
    sum w (v_i - v_j) (r_i - r_j)^T for the rotations R, then
    sum w (R_i + R_j) (r_i - r_j) / 2.
    """
    rest, spokes, adjacency = self._rest, self._spokes, self._adjacency
    moments = vertices[:, :, None] * spokes[:, None]
    moments -= (adjacency @ vertices)[:, :, None] * rest[:, None]
    products = (vertices[:, :, None] * rest[:, None]).reshape(-1, 9)
    moments += (adjacency @ products).reshape(-1, 3, 3)
    turns = rotations.nearest(moments)
    around = (adjacency @ turns.reshape(-1, 9)).reshape(-1, 3, 3)
    turned = np.einsum("vyx,vx->vy", turns, rest)
    wanted = np.einsum("vyx,vx->vy", turns, spokes) - adjacency @ turned
    return 0.5 * (wanted + np.einsum("vyx,vx->vy", around, rest))
