"""Clusters of colours, by SciPy's k-means."""

import warnings

import numpy as np

_JITTER = 1e-3  # Levels; equal colours would give empty clusters.


def find(
  colours: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
  """Divides colours [N, 3]; returns centres [count, 3] and labels [N]."""
  from scipy.cluster import vq  # Most clips need no clusters, nor this wait.

  count = min(count, len(colours))
  samples = colours + rng.normal(scale=_JITTER, size=colours.shape)
  with warnings.catch_warnings():
    # No pixel has the label of an empty cluster, so it does no harm.
    warnings.simplefilter("ignore", UserWarning)
    return vq.kmeans2(samples, count, minit="++", rng=rng)
