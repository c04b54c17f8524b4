"""The Frechet distance between sets of features, and one named after it.

The Frechet distance of two normal distributions is

  |mean_a - mean_b|^2 + tr Ca + tr Cb - 2 tr sqrt(Ca Cb).

With centred rows A and B, divided by sqrt(n - 1), the last trace is the sum of
the singular values of A B^T: this needs no matrix square root, and is exact for
fewer samples than features, when the product is singular.

Sources: Dowson and Landau, The Frechet distance between multivariate normal
distributions, 1982; Unterthiner et al., Towards Accurate Generative Models of
Video, 2018 (FVD).
"""

import numpy as np

from sculpt4d_jax.errors import UserError


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
  """Squared Frechet distance of two sets of features [N, D] and [M, D].

  Raises:
    ValueError: A set has fewer than two rows, or they do not fit.
  """
  a, b = (np.asarray(x, np.float64) for x in (a, b))
  if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
    raise UserError(
      f"expected features [N, D] and [M, D], got {a.shape} and {b.shape}."
    )
  if min(len(a), len(b)) < 2:
    raise UserError(
      f"a Frechet distance needs two samples a set, got {len(a)} and {len(b)};"
      " a single one has no covariance."
    )
  means = [x.mean(0) for x in (a, b)]
  rows = [(x - mean) / np.sqrt(len(x) - 1) for x, mean in zip((a, b), means)]
  traces = sum(float(np.square(x).sum()) for x in rows)
  cross = np.linalg.svd(rows[0] @ rows[1].T, compute_uv=False).sum()
  shift = np.square(means[0] - means[1]).sum()
  return float(max(shift + traces - 2.0 * cross, 0.0))


def rank(a: np.ndarray, b: np.ndarray) -> int:
  """The largest rank that the covariances of two sets can have."""
  return min(len(a), len(b), np.shape(a)[1] + 1) - 1


def single_clip_distance(a: np.ndarray, b: np.ndarray) -> float:
  """What Consistent4D prints as FVD, of two feature vectors [D].

  |a - b|^2 + (std a - std b)^2, the standard deviations over the D features of
  the one vector. It compares two clips, not two sets, and is not comparable
  with a Frechet distance.
  """
  a, b = (np.asarray(x, np.float64) for x in (a, b))
  if a.ndim != 1 or a.shape != b.shape:
    raise UserError(
      f"expected two vectors of one length, got {a.shape} and {b.shape}."
    )
  gap = np.std(a, ddof=1) - np.std(b, ddof=1)
  return float(np.square(a - b).sum() + np.square(gap))
