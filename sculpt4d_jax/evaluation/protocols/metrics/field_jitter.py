"""Jitter of distance fields, which needs no correspondence.

See `geometry_metrics` for the definition. In a frame without a surface, all
points are outside.
"""

import numpy as np

from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation.protocols.metrics import metric

ClipPair = metric.ClipPair
_RESOLUTION = 32
_TRUNCATION = 0.1


def jitter(pair: ClipPair) -> float:
  """Jitter of truncated signed distances on a grid of 32^3 points."""
  if pair.num_frames < 3:
    raise metric.NotDefined("there are fewer than three frames")
  fields = np.array(
    [
      [
        geometry_metrics.grid_distance(mesh, _RESOLUTION, _TRUNCATION)
        for mesh in pair.meshes(frame)
      ]
      for frame in range(pair.num_frames)
    ]
  )
  found = geometry_metrics.motion(fields[:, 0], fields[:, 1], _TRUNCATION)
  return found.jitter


JITTER = metric.Metric("jitter", "Jitter", "lower", np.nan, of_clip=jitter)
