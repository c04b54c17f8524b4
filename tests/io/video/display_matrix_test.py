"""Display matrices against their definition, one pixel at a time."""

import itertools
import struct

import numpy as np
import pytest

from sculpt4d_jax.io.video import display_matrix

ALL = [
  *itertools.product((1, -1), (0,), (0,), (1, -1)),
  *itertools.product((0,), (1, -1), (1, -1), (0,)),
]


def side_data(a, b, c, d, scale=1 << 16):
  values = [a * scale, b * scale, 0, c * scale, d * scale, 0, 0, 0, 1 << 30]
  return struct.pack("=9i", *(round(value) for value in values))


@pytest.mark.parametrize("matrix", ALL)
def test_every_pixel_goes_where_the_matrix_sends_it(matrix):
  a, b, c, d = matrix
  stored = np.arange(6).reshape(2, 3, 1)
  shown = display_matrix.apply(stored, display_matrix.read(side_data(*matrix)))
  places = {}
  for q, p in np.ndindex(2, 3):
    places[a * p + c * q, b * p + d * q] = stored[q, p, 0]
  left = min(x for x, _ in places)
  top = min(y for _, y in places)
  assert shown.shape[:2] == ((2, 3) if a else (3, 2))
  for (x, y), value in places.items():
    assert shown[y - top, x - left, 0] == value


def test_a_mirrored_quarter_turn_by_hand():
  # (p, q) goes to (q, p): the picture is transposed.
  picture = np.array([[[1], [2], [3]], [[4], [5], [6]]])
  signs = display_matrix.read(side_data(0, 1, 1, 0))
  shown = display_matrix.apply(picture, signs)
  assert shown[..., 0].tolist() == [[1, 4], [2, 5], [3, 6]]


@pytest.mark.parametrize("matrix", ALL)
def test_scaled_and_slightly_turned_matrices_are_the_nearest(matrix):
  a, b, c, d = matrix
  turned = (a - 0.1 * b, b + 0.1 * a, c - 0.1 * d, d + 0.1 * c)
  content = side_data(*(3 * value for value in turned))
  assert display_matrix.read(content) == matrix


@pytest.mark.parametrize(
  "content", [b"", bytes(36), side_data(1, 1, 1, 1), bytes(20)]
)
def test_matrices_without_sense_change_nothing(content):
  assert display_matrix.read(content) == display_matrix.UPRIGHT
