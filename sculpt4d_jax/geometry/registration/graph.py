"""The deformation graph: nodes on a mesh, each a rigid motion.

Nodes are farthest points of the mesh. A vertex blends the motions of its
nearest nodes; nodes next to each other are joined by edges that keep their
motions alike. "Near" is measured along the surface, so that limbs that pass
close to each other are not tied. Parts that are not connected are joined by a
few edges in space, or nothing would keep them together.

Source: Sumner, Schmid and Pauly, Embedded Deformation for Shape Manipulation,
2007.
"""

import dataclasses

import numpy as np
from scipy import sparse
from scipy import spatial
from scipy.sparse import csgraph

from sculpt4d_jax.geometry.registration import rotations
from sculpt4d_jax.geometry.registration import settings as settings_lib
from sculpt4d_jax.geometry.registration import surfaces

# Added to the distance in space between parts that are not connected.
_APART = 10.0


@dataclasses.dataclass(frozen=True)
class Pose:
  """Motions of all nodes.

  Attributes:
    turns: Rotations about the nodes [N, 3, 3].
    shifts: Translations of the nodes [N, 3].
  """

  turns: np.ndarray
  shifts: np.ndarray

  @classmethod
  def at_rest(cls, num_nodes: int) -> "Pose":
    """The pose that moves nothing."""
    return cls(np.tile(np.eye(3), (num_nodes, 1, 1)), np.zeros((num_nodes, 3)))

  def moved(self, step: np.ndarray) -> "Pose":
    """The pose after a step [N, 6]: rotation vectors, then translations."""
    turns = rotations.from_vectors(step[:, :3]) @ self.turns
    return Pose(turns, self.shifts + step[:, 3:])

  def predicted(self, before: "Pose", share: float) -> "Pose":
    """The next pose if a share of the step from `before` repeats."""
    return Pose(self.turns, self.shifts + share * (self.shifts - before.shifts))


class Graph:
  """The nodes and edges of a mesh.

  Attributes:
    model: The mesh.
    places: Rest positions of the nodes [N, 3].
    near: Nodes that a vertex blends [V, K].
    weights: Weights of these nodes, which sum to one [V, K].
    edges: Ordered pairs of nodes [E, 2], each in both directions.
    lengths: Rest lengths of the edges in space [E].
  """

  def __init__(
    self, model: surfaces.Model, settings: settings_lib.GraphSettings
  ):
    self.model = model
    vertices = model.vertices
    rows = farthest_vertices(vertices, settings.num_nodes, used(model))
    distances = surface_distances(model, rows)  # [N, V]
    self.places = vertices[rows]
    self.near, self.weights = _blend(distances, settings.num_neighbours)
    starts = np.arange(0, self.near.size + 1, self.near.shape[1])
    self._blending = sparse.csr_array(
      (self.weights.ravel(), self.near.ravel(), starts),
      shape=(len(vertices), len(rows)),
    )
    self.edges = _edges(distances[:, rows], settings.num_edges)
    ends = self.places[self.edges]
    self.lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)

  @property
  def num_nodes(self) -> int:
    """Number of nodes of the deformation graph."""
    return len(self.places)

  def blend(self, pose: Pose) -> np.ndarray:
    """Positions of all vertices in a pose [V, 3]."""
    # Sum of w (R (v - g) + g + t): the sums of w R and of w (g + t - R g) are
    # one sparse product.
    turned = np.einsum("nyx,nx->ny", pose.turns, self.places)
    offsets = self.places + pose.shifts - turned
    motions = np.concatenate([pose.turns.reshape(-1, 9), offsets], axis=1)
    blended = self._blending @ motions
    turns = blended[:, :9].reshape(-1, 3, 3)
    return np.einsum("vyx,vx->vy", turns, self.model.vertices) + blended[:, 9:]

  def pose_of(self, vertices: np.ndarray) -> Pose:
    """The pose that is closest to given positions of the vertices [V, 3].

    Each node takes the rigid motion of the vertices that it moves most.
    """
    areas = sparse.diags_array(self.model.vertex_areas() + 1e-12)
    share = self._blending.T @ areas
    total = np.maximum(share.sum(1), 1e-30)[:, None]
    rest = self.model.vertices
    old, new = share @ rest / total, share @ vertices / total
    products = (vertices[:, :, None] * rest[:, None]).reshape(-1, 9)
    moments = (share @ products).reshape(-1, 3, 3)
    moments -= total[..., None] * new[:, :, None] * old[:, None]
    turns = rotations.nearest(moments)
    shifts = new + np.einsum("nyx,nx->ny", turns, self.places - old)
    return Pose(turns, shifts - self.places)


def used(model: surfaces.Model) -> np.ndarray:
  """Indices of the vertices that faces use."""
  return np.unique(model.faces)


def farthest_vertices(
  vertices: np.ndarray, count: int, candidates: np.ndarray
) -> np.ndarray:
  """Selects vertices one by one, each the farthest from all previous ones.

  `geometry/farthest_points.py` does this in jax, but would be compiled for
  every size of mesh.
  """
  points = vertices[candidates]
  distances = np.full(len(points), np.inf)
  chosen = [0]
  for _ in range(min(count, len(points)) - 1):
    offset = points - points[chosen[-1]]
    distances = np.minimum(distances, np.einsum("vx,vx->v", offset, offset))
    chosen.append(int(distances.argmax()))
  return candidates[np.unique(chosen)]


def surface_distances(model: surfaces.Model, rows: np.ndarray) -> np.ndarray:
  """Distances along the mesh's edges from vertices to all vertices [N, V].

  Between parts that are not connected it is the distance in space plus a
  constant that exceeds all others.
  """
  faces, vertices = model.faces, model.vertices
  edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
  lengths = np.linalg.norm(
    vertices[edges[:, 0]] - vertices[edges[:, 1]], axis=1
  )
  # In a sparse matrix zero means "no edge".
  lengths = np.maximum(lengths, 1e-9)
  size = (len(vertices), len(vertices))
  # Unique, because entries of an edge of two faces would be summed.
  edges, first = np.unique(np.sort(edges, axis=1), axis=0, return_index=True)
  graph = sparse.csr_array((lengths[first], edges.T), shape=size)
  distances = csgraph.dijkstra(graph, directed=False, indices=rows)
  gaps = ~np.isfinite(distances)
  if gaps.any():
    spatially = spatial.distance.cdist(vertices[rows], vertices)
    distances[gaps] = _APART + spatially[gaps]
  return distances


def _blend(
  distances: np.ndarray, num_neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
  """Nodes and weights of the vertices, [V, K] each, from distances [N, V]."""
  count = min(num_neighbours, len(distances) - 1)
  if count < 1:
    shape = (distances.shape[1], 1)
    return np.zeros(shape, np.int64), np.ones(shape)
  near = np.argpartition(distances, count, axis=0)[: count + 1]
  order = np.take_along_axis(distances, near, 0).argsort(0)
  near = np.take_along_axis(near, order, 0)
  close = np.take_along_axis(distances, near, 0)
  reach = np.maximum(close[count:], 1e-9)
  weights = np.maximum(1 - close[:count] / reach, 1e-4) ** 2
  # A part with few nodes is not moved by nodes of other parts.
  weights[close[:count] >= _APART] = 0.0
  weights[0] = np.maximum(weights[0], 1e-8)
  return near[:count].T, (weights / weights.sum(0)).T


def _edges(distances: np.ndarray, num_edges: int) -> np.ndarray:
  """Ordered pairs of neighbouring nodes [E, 2], from distances [N, N]."""
  num_nodes = len(distances)
  count = min(num_edges, num_nodes - 1)
  if count < 1:
    return np.zeros((0, 2), np.int64)
  distances = distances + np.diag(np.full(num_nodes, np.inf))
  near = np.argsort(distances, axis=1)[:, :count]
  pairs = np.stack([np.repeat(np.arange(num_nodes), count), near.ravel()], 1)
  apart = distances[pairs[:, 0], pairs[:, 1]] >= _APART
  pairs = np.concatenate([pairs[~apart], _bridges(distances)])
  return np.unique(np.concatenate([pairs, pairs[:, ::-1]]), axis=0)


def _bridges(distances: np.ndarray) -> np.ndarray:
  """Pairs of nodes that join disconnected parts, as a spanning tree."""
  if not (np.isfinite(distances) & (distances >= _APART)).any():
    return np.zeros((0, 2), np.int64)
  finite = np.where(np.isfinite(distances), distances, 0.0)
  tree = csgraph.minimum_spanning_tree(finite).tocoo()
  apart = tree.data >= _APART
  return np.stack([tree.row[apart], tree.col[apart]], 1).astype(np.int64)
