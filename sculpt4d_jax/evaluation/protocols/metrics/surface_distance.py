"""Chamfer distances and F-Scores of points sampled on both surfaces.

Distances are Euclidean, never squared. `cd` is the mean of the mean distances
of both directions and `cd_sum` their sum; papers use either name for both.
"""

import functools

import numpy as np

from sculpt4d_jax.evaluation.protocols.metrics import metric

ClipPair = metric.ClipPair


def chamfer(
  pair: ClipPair, frame: int, *, factor: float = 1.0, per_frame: bool = False
) -> float:
  """`factor` times the sum of the mean distances of both directions."""
  found = pair.distances(frame, per_frame=per_frame)
  return factor * float(found.to_truth.mean() + found.to_prediction.mean())


def f_score(pair: ClipPair, frame: int, *, threshold: float) -> float:
  """Harmonic mean of the shares of points closer than the threshold.

  Source: Knapitsch et al., Tanks and Temples, 2017.
  """
  found = pair.distances(frame)
  precision = np.mean(found.to_truth < threshold)
  recall = np.mean(found.to_prediction < threshold)
  total = precision + recall
  return float(2.0 * precision * recall / total) if total else 0.0


CD = metric.Metric(
  "cd",
  "CD (mean)",
  "lower",
  metric.WORST_DISTANCE,
  functools.partial(chamfer, factor=0.5),
)
CD_SUM = metric.Metric(
  "cd_sum", "CD (sum)", "lower", 2 * metric.WORST_DISTANCE, chamfer
)
CD_3D = metric.Metric(
  "cd_3d",
  "CD-3D",
  "lower",
  2 * metric.WORST_DISTANCE,
  functools.partial(chamfer, per_frame=True),
)
CD_4D = metric.Metric(
  "cd_4d", "CD-4D", "lower", 2 * metric.WORST_DISTANCE, chamfer
)
F_001, F_002, F_005 = (
  metric.Metric(
    f"f_{threshold:g}",
    f"F@{threshold:g}",
    "higher",
    0.0,
    functools.partial(f_score, threshold=threshold),
  )
  for threshold in (0.01, 0.02, 0.05)
)
