"""Distances from points of one surface to the other surface itself.

Unlike distances between sampled points they have no floor: equal surfaces have
distance zero for any tessellation.
"""

import igl
import numpy as np

from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation.protocols.metrics import metric
from sculpt4d_jax.geometry import mesh as mesh_lib

ClipPair = metric.ClipPair
_NUM_POINTS = 50_000


def point_to_surface(pair: ClipPair, frame: int) -> float:
  """Mean of both directions' mean distances, 50,000 points each."""
  prediction, truth = pair.meshes(frame)
  seed = pair.conventions.seed + frame
  total = 0.0
  for source, target in ((prediction, truth), (truth, prediction)):
    points = geometry_metrics.surface_points(source, _NUM_POINTS, seed)
    total += float(distances(points, target).mean())
  return total / 2.0


def distances(points: np.ndarray, mesh: mesh_lib.TriangleMesh) -> np.ndarray:
  """Distances of points [P, 3] to a mesh with faces, float64 [P]."""
  squared, _, _ = igl.point_mesh_squared_distance(
    np.ascontiguousarray(points, np.float64),
    mesh.vertices.astype(np.float64),
    mesh.faces.astype(np.int64),
  )
  return np.sqrt(squared)


P2S = metric.Metric(
  "p2s", "P2S", "lower", metric.WORST_DISTANCE, point_to_surface
)
