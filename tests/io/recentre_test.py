import numpy as np
import pytest

from sculpt4d_jax.io import recentre


def _random(*shape):
  return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def test_area_averages_what_a_pixel_covers():
  image = np.array([[0, 10, 20], [30, 40, 50]], np.uint8)
  np.testing.assert_array_equal(recentre.resize_area(image, (1, 1)), [[25]])
  # Means of the columns: 15, 25, 35; (15 + 25 / 2) / 1.5 and so on.
  np.testing.assert_array_equal(recentre.resize_area(image, (1, 2)), [[18, 32]])


@pytest.mark.parametrize(
  "resize",
  [recentre.resize_area, recentre.resize_bicubic, recentre.resize_nearest],
)
def test_the_same_size_changes_nothing(resize):
  image = _random(7, 9, 4)
  np.testing.assert_array_equal(resize(image, (7, 9)), image)


def test_doubling_by_area_repeats_pixels():
  image = _random(5, 6, 3)
  np.testing.assert_array_equal(
    recentre.resize_area(image, (10, 12)),
    image.repeat(2, axis=0).repeat(2, axis=1),
  )


def test_bicubic_weights_by_hand():
  # Half way between two pixels: -3/32, 19/32, 19/32, -3/32.
  image = np.array([[0, 100, 200, 40]], np.uint8)
  middle = recentre.resize_bicubic(image, (1, 2))
  expected = np.rint(
    [  # At columns 0.5 and 2.5, edges replicated.
      (-3 * 0 + 19 * 0 + 19 * 100 - 3 * 200) / 32,
      (-3 * 100 + 19 * 200 + 19 * 40 - 3 * 40) / 32,
    ]
  )
  np.testing.assert_array_equal(middle[0], expected)


def test_nearest_takes_the_upper_left_pixel():
  image = np.arange(5, dtype=np.uint8)[None]
  np.testing.assert_array_equal(
    recentre.resize_nearest(image, (1, 3)), [[0, 1, 3]]
  )
  np.testing.assert_array_equal(
    recentre.resize_nearest(image, (1, 7)), [[0, 0, 1, 2, 2, 3, 4]]
  )


@pytest.mark.parametrize(
  "old, new",
  [((90, 61), (70, 47)), ((40, 31), (77, 60)), ((97, 64), (50, 120))],
)
def test_agrees_with_opencv(old, new):
  cv2 = pytest.importorskip("cv2")
  image = _random(*old, 4)
  for resize, kind in (
    (recentre.resize_area, cv2.INTER_AREA),
    (recentre.resize_bicubic, cv2.INTER_CUBIC),
    (recentre.resize_nearest, cv2.INTER_NEAREST),
  ):
    expected = cv2.resize(image, new[::-1], interpolation=kind).astype(int)
    difference = np.abs(resize(image, new) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.05


def test_the_object_fills_the_square_but_for_the_border():
  rgba = np.zeros((40, 100, 4), np.uint8)
  rgba[5:26, 10:51] = (200, 100, 50, 255)  # 20 x 40, less a row and a column.
  rgb, mask = recentre.recentre_rgba(rgba, 0.2)
  assert rgb.shape == (100, 100, 3) and mask.shape == (100, 100)
  rows, columns = np.nonzero(mask)
  assert (rows.min(), rows.max() + 1) == (30, 70)
  assert (columns.min(), columns.max() + 1) == (10, 90)
  np.testing.assert_array_equal(rgb[50, 50], (200, 100, 50))
  np.testing.assert_array_equal(rgb[mask == 0], 255)


def test_without_alpha_the_whole_picture_is_the_object():
  rgb = _random(30, 60, 3)
  opaque = np.concatenate([rgb, np.full((30, 60, 1), 255, np.uint8)], axis=-1)
  for ours, expected in zip(
    recentre.recentre_rgba(rgb), recentre.recentre_rgba(opaque)
  ):
    np.testing.assert_array_equal(ours, expected)


def test_preprocessed_values_run_from_minus_one_to_one():
  rgba = np.zeros((50, 50, 4), np.uint8)
  rgba[10:40, 10:40, 3] = 255
  image, mask = recentre.preprocess(rgba, 32)
  assert image.shape == (32, 32, 3) and mask.shape == (32, 32)
  assert image.dtype == mask.dtype == np.float32
  assert set(np.unique(mask)) == {-1.0, 1.0}
  assert image[0, 0].tolist() == [1, 1, 1]
  assert image[16, 16].tolist() == [-1, -1, -1]


@pytest.mark.parametrize(
  "rgba, message",
  [
    (np.zeros((8, 8, 4), np.uint8), "empty"),
    (np.ones((8, 1, 4), np.uint8), "one pixel thin"),
    (np.ones((8, 8, 4)), "uint8"),
    (np.ones((8, 8), np.uint8), "uint8"),
    (np.ones((1000, 2, 4), np.uint8), "too thin"),
  ],
)
def test_pictures_without_an_object_are_refused(rgba, message):
  with pytest.raises(ValueError, match=message):
    recentre.recentre_rgba(rgba)


def test_a_border_that_leaves_nothing_is_refused():
  with pytest.raises(ValueError, match="border_ratio=1"):
    recentre.recentre_rgba(np.ones((8, 8, 4), np.uint8), 1.0)
