"""Fits a deformation graph to a frame, by Gauss-Newton steps.

The cost of a pose, all residuals being lengths:

    sum over matches  w ((n . r)^2 + point_weight |r|^2)
    + stiffness * (matches / edges) * sum over edges
          |R_j (g_k - g_j) + g_j + t_j - g_k - t_k|^2
    + smoothness * (matches / nodes) * |t - predicted t|^2

with r from the matched point to the model's, n the target's normal and w the
weight of Geman and McClure, (1 + (|r| / (gate * robust_scale))^2)^-2. Matches
are made in both directions: without those from the target to the model, a limb
without a match would never move. Matches are searched again in every step;
stiffness and gate decrease from round to round. A round ends when a step no
longer lowers the cost of the matches.

With six unknowns a node there are a few hundred: the blocks are summed into one
dense matrix, which is ten times as fast as sparse products; see `match_terms`.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy import linalg
from scipy import spatial

from sculpt4d_jax.geometry.registration import graph as graph_lib
from sculpt4d_jax.geometry.registration import match_terms
from sculpt4d_jax.geometry.registration import rotations
from sculpt4d_jax.geometry.registration import settings as settings_lib
from sculpt4d_jax.geometry.registration import surfaces

_DAMPING = 1e-4  # Times matches / nodes; keeps nodes without matches in place.


class Matches(NamedTuple):
  """Vertices that are attracted to points.

  Attributes:
    rows: Indices of the vertices [M].
    residuals: Vectors from the point to the vertex [M, 3].
    normals: Normals of the planes at the points [M, 3].
    weights: Weights [M].
    num_lost: Number of points whose match is too far away, or of another side.
  """

  rows: np.ndarray
  residuals: np.ndarray
  normals: np.ndarray
  weights: np.ndarray
  num_lost: int


@dataclasses.dataclass(frozen=True)
class GraphFit:
  """Data that the fits of all frames share.

  Attributes:
    graph: Nodes and edges of the model.
    settings: Schedule and weights.
    rows: Indices of the vertices that are matched [S].
    edge_weights: Factors of the edges [E]; 0 cuts an edge.
    terms: Sums over matches.
  """

  graph: graph_lib.Graph
  settings: settings_lib.GraphSettings
  rows: np.ndarray
  edge_weights: np.ndarray
  terms: match_terms.MatchTerms

  @classmethod
  def of(
    cls,
    graph: graph_lib.Graph,
    settings: settings_lib.GraphSettings,
    rng: np.random.Generator,
  ) -> "GraphFit":
    """Chooses the vertices that are matched."""
    rows = graph_lib.used(graph.model)
    count = min(settings.num_samples, len(rows))
    rows = rng.choice(rows, count, replace=False)
    terms = match_terms.MatchTerms.of(graph)
    return cls(graph, settings, rows, np.ones(len(graph.edges)), terms)

  def fit(
    self,
    target: surfaces.Target,
    start: graph_lib.Pose,
    prediction: graph_lib.Pose | None = None,
    rounds: tuple[settings_lib.Round, ...] | None = None,
  ) -> graph_lib.Pose:
    """Moves the graph onto a target.

    Args:
      target: The frame's surface.
      start: Initial deformation.
      prediction: Pose whose positions attract the nodes; None for no
        attraction.
      rounds: Schedule; by default that of the settings.
    """
    pose = start
    rounds = rounds or self.settings.rounds
    for index, settings in enumerate(rounds):
      stiffness, gate, max_steps, point_weight, max_samples = settings
      cost = np.inf
      for _ in range(max_steps):
        matches = self._match(target, pose, gate, max_samples)
        before, cost = cost, self._cost(matches, gate, point_weight)
        if cost > (1 - self.settings.min_gain) * before:
          break
        # Attraction to the prediction would bias the result once surfaces meet.
        # From the second round on it damps each step instead, which leaves no
        # error at convergence.
        anchor = prediction if not index else pose
        step = self._step(pose, matches, stiffness, point_weight, anchor)
        pose = pose.moved(step)
        if np.abs(step).max() < self.settings.tolerance:
          break
    return pose

  def _match(
    self,
    target: surfaces.Target,
    pose: graph_lib.Pose,
    gate: float,
    max_samples: int,
  ) -> Matches:
    vertices = self.graph.blend(pose)
    normals = self.graph.model.normals(vertices)
    # Both are in random order.
    rows = self.rows[:max_samples]
    back = slice(0, min(max_samples, self.settings.num_samples))
    points, facing = target.match(vertices[rows], normals[rows])
    # Built again in every step, as the model moves; without balancing it is
    # faster to build.
    tree = spatial.cKDTree(
      target.features(vertices, normals),
      balanced_tree=False,
      compact_nodes=False,
    )
    _, found = tree.query(
      target.features(target.points[back], target.normals[back])
    )
    rows = np.concatenate([rows, found])
    points = np.concatenate([points, target.points[back]])
    facing = np.concatenate([facing, target.planes[back]])
    residuals = vertices[rows] - points
    distances = np.linalg.norm(residuals, axis=1)
    cosines = np.einsum("mx,mx->m", normals[rows], facing)
    # Opposite normals belong to the far side of a thin part.
    kept = (distances < gate) & (cosines > self.settings.min_normal_cosine)
    scale = self.settings.robust_scale * gate
    weights = (1 + (distances[kept] / scale) ** 2) ** -2
    return Matches(
      rows[kept],
      residuals[kept],
      facing[kept],
      weights,
      int((~kept).sum()),
    )

  def _cost(self, matches: Matches, gate: float, point_weight: float) -> float:
    """Cost of the matches; a lost one costs what a match at the gate does."""
    squares = np.square(matches.residuals).sum(1)
    along = np.einsum("mx,mx->m", matches.normals, matches.residuals)
    scale = self.settings.robust_scale * gate
    costs = (along**2 + point_weight * squares) / (1 + squares / scale**2)
    lost = (1 + point_weight) * gate**2 / (1 + (gate / scale) ** 2)
    return float(costs.sum() + lost * matches.num_lost)

  def _step(
    self,
    pose: graph_lib.Pose,
    matches: Matches,
    stiffness: float,
    point_weight: float,
    prediction: graph_lib.Pose | None,
  ) -> np.ndarray:
    """One Gauss-Newton step [N, 6]."""
    num_nodes = self.graph.num_nodes
    count = max(len(matches.rows), 1)
    matrix = np.zeros((6 * num_nodes, 6 * num_nodes))
    slope = np.zeros(6 * num_nodes)
    if len(self.graph.edges):
      # Relative to the matches, so that stiffness does not depend on their
      # number.
      weight = stiffness * count / len(self.graph.edges)
      matrix, slope = self._edge_terms(pose, weight)
    self._add_matches(matrix, slope, pose, matches, point_weight)
    share = count / num_nodes
    damping = np.full((num_nodes, 6), _DAMPING * share)
    if prediction is not None:
      pull = self.settings.smoothness * share
      # A quadratic term on the translations: it adds to the diagonal and to the
      # slope.
      damping[:, 3:] += pull
      slope.reshape(-1, 6)[:, 3:] -= pull * (pose.shifts - prediction.shifts)
    diagonal = np.arange(6 * num_nodes)
    matrix[diagonal, diagonal] += damping.ravel()
    # Positive definite, because of the damping. The transpose is in LAPACK's
    # order, which saves a copy. Single precision is twice as fast, and the next
    # step corrects its errors.
    factor = linalg.cho_factor(
      matrix.T.astype(np.float32),
      lower=True,
      overwrite_a=True,
      check_finite=False,
    )
    step = linalg.cho_solve(
      factor, slope.astype(np.float32), check_finite=False
    )
    return step.astype(np.float64).reshape(num_nodes, 6)

  def _add_matches(
    self,
    matrix: np.ndarray,
    slope: np.ndarray,
    pose: graph_lib.Pose,
    matches: Matches,
    point_weight: float,
  ) -> None:
    """Adds the matches to the matrix's upper triangle and to the slope."""
    rows, residuals, normals, weights, _ = matches
    if not len(rows):
      return
    num_nodes, (one, other) = self.graph.num_nodes, self.terms.pairs.T
    # Each pair occurs once, so that nothing is lost in the indexed sum.
    matrix.reshape(num_nodes, 6, num_nodes, 6)[one, :, other] += (
      self.terms.matrix(pose, rows, normals, weights, point_weight)
    )
    slope += self.terms.slope(
      pose, rows, residuals, normals, weights, point_weight
    ).ravel()

  def _edge_terms(
    self, pose: graph_lib.Pose, weight: float
  ) -> tuple[np.ndarray, np.ndarray]:
    places, (one, other) = self.graph.places, self.graph.edges.T
    turned = np.einsum(
      "eyx,ex->ey", pose.turns[one], places[other] - places[one]
    )
    moved = places + pose.shifts
    residuals = turned + moved[one] - moved[other]
    jacobian = np.zeros((len(one), 9, 3))
    jacobian[:, :3] = rotations.skew(turned)
    jacobian[:, 3:6] = np.eye(3)
    jacobian[:, 6:] = -np.eye(3)
    weighted = (weight * self.edge_weights)[:, None, None] * jacobian
    blocks = weighted @ jacobian.transpose(0, 2, 1)
    slopes = -(weighted @ residuals[..., None])
    columns = np.concatenate(
      [6 * one[:, None] + np.arange(6), 6 * other[:, None] + np.arange(3, 6)],
      axis=1,
    )
    return _assemble(columns, blocks, slopes, 6 * self.graph.num_nodes)


def _assemble(
  columns: np.ndarray, blocks: np.ndarray, slopes: np.ndarray, size: int
) -> tuple[np.ndarray, np.ndarray]:
  """Sums blocks [M, c, c] and slopes [M, c, 1] into a matrix and a vector."""
  # bincount with weights sums blocks at the same place.
  flat = columns[:, :, None] * size + columns[:, None]
  matrix = np.bincount(flat.ravel(), blocks.ravel(), size * size)
  slope = np.bincount(columns.ravel(), slopes.ravel(), size)
  return matrix.reshape(size, size), slope
