"""The comparison of cut-outs: its clips and its table."""

import numpy as np
import pytest

pytest.importorskip("cv2", reason="the extra 'matting' is missing")

from benchmarks import cutouts  # noqa: E402


@pytest.mark.parametrize("kind", ["still", "by hand", "crossing"])
def test_masks_lie_where_the_object_is_drawn(kind):
  views = np.zeros((8, 240, 240, 4), np.uint8)
  views[:, 60:180, 60:180] = [255, 0, 0, 255]
  ground = np.full((400, 640, 3), [0, 160, 160], np.uint8)
  rng = np.random.default_rng(0)
  frames, masks = cutouts.composed(views, ground, kind, rng)
  assert frames.shape == (8, 240, 320, 3)
  red = frames[..., 0].astype(int) > frames[..., 2].astype(int)
  union = (red | masks).sum()
  assert (red & masks).sum() / union > 0.95
  places = [np.argwhere(mask)[:, 1].mean() for mask in masks]
  moves = abs(places[-1] - places[0])
  assert moves > 30 if kind == "crossing" else moves < 2


def test_the_table_holds_means_gains_and_intervals():
  # The whole frame is the object of one method; alpha is the truth.
  frames = np.zeros((2, 40, 40, 4), np.uint8)
  frames[:, 10:30, 10:30] = [200, 100, 50, 255]
  truth = frames[..., 3] > 0
  clips = [("one", frames, truth), ("two", frames, truth)]
  lines = list(cutouts.compare(clips, ["none", "alpha"]))
  assert lines[:2] == [
    "one none 0.250 alpha 1.000",
    "two none 0.250 alpha 1.000",
  ]
  assert lines[2].startswith("none: IoU 0.250, against none +0.000")
  assert lines[3].startswith(
    "alpha: IoU 1.000, against none +0.750 [+0.750, +0.750]"
  )
  assert lines[3].endswith("n = 2")
