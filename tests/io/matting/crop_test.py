"""The one square that is cut out of all frames."""

import numpy as np
import pytest

from sculpt4d_jax.io.matting import crop


def frames_with(boxes, height=40, width=60, colour=(200, 40, 10)):
  """Transparent green frames with an opaque box (top, left, bottom, right)."""
  frames = np.zeros((len(boxes), height, width, 4), np.uint8)
  frames[..., 1] = 255
  for frame, (top, left, bottom, right) in zip(frames, boxes):
    frame[top:bottom, left:right] = (*colour, 255)
  return frames


def test_square_holds_the_object_of_all_frames():
  # The union of the boxes is rows 4..12, columns 10..27: 17 wide, 8 high.
  frames = frames_with([(4, 10, 10, 15), (6, 20, 12, 27)])
  box = crop.crop_clip(frames, 20).box
  assert box.side == pytest.approx(20)  # 17 / 0.85
  assert box.left == pytest.approx(8.5)  # (10 + 27 - 20) / 2
  assert box.top == pytest.approx(-2)  # (4 + 12 - 20) / 2
  tight = crop.crop_clip(frames, 20, border_ratio=0).box
  assert (tight.left, tight.top, tight.side) == (10, -0.5, 17)


def test_crop_moves_pixels_and_nothing_else_at_the_same_scale():
  frames = frames_with([(10, 20, 20, 30), (14, 26, 24, 36)])
  # The union is rows 10..24, columns 20..36; its square starts at (9, 20).
  result = crop.crop_clip(frames, 16, border_ratio=0)
  assert (result.box.top, result.box.left, result.box.side) == (9, 20, 16)
  expected = np.zeros((2, 16, 16), np.uint8)
  expected[0, 1:11, 0:10] = 255
  expected[1, 5:15, 6:16] = 255
  np.testing.assert_array_equal(result.masks, expected)
  white = result.images[result.masks == 0]
  assert (white == 255).all()
  assert (result.images[result.masks == 255] == (200, 40, 10)).all()


def test_motion_stays_in_the_picture():
  boxes = [(10, 5 + 5 * i, 20, 15 + 5 * i) for i in range(5)]
  masks = crop.crop_clip(frames_with(boxes), 100).masks
  columns = np.arange(100)
  centres = [(mask.sum(axis=0) * columns).sum() / mask.sum() for mask in masks]
  # The union is 30 wide: 5 pixels of the frame are 5 / 30 * 85 of the picture.
  np.testing.assert_allclose(np.diff(centres), 5 / 30 * 85, atol=0.05)
  width = (masks[0] > 127).any(axis=0).sum()
  assert width == pytest.approx(85 / 3, abs=1)


def test_longer_side_fills_its_part_of_the_picture():
  mask = crop.crop_clip(frames_with([(5, 10, 35, 20)]), 200).masks[0]
  rows = np.flatnonzero((mask > 127).any(axis=1))
  assert (rows[0], rows[-1]) == (15, 184)  # 170 = 0.85 * 200, centred.


@pytest.mark.parametrize("size", [7, 33, 150])
def test_colours_under_transparent_pixels_leave_no_halo(size):
  frames = frames_with([(5, 10, 35, 40)], colour=(255, 255, 255))
  images = crop.crop_clip(frames, size).images
  assert images.min() == 255  # White on white; green would show.


def test_soft_alpha_mixes_with_the_background():
  frames = frames_with([(0, 0, 40, 60)], colour=(100, 0, 50))
  frames[..., 3] = 51  # A fifth.
  images = crop.crop_clip(frames, 8, background=(0, 0, 0)).images
  assert images[0, 4, 4].tolist() == [20, 0, 10]


def test_empty_frames_among_others_come_out_plain():
  frames = frames_with([(5, 10, 35, 40), (0, 0, 0, 0)])
  result = crop.crop_clip(frames, 16)
  assert (result.images[1] == 255).all()
  assert not result.masks[1].any()


def test_faint_alpha_does_not_widen_the_square():
  frames = frames_with([(5, 10, 35, 40)])
  frames[0, 0, :, 3] = 8
  assert crop.crop_clip(frames, 16, border_ratio=0).box.side == 30


def test_refuses_clips_without_object_and_other_arrays():
  with pytest.raises(ValueError, match="No frame shows an object"):
    crop.crop_clip(frames_with([(0, 0, 0, 0)]), 16)
  with pytest.raises(ValueError, match="uint8"):
    crop.crop_clip(np.zeros((1, 8, 8, 3), np.uint8), 16)
  with pytest.raises(ValueError, match="border_ratio"):
    crop.crop_clip(frames_with([(5, 5, 9, 9)]), 16, border_ratio=1.0)
