"""ActionBench's figures by NumPy and SciPy alone, written from its description.

It shares no code with the project. Points and transforms are given, so that
the figures can be compared digit by digit.
"""

import numpy as np
from scipy import spatial


def chamfer(prediction, truth, num_queries=10_000, seed=44):
  """Sum of the mean distances of 10,000 query points to all other points."""
  total = 0.0
  for points, others, offset in (
    (prediction, truth, 0),
    (truth, prediction, 1),
  ):
    queries = points
    if len(points) > num_queries:
      order = np.random.RandomState(seed + offset).permutation(len(points))
      queries = points[order[:num_queries]]
    total += spatial.KDTree(others).query(queries)[0].mean()
  return total


def motion_chamfer(prediction, truth):
  """Neighbours of frame 0 are followed; [F, P, 3] and [F, Q, 3]."""
  total = 0.0
  for points, others in ((prediction, truth), (truth, prediction)):
    _, nearest = spatial.KDTree(others[0]).query(points[0])
    gaps = np.linalg.norm(others[:, nearest] - points, axis=-1)
    total += gaps.mean(axis=0).mean()
  return total
