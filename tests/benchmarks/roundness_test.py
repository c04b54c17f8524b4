"""A ball is round, a cube less, and nothing not at all."""

import numpy as np
import pytest
import trimesh

from benchmarks import roundness
from sculpt4d_jax.geometry.mesh import TriangleMesh


def _mesh(shape):
  return TriangleMesh(shape.vertices, shape.faces)


def test_a_ball_off_the_centre_is_round():
  ball = trimesh.creation.icosphere(subdivisions=4, radius=0.5)
  ball.apply_translation([0.1, -0.2, 0.3])
  found = roundness.measure(_mesh(ball))
  assert found.iou > 0.97
  np.testing.assert_allclose(found.sides, 1.0, atol=0.02)


def test_a_bar_is_not():
  # Of volume 0.048, as a ball of radius 0.2255: it sticks out at both ends.
  bar = trimesh.creation.box([0.2, 0.2, 1.2])
  found = roundness.measure(_mesh(bar))
  assert found.iou < 0.5
  np.testing.assert_allclose(
    found.sides, np.array([0.2, 0.2, 1.2]) / 0.451, rtol=0.05
  )


def test_nothing_is_not_round():
  nothing = TriangleMesh(np.zeros((0, 3)), np.zeros((0, 3), int))
  assert roundness.measure(nothing).iou == pytest.approx(0.0)
