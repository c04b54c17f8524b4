"""Rotations that follow an axis."""

import numpy as np

from sculpt4d_jax.data.procedural import rotations


def test_follow_axis_turns_y_onto_the_axis_without_twist():
  angles = np.linspace(0, 1.2, 5)
  axis = np.stack([np.sin(angles), -np.cos(angles), 0 * angles], -1)
  turns = rotations.follow_axis(axis)
  np.testing.assert_allclose(turns[..., 1], axis, atol=1e-9)
  np.testing.assert_allclose(np.linalg.det(turns), 1.0, atol=1e-9)
  # The axis swings about z, so what pointed along z still does.
  z = turns.transpose(0, 2, 1)[0] @ np.array([0, 0, 1.0])
  np.testing.assert_allclose(turns @ z, np.tile([0, 0, 1], (5, 1)), atol=1e-9)
