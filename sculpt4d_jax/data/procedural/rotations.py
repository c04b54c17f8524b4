"""Rotations of the parts of procedural objects."""

from collections.abc import Sequence

import numpy as np


def rotation_about(
  axis: Sequence[float], angle: np.ndarray | float
) -> np.ndarray:
  """Rotation matrices [..., 3, 3] about an axis by angles [...] in radians."""
  angle = np.asarray(angle, np.float64)
  x, y, z = np.asarray(axis, np.float64) / np.linalg.norm(axis)
  cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
  sine, cosine = (f(angle)[..., None, None] for f in (np.sin, np.cos))
  return np.eye(3) + sine * cross + (1 - cosine) * (cross @ cross)


def follow_axis(axis: np.ndarray) -> np.ndarray:
  """Rotations [F, 3, 3] whose y axis follows `axis` [F, 3] without twist.

  Each frame is the minimal rotation from the clip's mean direction, so points
  on the part's surface do not twist around its axis.
  """
  axis = axis / np.maximum(np.linalg.norm(axis, axis=-1, keepdims=True), 1e-9)
  mean = axis.mean(0)
  if np.linalg.norm(mean) < 1e-3:
    mean = axis[0]
  mean = mean / np.linalg.norm(mean)
  helper = np.eye(3)[np.argmin(np.abs(mean))]
  side = np.cross(mean, helper)
  side /= np.linalg.norm(side)
  base = np.stack([side, mean, np.cross(side, mean)], -1)
  cross = np.cross(mean, axis)
  cosine = np.clip(axis @ mean, -0.999, None)
  skew = np.zeros((len(axis), 3, 3))
  skew[:, 0, 1], skew[:, 0, 2] = -cross[:, 2], cross[:, 1]
  skew[:, 1, 0], skew[:, 1, 2] = cross[:, 2], -cross[:, 0]
  skew[:, 2, 0], skew[:, 2, 1] = -cross[:, 1], cross[:, 0]
  turn = np.eye(3) + skew + skew @ skew / (1 + cosine)[:, None, None]
  return turn @ base
