"""Intersection over union of the volumes, on the cells of a grid."""

import functools

from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation.protocols.metrics import metric

ClipPair = metric.ClipPair


def iou(pair: ClipPair, frame: int, *, resolution: int) -> float:
  """IoU of the cells of a grid over [-1, 1]^3 by winding numbers."""
  return geometry_metrics.intersection_over_union(
    *(
      geometry_metrics.grid_occupancy(mesh, resolution)
      for mesh in pair.meshes(frame)
    )
  )


IOU_64, IOU_128 = (
  metric.Metric(
    f"iou_{resolution}",
    f"IoU {resolution}³",
    "higher",
    0.0,
    functools.partial(iou, resolution=resolution),
  )
  for resolution in (64, 128)
)
