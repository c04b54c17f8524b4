"""The definition of a metric."""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Literal

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation.protocols import clip_pair
from sculpt4d_jax.evaluation.protocols import conventions

ClipPair = clip_pair.ClipPair
NotDefined = clip_pair.NotDefined
WORST_DISTANCE = conventions.WORST_DISTANCE


@dataclasses.dataclass(frozen=True)
class Metric:
  """A column of a table.

  A function of a frame is not called for frames whose prediction has no
  surface: these get `worst`. A function of a clip sees all frames.

  Attributes:
    name: Key in the table of metrics and in JSON.
    title: Head of the column.
    better: The direction that is better.
    worst: Score of a frame without a surface; lengths in [-1, 1]^3.
    of_frame: Score of a frame, or None.
    of_clip: Score of a clip, or None.
    features_of_clip: Features of one clip that a score of a set of clips needs.
    of_set: Score of all clips from their features, and a note to print with it.

  These functions may raise `NotDefined` with the reason.
  """

  name: str
  title: str
  better: Literal["lower", "higher"]
  worst: float
  of_frame: Callable[[ClipPair, int], float] | None = None
  of_clip: Callable[[ClipPair], float] | None = None
  features_of_clip: Callable[[ClipPair], np.ndarray] | None = None
  of_set: Callable[[Sequence[np.ndarray]], tuple[float, str]] | None = None

  def __post_init__(self):
    given = (self.of_frame, self.of_clip, self.of_set)
    if sum(function is not None for function in given) != 1:
      raise UserError(f"{self.name} needs one of of_frame, of_clip and of_set.")
    if (self.of_set is None) != (self.features_of_clip is None):
      raise UserError(f"{self.name} needs features_of_clip for of_set.")

  def scores(self, pair: ClipPair) -> np.ndarray:
    """A score a frame, float64 [F], or the clip's alone [1].

    Raises:
      NotDefined: The metric does not exist for this clip.
    """
    if self.of_set is not None:
      raise NotDefined("it is of a set of clips")
    if self.of_clip is not None:
      return np.array([self.of_clip(pair)], np.float64)
    return np.array(
      [self.frame_score(pair, frame) for frame in range(pair.num_frames)],
      np.float64,
    )

  def frame_score(self, pair: ClipPair, frame: int) -> float:
    """The score of one frame; `worst` if its prediction has no surface."""
    if pair.is_empty[frame]:
      return self.worst
    return float(self.of_frame(pair, frame))
