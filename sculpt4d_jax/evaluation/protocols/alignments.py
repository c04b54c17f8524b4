"""Alignments of a prediction with the truth, used by protocols.

A transform is a function of points [P, 3]. Normalisation and alignment return
two of them, one for the prediction and one for the truth; the latter is the
identity in most protocols.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np
from scipy import spatial

from sculpt4d_jax.evaluation import geometry_metrics

Transform = Callable[[np.ndarray], np.ndarray]

_ICP_ITERATIONS = 1000
_ICP_TOLERANCE = 1e-7
_SCALE_LIMITS = (0.95, 1.05)
ICP_TRUTH_POINTS = 10_000


def identity(points: np.ndarray) -> np.ndarray:
  """Returns the points unchanged."""
  return points


def compose(last: Transform, first: Transform) -> Transform:
  """The transform that applies `first`, then `last`."""
  if last is identity:
    return first
  if first is identity:
    return last
  return lambda points: last(first(points))


@dataclasses.dataclass(frozen=True)
class _Scale:
  """(x - centre) * factor."""

  centre: np.ndarray
  factor: float

  def __call__(self, points: np.ndarray) -> np.ndarray:
    return (np.asarray(points, np.float64) - self.centre) * self.factor


def to_cube(clouds: Sequence[np.ndarray]) -> Transform:
  """The scaling of one box around all points to a longest side of 2."""
  clouds = [cloud for cloud in clouds if len(cloud)]
  if not clouds:
    return identity
  low = np.min([cloud.min(0) for cloud in clouds], axis=0).astype(np.float64)
  high = np.max([cloud.max(0) for cloud in clouds], axis=0).astype(np.float64)
  size = float((high - low).max())
  if not size > 0.0:
    return identity
  return _Scale((low + high) / 2.0, 2.0 / size)


def first_frame_icp(
  vertices: np.ndarray, truth: np.ndarray, *, as_reference: bool = False
) -> tuple[Transform, Transform]:
  """Motion 3-to-4's alignment of a first frame.

  Point-to-point ICP of vertices to surface points of the truth, at most 1,000
  iterations, until the mean distance changes by less than 1e-7; then a scale,
  which is the ratio of the larger of the extents in x and y, within 0.95 and
  1.05.

  Args:
    vertices: The prediction's [V, 3].
    truth: Surface points of the truth [P, 3].
    as_reference: Whether rotations are composed in the wrong order and the
      transform found for the prediction is applied to the truth instead, as
      the reference does.

  Returns:
    Transforms of the prediction and of the truth.

  Source: Motion 3-to-4, `evaluation_pcd.py`, commit fe094a4.
  """
  tree = spatial.cKDTree(truth)
  rotation, shift = np.eye(3), np.zeros(3)
  moved, previous = np.asarray(vertices, np.float64), np.inf
  for _ in range(_ICP_ITERATIONS):
    distances, nearest = tree.query(moved)
    change, step = geometry_metrics.rigid_fit(moved, truth[nearest])
    moved = moved @ change.T + step
    shift = change @ shift + step
    rotation = rotation @ change if as_reference else change @ rotation
    if abs(previous - distances.mean()) < _ICP_TOLERANCE:
      break
    previous = distances.mean()
  extents = [np.ptp(points[:, :2], axis=0).max() for points in (truth, moved)]
  scale = float(np.clip(extents[0] / max(extents[1], 1e-12), *_SCALE_LIMITS))

  def transform(points: np.ndarray) -> np.ndarray:
    return scale * (np.asarray(points, np.float64) @ rotation.T + shift)

  return (identity, transform) if as_reference else (transform, identity)
