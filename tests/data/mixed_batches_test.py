"""Batches of two sources, for one process and for several."""

import numpy as np
import pytest

from sculpt4d_jax.data import mixed_batches


class _Counting:
  """Clips that tell their source, step and row."""

  def __init__(self, name, size, num_held_out, num_frames=4):
    self.name, self.size = name, size
    self.num_frames, self.num_held_out = num_frames, num_held_out

  def batch(self, step, rows=None):
    rows = np.arange(self.size) if rows is None else rows
    return {"mean": np.array([[self.name, step, row] for row in rows])}

  def describe(self, step):
    return f"{self.name} {step}"

  def held_out(self, clip):
    return {"mean": np.array([[self.name, -1, clip]])}


def _mixed():
  return mixed_batches.MixedBatches(_Counting(1, 3, 2), _Counting(2, 2, 4), 3)


def test_rows_of_processes_make_the_whole_batch():
  mixed = _mixed()
  whole = mixed.batch(7)["mean"]
  expected = [[1, 7, 0], [1, 7, 1], [1, 7, 2], [2, 7, 0], [2, 7, 1]]
  np.testing.assert_array_equal(whole, expected)
  for rows in ([0, 1], [2, 3], [3, 4], [4]):
    part = mixed.batch(7, np.array(rows))["mean"]
    np.testing.assert_array_equal(part, whole[rows])
  assert mixed.describe(7) == "1 7; 2 7"


def test_held_out_clips_take_turns():
  mixed = _mixed()
  assert mixed.num_held_out == 6
  seen = [mixed.held_out(clip)["mean"][0].tolist() for clip in range(6)]
  expected = [(1, 0), (2, 0), (1, 1), (2, 1), (2, 2), (2, 3)]
  assert [(name, clip) for name, _, clip in seen] == expected


def test_other_numbers_of_frames_are_refused():
  with pytest.raises(ValueError, match="same number of frames"):
    mixed_batches.MixedBatches(_Counting(1, 3, 2), _Counting(2, 2, 4, 5), 3)
