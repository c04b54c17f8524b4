import numpy as np

from sculpt4d_jax.rendering import outline_warp


def _disc(radius, size=96):
  y, x = np.mgrid[:size, :size] - (size - 1) / 2
  return np.hypot(x, y) < radius


def test_a_silhouette_inside_the_mask_stays():
  offsets = outline_warp.outline_offsets(_disc(20), _disc(30))
  assert not offsets.any()


def test_a_larger_silhouette_shrinks_onto_the_mask():
  silhouette, mask = _disc(34), _disc(28)
  offsets = outline_warp.outline_offsets(silhouette, mask)
  rows, columns = np.nonzero(silhouette)
  x = columns + offsets[rows, columns, 0]
  y = rows + offsets[rows, columns, 1]
  lands = mask[np.rint(y).astype(int), np.rint(x).astype(int)]
  assert lands.mean() > 0.995
  # The middle is unchanged, and offsets grow smoothly outwards.
  middle = len(mask) // 2
  assert np.abs(offsets[middle, middle]).max() < 1
  row = offsets[middle, middle : middle + 33, 0]
  assert (np.diff(row) < 0.5).all() and row[-1] < -5
  assert not offsets[~silhouette].any()


def test_far_limbs_are_left_alone():
  mask = _disc(20)
  silhouette = mask.copy()
  silhouette[45:50, 60:95] = True  # Sticks out far.
  offsets = outline_warp.outline_offsets(silhouette, mask)
  assert np.abs(offsets[47, 90:]).max() < 0.01


def test_an_empty_mask_moves_nothing():
  offsets = outline_warp.outline_offsets(_disc(20), np.zeros((96, 96), bool))
  assert not offsets.any()
