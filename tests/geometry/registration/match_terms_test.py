"""Tests of sculpt4d_jax.geometry.registration.match_terms."""

import numpy as np
import pytest

from sculpt4d_jax.geometry.registration import graph as graph_lib
from sculpt4d_jax.geometry.registration import match_terms
from sculpt4d_jax.geometry.registration import rotations
from sculpt4d_jax.geometry.registration import settings as settings_lib
from sculpt4d_jax.geometry.registration import surfaces
from tests.geometry.registration import shapes

_POINT_WEIGHT = 0.3


def _case(num_nodes: int) -> tuple[graph_lib.Graph, graph_lib.Pose]:
  mesh = shapes.joined(shapes.box(), shapes.ball(0.2, (0.9, 0, 0), rings=6))
  model = surfaces.Model.of(mesh.vertices, mesh.faces)
  settings = settings_lib.GraphSettings(num_nodes=num_nodes)
  graph = graph_lib.Graph(model, settings)
  rng = np.random.default_rng(0)
  turns = rotations.from_vectors(0.4 * rng.normal(size=(graph.num_nodes, 3)))
  shifts = 0.1 * rng.normal(size=(graph.num_nodes, 3))
  return graph, graph_lib.Pose(turns, shifts)


def _jacobian(
  graph: graph_lib.Graph, pose: graph_lib.Pose, rows: np.ndarray
) -> np.ndarray:
  """Derivatives of the vertices by differences, [M, 3, 6 N]."""
  size, small = 6 * graph.num_nodes, 1e-6
  columns = []
  for index in range(size):
    step = np.zeros(size)
    step[index] = small
    step = step.reshape(-1, 6)
    ahead, behind = (graph.blend(pose.moved(s))[rows] for s in (step, -step))
    columns.append((ahead - behind) / (2 * small))
  return np.stack(columns, axis=-1)


@pytest.mark.parametrize("num_nodes", [1, 3, 12])
def test_terms_are_those_of_the_derivatives(num_nodes: int) -> None:
  graph, pose = _case(num_nodes)
  rng = np.random.default_rng(1)
  count = 70
  rows = rng.integers(len(graph.model.vertices), size=count)  # Some twice.
  residuals = rng.normal(size=(count, 3))
  normals = surfaces.unit(rng.normal(size=(count, 3)))
  weights = rng.uniform(size=count)
  metric = normals[:, :, None] * normals[:, None] + _POINT_WEIGHT * np.eye(3)
  metric *= weights[:, None, None]
  jacobian = _jacobian(graph, pose, rows)
  expected = np.einsum("mxi,mxy,myj->ij", jacobian, metric, jacobian)

  terms = match_terms.MatchTerms.of(graph)
  blocks = terms.matrix(pose, rows, normals, weights, _POINT_WEIGHT)
  matrix = np.zeros((graph.num_nodes, 6, graph.num_nodes, 6))
  for (one, other), block in zip(terms.pairs, blocks):
    matrix[one, :, other] = block
    matrix[other, :, one] = block.T
  np.testing.assert_allclose(
    matrix.reshape(expected.shape), expected, atol=1e-7
  )
  slope = terms.slope(pose, rows, residuals, normals, weights, _POINT_WEIGHT)
  np.testing.assert_allclose(
    slope.ravel(),
    -np.einsum("mxi,mxy,my->i", jacobian, metric, residuals),
    atol=1e-7,
  )


def test_a_pair_of_nodes_occurs_once() -> None:
  graph, _ = _case(12)
  pairs = match_terms.MatchTerms.of(graph).pairs
  assert (pairs[:, 0] <= pairs[:, 1]).all()
  assert len(np.unique(pairs, axis=0)) == len(pairs)
