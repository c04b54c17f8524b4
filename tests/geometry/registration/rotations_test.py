"""Tests of sculpt4d_jax.geometry.registration.rotations."""

import numpy as np
import pytest
from scipy.spatial import transform

from sculpt4d_jax.geometry.registration import rotations


def _by_svd(matrix: np.ndarray) -> np.ndarray:
  left, _, right = np.linalg.svd(matrix)
  sign = np.sign(np.linalg.det(left @ right))
  return left @ np.diag([1, 1, sign]) @ right


def _with_values(count: int, values: list[float]) -> np.ndarray:
  """Matrices with given singular values, the last one signed."""
  turns = transform.Rotation.random(2 * count, random_state=3).as_matrix()
  return turns[:count] @ np.diag(values) @ turns[count:]


@pytest.mark.parametrize(
  "values",
  [
    [1, 1, 1],
    [3, 2, 1],
    [3, 2, 0],  # Flat, as the edges around a vertex of a flat surface.
    [3, 2, -1],  # A reflection.
    [1, 0.5, -0.49],
    [1, 1e-3, 0],
    [1, 1e-6, 1e-7],  # Almost a line.
    [1e-9, 5e-10, 1e-10],  # The scale does not matter.
    [1e9, 1e8, -1e7],
  ],
)
def test_nearest_agrees_with_the_singular_value_decomposition(
  values: list[float],
) -> None:
  matrices = _with_values(50, values)
  found = rotations.nearest(matrices)
  expected = np.stack([_by_svd(matrix) for matrix in matrices])
  np.testing.assert_allclose(found, expected, atol=1e-8)


def test_nearest_gives_rotations_of_undetermined_matrices() -> None:
  matrices = np.stack(
    [np.zeros((3, 3)), np.outer([1, 2, 3], [0, 1, 0]), -np.eye(3), np.eye(3)]
  )
  found = rotations.nearest(matrices)
  np.testing.assert_allclose(
    found @ found.transpose(0, 2, 1), np.tile(np.eye(3), (4, 1, 1)), atol=1e-12
  )
  np.testing.assert_allclose(np.linalg.det(found), 1.0)
  np.testing.assert_allclose(found[3], np.eye(3), atol=1e-12)


def test_nearest_of_nothing() -> None:
  assert rotations.nearest(np.zeros((0, 3, 3))).shape == (0, 3, 3)
