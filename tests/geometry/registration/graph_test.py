import numpy as np
import pytest

from sculpt4d_jax.geometry.registration import graph as graph_lib
from sculpt4d_jax.geometry.registration import rotations
from sculpt4d_jax.geometry.registration import settings as settings_lib
from sculpt4d_jax.geometry.registration import surfaces
from tests.geometry.registration import shapes

SETTINGS = settings_lib.GraphSettings(num_nodes=30)


def _graph(mesh):
  return graph_lib.Graph(surfaces.Model.of(mesh.vertices, mesh.faces), SETTINGS)


def _rigid(graph, turn, shift):
  places = graph.places
  turns = np.tile(turn, (graph.num_nodes, 1, 1))
  return graph_lib.Pose(turns, places @ turn.T + shift - places)


def test_the_pose_at_rest_moves_nothing():
  mesh = shapes.box()
  graph = _graph(mesh)
  at_rest = graph_lib.Pose.at_rest(graph.num_nodes)
  np.testing.assert_allclose(graph.blend(at_rest), mesh.vertices, atol=1e-12)


def test_nodes_that_move_rigidly_move_the_mesh_rigidly():
  mesh = shapes.box()
  graph = _graph(mesh)
  turn, shift = shapes.turn(0.7), np.array([1, -2, 0.5])
  np.testing.assert_allclose(
    graph.blend(_rigid(graph, turn, shift)),
    mesh.vertices @ turn.T + shift,
    atol=1e-12,
  )


def test_pose_of_a_rigid_motion_is_that_motion():
  mesh = shapes.box()
  graph = _graph(mesh)
  wanted = _rigid(graph, shapes.turn(0.7), np.array([1, -2, 0.5]))
  pose = graph.pose_of(graph.blend(wanted))
  np.testing.assert_allclose(pose.turns, wanted.turns, atol=1e-9)
  np.testing.assert_allclose(pose.shifts, wanted.shifts, atol=1e-9)


def test_limbs_that_are_close_in_space_are_not_tied():
  """A hairpin: two bars 0.02 apart, joined at one end."""
  bar = shapes.box((1, 0.1, 0.1), (30, 3, 3))
  x, y, z = bar.vertices.T
  bent = np.where(x[:, None] < 0, 1, -1) * np.array([0, 0.06, 0])
  folded = np.stack([np.abs(x), np.where(x < 0, y, -y), z], 1) + bent
  graph = _graph(type(bar)(folded, bar.faces))
  one, other = graph.places[graph.edges].transpose(1, 0, 2)
  crossing = (one[:, 1] > 0) != (other[:, 1] > 0)
  assert (one[crossing, 0] < 0.25).all()
  tips = graph.places[graph.near[folded[:, 0] > 0.4]]
  assert (np.sign(tips[..., 1]).std(axis=1) == 0).all()


def test_parts_are_moved_by_their_own_nodes_and_kept_together():
  pair = shapes.joined(
    shapes.ball(0.5, (-1, 0, 0)), shapes.ball(0.5, (1, 0, 0))
  )
  graph = _graph(pair)
  sides = np.sign(graph.places[:, 0])
  active = graph.weights > 0
  same = sides[graph.near] == np.sign(pair.vertices[:, :1])
  assert same[active].all()
  bridges = sides[graph.edges[:, 0]] != sides[graph.edges[:, 1]]
  assert bridges.sum() == 2  # One pair, in both directions.


def test_rotation_vectors_come_back():
  vectors = np.random.default_rng(0).normal(size=(20, 3))
  turns = rotations.from_vectors(vectors)
  np.testing.assert_allclose(
    turns @ turns.transpose(0, 2, 1), np.tile(np.eye(3), (20, 1, 1)), atol=1e-12
  )
  np.testing.assert_allclose(rotations.to_vectors(turns), vectors, atol=1e-9)


def test_nearest_rotation_of_a_stretched_one_is_it():
  turns = rotations.from_vectors(np.random.default_rng(0).normal(size=(9, 3)))
  stretched = turns @ np.diag([1.0, 2.0, 3.0])
  np.testing.assert_allclose(rotations.nearest(stretched), turns, atol=1e-12)
  assert np.linalg.det(rotations.nearest(-np.eye(3)[None])[0]) == pytest.approx(
    1
  )
