"""Batches that mix clips of two sources in a fixed share; see `batches`."""

import numpy as np

from sculpt4d_jax.data import batches as batches_lib
from sculpt4d_jax.errors import UserError

Batch = batches_lib.Batch


class MixedBatches:
  """Batches whose first clips are of one source, the others of a second.

  Held-out clips of the two alternate while both have some.
  """

  def __init__(
    self,
    first: batches_lib.Batches,
    second: batches_lib.Batches,
    num_first: int,
  ):
    """Mixes two sources.

    Args:
      first: Batches of `num_first` clips.
      second: Batches of the other clips.
      num_first: Clips of a batch that are of the first source.

    Raises:
      ValueError: Their clips have different numbers of frames.
    """
    if first.num_frames != second.num_frames:
      raise UserError(
        "clips of one batch must have the same number of frames, got"
        f" {first.num_frames} and {second.num_frames}."
      )
    self._first, self._second = first, second
    self._num_first = num_first
    self.num_frames = first.num_frames
    self.num_held_out = first.num_held_out + second.num_held_out

  def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
    """The batch of a step, or some of its clips; the first source's lead."""
    if rows is None:
      return _joined(self._first.batch(step), self._second.batch(step))
    is_first = rows < self._num_first
    parts = []
    if is_first.any():
      parts.append(self._first.batch(step, rows[is_first]))
    if not is_first.all():
      rest = rows[~is_first] - self._num_first
      parts.append(self._second.batch(step, rest))
    if len(parts) == 2 and (np.diff(is_first.astype(int)) > 0).any():
      raise UserError(f"rows={rows} must grow.")
    return parts[0] if len(parts) == 1 else _joined(*parts)

  def describe(self, step: int) -> str:
    """Describes the content of a step's batch, for messages."""
    return f"{self._first.describe(step)}; {self._second.describe(step)}"

  def held_out(self, clip: int) -> Batch:
    """A batch of one held-out clip."""
    both = min(self._first.num_held_out, self._second.num_held_out)
    if clip < 2 * both:
      source = self._second if clip % 2 else self._first
      return source.held_out(clip // 2)
    longer = self._first
    if self._second.num_held_out > both:
      longer = self._second
    return longer.held_out(clip - both)


def _joined(first: Batch, second: Batch) -> Batch:
  return {
    name: np.concatenate([first[name], second[name].astype(first[name].dtype)])
    for name in first
  }
