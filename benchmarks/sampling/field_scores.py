"""IoU and jitter of the decoder's field on a grid, fast and without meshes.

They follow the evaluator's definitions, with distances instead of meshes and
coarser grids, to compare hundreds of settings.
"""

import jax
import numpy as np

from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.geometry import placement as placement_lib
from sculpt4d_jax.inference import model as model_lib

GRID = 24
TRUNCATION = 0.1
_BOUNDS = 1.02


def points() -> np.ndarray:
  """Centres of the grid's cells, float32 [GRID^3, 3]."""
  return geometry_metrics.grid_points(GRID).astype(np.float32)


def fields(
  model: model_lib.Sculpt4D,
  latents: np.ndarray,
  band: float,
  placement: placement_lib.Placement | None = None,
) -> np.ndarray:
  """Predicted distances at upright points [F, GRID^3], truncated.

  Args:
    model: The networks.
    latents: Those of one clip [F, N, C].
    band: Distance at which the decoder's field is 1.
    placement: Result of `pipeline.placement`.
  """
  at = points()
  if placement is not None:
    at = placement.points(at)
  # The decoder knows nothing of points outside of its cube.
  outside = np.abs(at).max(1) > _BOUNDS
  at = np.clip(at, -_BOUNDS, _BOUNDS)
  values = np.array([model.field(frame)(at) * band for frame in latents])
  return np.clip(np.where(outside, -1.0, values), -TRUNCATION, TRUNCATION)


def true_fields(
  clip: solids.SyntheticClip, at: np.ndarray | None = None
) -> np.ndarray:
  """True distances at the points, or at others [GRID^3, 3]; truncated."""
  at = points() if at is None else at.astype(np.float32)
  at = np.broadcast_to(at, (clip.num_frames, *at.shape))
  solid = clip_records.trim(clip.solid)
  values = np.asarray(jax.device_get(clip_records.distances(solid, at)))
  return np.clip(values, -TRUNCATION, TRUNCATION)


def by_frame(
  predicted: np.ndarray, truth: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """IoU [F], and jitter [F - 2] of every frame with its two neighbours."""
  inside, truly = predicted > 0, truth > 0
  iou = (inside & truly).sum(1) / np.maximum((inside | truly).sum(1), 1)
  near = (np.abs(predicted) < TRUNCATION) | (np.abs(truth) < TRUNCATION)
  near = near[:-2] | near[1:-1] | near[2:]
  error = predicted - truth
  change = np.abs(error[:-2] - 2 * error[1:-1] + error[2:])
  return iou, np.where(near, change, 0).sum(1) / np.maximum(near.sum(1), 1)


def sequence_metrics(
  predicted: np.ndarray, truth: np.ndarray, name: str
) -> evaluator.SequenceMetrics:
  """Scores of distances [F, Q]; Chamfer and F-Score are NaN."""
  iou = by_frame(predicted, truth)[0]
  nothing = np.full(len(iou), np.nan)
  motion = geometry_metrics.motion(predicted, truth, TRUNCATION)
  return evaluator.SequenceMetrics(
    name=name,
    chamfer=nothing,
    iou=iou,
    f_score=nothing,
    motion=motion,
    num_empty=int((~(predicted > 0).any(1)).sum()),
  )
