"""Metrics of points that are tracked through a clip.

Both sides need one topology, or a tracked cloud: points are sampled on the
first frame with barycentric coordinates. A point corresponds in all frames to
the nearest point of the other side in frame 0.

  cd_m           mean over points and frames of the distance between
  corresponding points; the sum of both directions
  vertex_jitter  mean |D p - D q| over the prediction's points p and the points
                 q of the truth that belong to them, D g = g[t-1] - 2 g[t] +
                 g[t+1]; length per frame squared

Source of `cd_m`: ActionMesh, ActionBench's evaluation, 2026.
"""

import numpy as np

from sculpt4d_jax.evaluation import nearest
from sculpt4d_jax.evaluation.protocols.metrics import metric

ClipPair = metric.ClipPair
_WORST = 2 * metric.WORST_DISTANCE


def motion_chamfer(pair: ClipPair) -> float:
  """CD-M; frames without a surface count with the largest distance."""
  prediction, truth = pair.tracked
  if pair.is_empty[0]:
    return _WORST  # No correspondences exist.
  total = 0.0
  for points, others in ((truth, prediction), (prediction, truth)):
    _, matches = nearest.nearest(others[0], points[0])
    for frame in range(pair.num_frames):
      if pair.is_empty[frame]:
        total += metric.WORST_DISTANCE
      else:
        gap = others[frame][matches] - points[frame]
        total += np.linalg.norm(gap, axis=1).mean()
  return float(total / pair.num_frames)


def vertex_jitter(pair: ClipPair) -> float:
  """Mean difference of accelerations; see the module."""
  prediction, truth = pair.tracked
  if pair.num_frames < 3:
    raise metric.NotDefined("there are fewer than three frames")
  if pair.is_empty.any():
    raise metric.NotDefined("a predicted frame has no surface")
  _, matches = nearest.nearest(truth[0], prediction[0])
  accelerations = [
    points[:-2] - 2.0 * points[1:-1] + points[2:]
    for points in (prediction, truth[:, matches])
  ]
  gaps = np.linalg.norm(accelerations[0] - accelerations[1], axis=-1)
  return float(gaps.mean())


CD_M = metric.Metric("cd_m", "CD-M", "lower", _WORST, of_clip=motion_chamfer)
VERTEX_JITTER = metric.Metric(
  "vertex_jitter", "Vertex jitter", "lower", np.nan, of_clip=vertex_jitter
)
