import numpy as np
import pytest

from sculpt4d_jax.rendering import trapped_ground

SIZE = 128
GROUND = np.array([200, 220, 235])
LEG, BODY = np.array([150, 40, 40]), np.array([30, 60, 160])


def _picture():
  """A leg next to a body, both in contact with the background at the top."""
  picture = np.tile(GROUND, (SIZE, SIZE, 1)).astype(np.uint8)
  mask = np.zeros((SIZE, SIZE))
  picture[20:110, 20:60], picture[20:110, 60:100] = LEG, BODY
  mask[20:110, 20:100] = 1
  return picture, mask


def _trusted(pictures, masks, ground=GROUND):
  colours = np.tile(ground, (len(pictures), 1)).astype(float)
  return trapped_ground.trusted(np.stack(pictures), np.stack(masks), colours)


def test_a_line_of_background_between_parts_is_not_trusted():
  picture, mask = _picture()
  picture[20:110, 59] = 0.6 * GROUND + 0.4 * LEG
  picture[20:110, 60] = 0.3 * GROUND + 0.7 * BODY
  found = _trusted([picture], [mask])[0]
  assert (found[20:110, 58:62] == 0).all()
  assert (found[30:100, 22:57] == 1).all() and (found[30:100, 64:98] == 1).all()
  assert (found[mask == 0] == 0).all()


def test_a_dashed_line_is_found_as_a_whole():
  picture, mask = _picture()
  rows = [row for row in range(20, 110) if row % 4 < 3]
  picture[rows, 59:61] = GROUND
  assert (_trusted([picture], [mask])[0][rows, 59:61] == 0).all()


@pytest.mark.parametrize(
  "rows, colour",
  [
    (slice(45, 85), 0.8 * GROUND + 0.2 * LEG),  # Does not reach the outline.
    (slice(20, 110), np.array([150, 160, 40])),  # Nearer, but olive.
    (slice(20, 110), np.array([10, 5, 5])),  # Darker than both parts.
  ],
)
def test_thin_marks_of_the_object_are_its_own(rows, colour):
  picture, mask = _picture()
  picture[rows, 40:42] = colour
  np.testing.assert_array_equal(_trusted([picture], [mask])[0], mask)


def test_an_edge_between_colours_is_trusted():
  picture, mask = _picture()
  picture[20:110, 59:61] = (LEG + BODY) / 2
  np.testing.assert_array_equal(_trusted([picture], [mask])[0], mask)


def test_a_gap_that_closes_in_one_frame_is_background():
  plain, mask = _picture()
  closed = plain.copy()
  closed[40:70, 30:50] = GROUND
  found = _trusted([plain, closed, plain], [mask] * 3)
  assert (found[1, 40:70, 30:50] == 0).all()
  np.testing.assert_array_equal(found[[0, 2]], [mask, mask])
  # An object that has the colour in most frames keeps it.
  own = _trusted([closed, closed, plain], [mask] * 3)
  np.testing.assert_array_equal(own, [mask] * 3)


def test_without_one_colour_of_the_ground_nothing_changes():
  picture, mask = _picture()
  picture[20:110, 59:61] = GROUND
  found = _trusted([picture], [mask], np.full(3, np.nan))
  np.testing.assert_array_equal(found[0], mask)


def test_the_ground_is_what_the_cut_out_left():
  picture, mask = _picture()
  noise = np.random.default_rng(0).integers(0, 256, picture.shape, np.uint8)
  alpha = (255 * mask).astype(np.uint8)
  found = trapped_ground.colour_of(
    np.stack([picture, noise, picture]),
    np.stack([alpha, alpha, np.full_like(alpha, 255)]),
  )
  np.testing.assert_array_equal(found[0], GROUND)
  assert np.isnan(found[1:]).all()
