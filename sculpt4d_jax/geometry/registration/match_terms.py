"""Sums the terms of a Gauss-Newton step over all matches of a graph's vertices.

A vertex x depends on K nodes, so a match adds K^2 blocks of 6 x 6 to the
matrix: a few million numbers in each step. But the blocks of a pair of nodes
(a, b) are all functions of the same few sums over its matches,

    sum  w blend_a blend_b (n n^T + point_weight I) (1, x) (1, x)^T

because the derivative of x by the motion of node a is linear in (1, x). These
60 different numbers are summed by one sparse product, and a thousand pairs of
nodes, instead of three thousand matches times K^2, are turned into blocks.
"""

import dataclasses

import numpy as np
from scipy import sparse

from sculpt4d_jax.geometry.registration import graph as graph_lib
from sculpt4d_jax.geometry.registration import rotations

_SYMMETRIC = np.triu_indices(3)
_SYMMETRIC_4 = np.triu_indices(4)
# S(e_k), whose sum over k with factors l_k is the skew matrix of l.
_SKEW = rotations.skew(np.eye(3))


def _unfold(size: int) -> np.ndarray:
  """Index of each entry of a symmetric matrix among those of its triangle."""
  index = np.zeros((size, size), int)
  rows, columns = np.triu_indices(size)
  index[rows, columns] = index[columns, rows] = np.arange(len(rows))
  return index


_UNFOLD, _UNFOLD_4 = _unfold(3), _unfold(4)


@dataclasses.dataclass(frozen=True)
class MatchTerms:
  """What all steps share.

  Attributes:
    graph: Nodes, and the vertices that they move.
    pairs: Pairs of nodes (a, b), a <= b, that move a vertex together [P, 2].
    pair_ids: Pairs of each vertex [V, K (K + 1) / 2].
    pair_weights: Products of both weights [V, K (K + 1) / 2].
    lifted: Vertices at rest with a leading one [V, 4].
  """

  graph: graph_lib.Graph
  pairs: np.ndarray
  pair_ids: np.ndarray
  pair_weights: np.ndarray
  lifted: np.ndarray

  @classmethod
  def of(cls, graph: graph_lib.Graph) -> "MatchTerms":
    """Finds the pairs of nodes."""
    one, other = np.triu_indices(graph.near.shape[1])
    ends = np.stack([graph.near[:, one], graph.near[:, other]])
    low, high = ends.min(0), ends.max(0)
    keys, ids = np.unique(low * graph.num_nodes + high, return_inverse=True)
    vertices = graph.model.vertices
    return cls(
      graph,
      np.stack(np.divmod(keys, graph.num_nodes), axis=1),
      ids.reshape(low.shape),
      graph.weights[:, one] * graph.weights[:, other],
      np.concatenate([np.ones((len(vertices), 1)), vertices], axis=1),
    )

  def matrix(
    self,
    pose: graph_lib.Pose,
    rows: np.ndarray,
    normals: np.ndarray,
    weights: np.ndarray,
    point_weight: float,
  ) -> np.ndarray:
    """Blocks of the matrix [P, 6, 6], one for each of `pairs`.

    Args:
      pose: Pose in which the derivatives are taken.
      rows: Matched vertices [M].
      normals: Normals of the planes at their matches [M, 3].
      weights: Weights of the matches [M].
      point_weight: Weight of the distance to the point over that to its plane.
    """
    # Distance along the normal counts fully, along the surface little: surfaces
    # may slide over each other until they fit.
    metric = normals[:, _SYMMETRIC[0]] * normals[:, _SYMMETRIC[1]]
    metric = metric + point_weight * np.eye(3)[_SYMMETRIC]
    lifted = self.lifted[rows]
    products = lifted[:, _SYMMETRIC_4[0]] * lifted[:, _SYMMETRIC_4[1]]
    products = (weights[:, None] * products)[:, :, None] * metric[:, None]
    sums = self._gather(
      self.pair_ids[rows], self.pair_weights[rows], len(self.pairs)
    ) @ products.reshape(len(rows), -1)
    sums = sums.reshape(-1, 10, 6)[:, _UNFOLD_4][..., _UNFOLD]  # P, 4, 4, 3, 3
    count = len(self.pairs)
    one, other = self._arms(pose)[self.pairs.T]  # [P, 3, 4] each
    turned = (one @ sums.reshape(count, 4, 36)).reshape(count, 3, 4, 9)
    both = other[:, None] @ turned  # [P, 3, 3, 9]
    straight = sums[:, 0].reshape(count, 4, 9)
    blocks = np.empty((count, 6, 6))
    blocks[:, 3:, 3:] = sums[:, 0, 0]
    blocks[:, :3, 3:] = _turn_rows(turned[:, :, 0])
    # The sums are symmetric, so the other corner is a transpose.
    blocks[:, 3:, :3] = _turn_rows(other @ straight).transpose(0, 2, 1)
    blocks[:, :3, :3] = (both.reshape(count, 81) @ _TURN_BOTH).reshape(-1, 3, 3)
    return blocks

  def slope(
    self,
    pose: graph_lib.Pose,
    rows: np.ndarray,
    residuals: np.ndarray,
    normals: np.ndarray,
    weights: np.ndarray,
    point_weight: float,
  ) -> np.ndarray:
    """The negative gradient [N, 6]; see `matrix`, with residuals [M, 3]."""
    along = np.einsum("mx,mx->m", normals, residuals)
    pulls = along[:, None] * normals + point_weight * residuals
    pulls *= -weights[:, None]
    products = self.lifted[rows][:, :, None] * pulls[:, None]
    sums = self._gather(
      self.graph.near[rows], self.graph.weights[rows], self.graph.num_nodes
    ) @ products.reshape(len(rows), -1)
    sums = sums.reshape(-1, 4, 3)
    turned = self._arms(pose) @ sums  # [N, 3, 3]: arm k times pull y
    return np.concatenate(
      [np.einsum("kry,nky->nr", _SKEW, turned), sums[:, 0]], axis=1
    )

  def _arms(self, pose: graph_lib.Pose) -> np.ndarray:
    """Takes (1, x) to the turned vector from a node to x: [N, 3, 4]."""
    turned = np.einsum("nyx,nx->ny", pose.turns, self.graph.places)
    return np.concatenate([-turned[:, :, None], pose.turns], axis=2)

  def _gather(
    self, ids: np.ndarray, weights: np.ndarray, count: int
  ) -> sparse.csc_array:
    """Sums over the matches of nodes or pairs: [count, M]."""
    starts = np.arange(0, ids.size + 1, ids.shape[1])
    return sparse.csc_array(
      (weights.ravel(), ids.ravel(), starts), shape=(count, len(ids))
    )


def _turn_rows(arms: np.ndarray) -> np.ndarray:
  """Sums S(e_k) A_k for A [P, 3, 9], which are matrices [P, 3, 3]."""
  return (arms.reshape(-1, 27) @ _TURN_ROWS).reshape(-1, 3, 3)


# Linear maps of the sums: A_k -> sum S(e_k) A_k, and
# A_kl -> sum S(e_k) A_kl S(e_l)^T.
_TURN_ROWS = np.einsum("kry,zs->kyzrs", _SKEW, np.eye(3)).reshape(27, 9)
_TURN_BOTH = np.einsum("kry,lsz->klyzrs", _SKEW, _SKEW).reshape(81, 9)
