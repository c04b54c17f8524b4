"""Interface between a training stage and its data.

`procedural/batches.py` serves procedural clips, `loading/batches.py` records of
assets.
"""

from typing import Protocol

import numpy as np

Batch = dict[str, np.ndarray]


class Batches(Protocol):
  """Batches of a stage, and its held-out clips.

  The autoencoder takes `surface` [B, F', P, 7] and `samples` [B, F', Q', 4];
  the DiT takes `mean` and `log_variance` [B, F, N, C] and either `images` uint8
  [B, F, S, S, 3] or `context` [B, F, I, D], and `samples` where it has a
  lesson for them.

  Attributes:
    num_frames: Frames of the clips.
    num_held_out: Clips that are held out.
  """

  num_frames: int
  num_held_out: int

  def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
    """The batch of a step, or some of its clips; depends on the step alone."""

  def describe(self, step: int) -> str:
    """Describes the content of a step's batch, for messages."""

  def held_out(self, clip: int) -> Batch:
    """A batch of one held-out clip, always the same; all of its frames."""
