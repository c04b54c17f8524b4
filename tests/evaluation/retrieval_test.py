"""Training clips that are nearest by picture, and by truth."""

import numpy as np

from sculpt4d_jax.evaluation import retrieval


def _pictures(row, column):
  images = np.full((2, 48, 48, 3), 255, np.uint8)
  images[:, row : row + 12, column : column + 12] = (200, 30, 30)
  return images


def test_feature_is_the_mean_of_blocks():
  images = np.zeros((1, 48, 48, 3), np.uint8)
  images[0, :2, :1] = 255
  feature = retrieval.picture_feature(images).reshape(1, 24, 24, 3)
  np.testing.assert_allclose(feature[0, 0, 0], 0.5)
  assert feature.sum() == 1.5
  assert retrieval.picture_feature(images[:, :7, :7]).shape == (147,)


def test_nearest_by_picture_is_the_one_in_about_the_same_place():
  candidates = [_pictures(0, 0), _pictures(18, 22), _pictures(36, 36)]
  assert retrieval.nearest_by_picture(_pictures(20, 20), candidates) == 1
  assert retrieval.nearest_by_picture(candidates[2], candidates) == 2


def test_nearest_by_truth_averages_over_frames():
  truth = np.array([[True, True, False], [False, True, True]])
  # The first has one frame right and one wrong, the second both by halves and
  # more.
  halves = np.array([[True, True, True], [True, True, True]])
  one_right = np.array([[True, True, False], [True, False, False]])
  assert retrieval.nearest_by_truth(truth, [one_right, halves]) == 1
  assert retrieval.nearest_by_truth(truth, [halves, truth]) == 1
