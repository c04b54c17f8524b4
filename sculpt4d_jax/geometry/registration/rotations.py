"""Batches of rotations."""

import numpy as np
from scipy.spatial import transform


def from_vectors(vectors: np.ndarray) -> np.ndarray:
  """Rotations [N, 3, 3] about vectors [N, 3] by their lengths in radians."""
  angle = np.linalg.norm(vectors, axis=1)
  cross = skew(vectors / np.maximum(angle, 1e-12)[:, None])
  sine, cosine = np.sin(angle)[:, None, None], np.cos(angle)[:, None, None]
  return np.eye(3) + sine * cross + (1 - cosine) * (cross @ cross)


def to_vectors(rotations: np.ndarray) -> np.ndarray:
  """Rotation vectors [N, 3] of rotations [N, 3, 3]; angles up to pi."""
  return transform.Rotation.from_matrix(rotations).as_rotvec()


def skew(vectors: np.ndarray) -> np.ndarray:
  """Matrices [N, 3, 3] that take x to the cross product of vector and x."""
  matrices = np.zeros((len(vectors), 3, 3))
  x, y, z = vectors.T
  matrices[:, 0, 1], matrices[:, 0, 2], matrices[:, 1, 2] = -z, y, -x
  matrices[:, 1, 0], matrices[:, 2, 0], matrices[:, 2, 1] = z, -y, x
  return matrices


def nearest(matrices: np.ndarray) -> np.ndarray:
  """The proper rotations [N, 3, 3] closest to matrices [N, 3, 3]."""
  left, _, right = np.linalg.svd(matrices)
  # Exclude reflections: flip the direction of the smallest singular value.
  left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
  return left @ right
