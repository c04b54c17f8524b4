"""Retrieval baselines: answers chosen among training clips.

Retrieval by picture uses only the input. Retrieval by truth gives the best
training clip, which cannot be found without the answer.
"""

from collections.abc import Sequence

import numpy as np

from sculpt4d_jax.evaluation import geometry_metrics

_PICTURE_SIDE = 24


def picture_feature(images: np.ndarray) -> np.ndarray:
  """Feature vector for comparing pictures: small colour images.

  Args:
    images: uint8 [F, S, S, 3] on white, S at least 1.
  """
  side = images.shape[1]
  edges = np.linspace(0, side, min(_PICTURE_SIDE, side) + 1).round().astype(int)
  small = images.astype(np.float32) / 255
  for axis in (1, 2):
    sums = np.add.reduceat(small, edges[:-1], axis=axis)
    counts = np.diff(edges).reshape((-1, 1, 1) if axis == 1 else (-1, 1))
    small = sums / counts
  return small.reshape(-1)


def nearest_by_picture(
  images: np.ndarray, candidates: Sequence[np.ndarray]
) -> int:
  """The candidate whose pictures are nearest.

  Args:
    images: Pictures of the clip, [F, S, S, 3].
    candidates: Pictures of the training clips, of the same shape.

  Returns:
    Its number; the first of several that are equally near.
  """
  feature = picture_feature(images)
  distances = [
    float(np.square(picture_feature(other) - feature).sum())
    for other in candidates
  ]
  return int(np.argmin(distances))


def nearest_by_truth(
  occupied: np.ndarray, candidates: Sequence[np.ndarray]
) -> int:
  """The candidate with the largest mean intersection over union.

  Args:
    occupied: Whether places are inside the true object, bool [F, P].
    candidates: The same of the training clips.

  Returns:
    Its number; the first of several that are equally good.
  """
  scores = [
    np.mean(
      [
        geometry_metrics.intersection_over_union(a, b)
        for a, b in zip(occupied, other, strict=True)
      ]
    )
    for other in candidates
  ]
  return int(np.argmax(scores))
