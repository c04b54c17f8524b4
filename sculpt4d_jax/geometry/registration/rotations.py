"""Batches of rotations."""

import numpy as np
from scipy.spatial import transform

_MAX_NEWTON_STEPS = 20
# Product of the sums of two singular values of a matrix of norm 1, below which
# rounding is noticeable.
_MIN_CLEAR = 1e-3


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
  """The proper rotations [N, 3, 3] closest to matrices [N, 3, 3].

  Four times as fast as a singular value decomposition, which is used for
  matrices whose nearest rotation is hardly determined.

  Source: Markley, Attitude Determination using Vector Observations: A Fast
  Optimal Matrix Algorithm, 1993.
  """
  size = np.linalg.norm(matrices, axis=(1, 2))
  scaled = matrices / np.maximum(size, 1e-300)[:, None, None]
  first, second, third = scaled.transpose(1, 0, 2)
  cofactors = np.stack(
    [np.cross(second, third), np.cross(third, first), np.cross(first, second)],
    axis=1,
  )
  det = np.einsum("nx,nx->n", first, cofactors[:, 0])
  minors = 4 * np.einsum("nyx,nyx->n", cofactors, cofactors)
  # Sum of the singular values, the last one with the determinant's sign: the
  # largest root of a quartic. Newton's steps from above approach it
  # monotonically.
  trace = np.full(len(matrices), np.sqrt(3.0))
  for _ in range(_MAX_NEWTON_STEPS):
    excess = trace * trace - 1
    slope = 4 * trace * excess - 8 * det
    step = (excess * excess - 8 * trace * det - minors) / np.where(
      np.abs(slope) > 1e-30, slope, 1.0
    )
    trace = trace - step
    if np.abs(step).max(initial=0.0) < 1e-15:
      break
  half = (trace * trace - 1) / 2
  scale = half * trace - det
  clear = (scale > _MIN_CLEAR) & (size > 1e-300)
  turns = (half + 1)[:, None, None] * scaled
  turns += trace[:, None, None] * cofactors
  turns -= scaled @ (scaled.transpose(0, 2, 1) @ scaled)
  turns /= np.where(clear, scale, 1.0)[:, None, None]
  if not clear.all():
    turns[~clear] = _nearest_by_svd(matrices[~clear])
  return turns


def _nearest_by_svd(matrices: np.ndarray) -> np.ndarray:
  left, _, right = np.linalg.svd(matrices)
  # Exclude reflections: flip the direction of the smallest singular value.
  left[:, :, 2] *= np.sign(np.linalg.det(left @ right))[:, None]
  return left @ right
