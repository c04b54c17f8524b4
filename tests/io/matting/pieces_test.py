import numpy as np

from sculpt4d_jax.io.matting import pieces

HEIGHT, WIDTH = 60, 80


def clip(*boxes, count=4, steps=()):
  """Boxes (top, left, bottom, right); those with a step move right by it."""
  alpha = np.zeros((count, HEIGHT, WIDTH), np.uint8)
  rgb = np.full((count, HEIGHT, WIDTH, 3), 255, np.uint8)
  for number, (top, left, bottom, right) in enumerate(boxes):
    step = steps[number] if number < len(steps) else 0
    for frame in range(count):
      place = np.s_[
        frame, top:bottom, left + step * frame : right + step * frame
      ]
      alpha[place] = 255
      rgb[place] = (40 * number + np.arange(right - left) % 7)[None, :, None]
  return alpha, rgb


def kept(alpha, rgb):
  result = pieces.keep_object(alpha, rgb)
  return result.alpha, " ".join(result.notes)


def test_one_piece_stays_as_it_is():
  alpha, rgb = clip((20, 20, 40, 40), steps=[4])
  result, notes = kept(alpha, rgb)
  np.testing.assert_array_equal(result, alpha)
  assert not notes


def test_what_stands_still_beside_a_moving_object_goes():
  alpha, rgb = clip((20, 20, 40, 40), (20, 60, 32, 72), steps=[4])
  result, notes = kept(alpha, rgb)
  assert not result[0, :, 50:].any() and result[0, 20:40, 20:40].all()
  assert "stands still" in notes


def test_large_and_near_pieces_stay():
  boxes = [(20, 20, 40, 40), (20, 50, 36, 62), (14, 24, 18, 30)]
  alpha, rgb = clip(*boxes, steps=[2, 2, 2])
  np.testing.assert_array_equal(kept(alpha, rgb)[0], alpha)


def test_far_specks_and_corners_go():
  alpha, rgb = clip((20, 24, 40, 44), (50, 70, 53, 73), (0, 0, 8, 8))
  result, notes = kept(alpha, rgb)
  assert result[0, 20:40, 24:44].all()
  assert not result[:, 46:].any() and not result[:, :10, :10].any()
  assert "corner" in notes and "small pieces" in notes


def test_a_line_along_the_floor_goes_and_thin_limbs_stay():
  alpha, rgb = clip((20, 30, 44, 50), (40, 0, 42, WIDTH), (44, 38, 54, 41))
  result, _ = kept(alpha, rgb)
  assert not result[:, :, :20].any() and not result[:, :, 60:].any()
  assert result[:, 46:52, 39].all()


def test_the_soft_edge_of_a_kept_piece_stays():
  alpha, rgb = clip((20, 20, 40, 40))
  alpha[:, 19, 20:40] = 60
  alpha[:, 50, 60:70] = 60
  result, _ = kept(alpha, rgb)
  assert (result[:, 19, 20:40] == 60).all()
  assert not result[:, 50].any()


def test_a_small_piece_that_passes_by_goes_and_a_detached_part_stays():
  """A cursor runs along above the object, a hand moves with it."""
  alpha, rgb = clip((24, 20, 48, 40), (18, 8, 21, 11), steps=[2, 16])
  hand = np.zeros_like(alpha, bool)
  for frame in range(len(alpha)):
    top = 30 + 2 * (frame % 2)
    hand[frame, top : top + 4, 43 + 2 * frame : 46 + 2 * frame] = True
  alpha[hand] = 255
  result, notes = kept(alpha, rgb)
  assert not result[:, :22].any()
  assert (result[hand] == 255).all()
  assert (result[0, 24:48, 20:40] == 255).all()
  assert "passes by" in notes
