"""Masks: cases by hand, published densities, and the compressed forms."""

from fractions import Fraction

import numpy as np
import pytest

from sculpt4d_jax.kernels.block_sparse_attention import mask as mask_lib
from tests.kernels.block_sparse_attention import ablation_masks

BlockMask = mask_lib.BlockMask


def by_definition(num_frames, blocks, schedule, anchors):
  """The definition, for all pairs of blocks at once."""
  i, u, j, v = np.indices((num_frames, blocks, num_frames, blocks))
  distance = np.minimum(np.abs(i - j), len(schedule) - 1)
  stride = np.array(schedule)[distance]
  table = np.isin(j, anchors) | (u % stride == v % stride)
  return table.reshape(num_frames * blocks, num_frames * blocks)


def test_small_mask_by_hand():
  mask = BlockMask(2, 2, schedule=(1, 2), anchor_frames=())
  expected = [
    [1, 1, 1, 0],
    [1, 1, 0, 1],
    [1, 0, 1, 1],
    [0, 1, 1, 1],
  ]
  np.testing.assert_array_equal(mask.dense_blocks(), expected)


def test_anchor_is_one_way():
  mask = BlockMask(2, 2, schedule=(2,), anchor_frames=(0,))
  expected = [
    [1, 1, 1, 0],
    [1, 1, 0, 1],
    [1, 1, 1, 0],
    [1, 1, 0, 1],
  ]
  np.testing.assert_array_equal(mask.dense_blocks(), expected)


def test_bit_reversed_order_makes_squares():
  mask = BlockMask(1, 4, schedule=(2,), anchor_frames=())
  expected = [
    [1, 1, 0, 0],
    [1, 1, 0, 0],
    [0, 0, 1, 1],
    [0, 0, 1, 1],
  ]
  np.testing.assert_array_equal(mask.dense_blocks("bit_reversed"), expected)


@pytest.mark.parametrize(
  "schedule", [(1, 1, 2, 4, 8, 16), (4,), (1, 3), (5, 2, 7), (1, 64)]
)
@pytest.mark.parametrize("anchors", [(), (0,), (1, 3)])
@pytest.mark.parametrize("blocks", [1, 2, 3, 5, 8, 33])
def test_mask_equals_definition(schedule, anchors, blocks):
  mask = BlockMask(5, blocks, schedule, anchors)
  expected = by_definition(5, blocks, schedule, anchors)
  np.testing.assert_array_equal(mask.dense_blocks(), expected)
  assert mask.density() == expected.mean()


@pytest.mark.parametrize(
  "num_frames, percent", [(8, 58.11), (16, 35.23), (32, 21.50), (64, 14.07)]
)
def test_density_is_the_published_one(num_frames, percent):
  assert round(100 * BlockMask(num_frames, 32).density(), 2) == percent


@pytest.mark.parametrize(
  "variant, percent",
  [
    ("A", 30.37),
    ("B", 29.69),
    ("C", 23.67),
    ("D", 47.66),
    ("E", 100.0),
    ("F", 35.23),
  ],
)
def test_ablation_density_is_the_published_one(variant, percent):
  mask = ablation_masks.ablation_masks(16)[variant]
  assert round(100 * mask.density(), 2) == percent


def test_density_of_long_clips_needs_no_table():
  # One token a block: the table would have 2^36 entries.
  mask = BlockMask(64, 4096, schedule=(1, 4096), anchor_frames=())
  neighbours = Fraction(64 + 63 * 64, 4096)
  expected = Fraction(64) + neighbours - Fraction(64, 4096)
  assert mask.density() == pytest.approx(float(expected / 64**2), rel=1e-12)


@pytest.mark.parametrize("num_frames", [1, 2, 9])
def test_rows_always_see_first_frame(num_frames):
  mask = BlockMask(num_frames, 8, schedule=(8,))
  assert mask.dense_blocks()[:, :8].all()


@pytest.mark.parametrize("schedule", [(16,), (3, 5), (1, 1, 2)])
def test_blocks_always_see_themselves(schedule):
  mask = BlockMask(4, 6, schedule, ()) & BlockMask(4, 6, (5,), ())
  assert mask.dense_blocks().diagonal().all()


@pytest.mark.parametrize("blocks", [6, 8])
@pytest.mark.parametrize(
  "left, right",
  [((2,), (4,)), ((2,), (3,)), ((1, 2, 4), (5, 3)), ((6,), (4,))],
)
def test_combination_equals_logical_combination(blocks, left, right):
  a, b = BlockMask(3, blocks, left, (1,)), BlockMask(3, blocks, right)
  x, y = a.dense_blocks(), b.dense_blocks()
  for combined, expected in [(a & b, x & y), (a | b, x | y), ((a | b) & a, x)]:
    np.testing.assert_array_equal(combined.dense_blocks(), expected)
    assert combined.density() == expected.mean()


def test_combination_keeps_powers_of_two():
  a, b = BlockMask(6, 16), BlockMask(6, 16, (8,), ())
  assert (a & b).is_power_of_two and (a | b).is_power_of_two
  assert not (a | BlockMask(6, 16, (3,))).is_power_of_two


@pytest.mark.parametrize(
  "blocks, schedule, expected",
  [
    (32, (1, 16), True),
    (32, (1, 3), False),
    (33, (1, 2), False),
    (1, (7,), True),
    (8, (1, 1000), True),
  ],
)
def test_is_power_of_two(blocks, schedule, expected):
  assert BlockMask(4, blocks, schedule).is_power_of_two is expected


def test_masks_are_values():
  mask = BlockMask(4, 8, [1, 2], [0])
  same = BlockMask(4, 8, (1, 2), (0,))
  assert mask == same and hash(mask) == hash(same)
  assert mask & same == same & mask
  assert str(BlockMask(16, 32)).endswith("density 35.23%")


def test_bit_reversal_by_hand():
  np.testing.assert_array_equal(mask_lib.bit_reversal(1), [0])
  np.testing.assert_array_equal(
    mask_lib.bit_reversal(8), [0, 4, 2, 6, 1, 5, 3, 7]
  )
  np.testing.assert_array_equal(mask_lib.bit_reversal(5), [0, 4, 2, 1, 3])


@pytest.mark.parametrize("blocks", [1, 2, 3, 6, 8, 33])
def test_orders_are_undone_by_their_inverse(blocks):
  order = mask_lib.bit_reversal(blocks)
  tokens = mask_lib.bit_reversed_tokens(3 * blocks, blocks)
  for indices in (order, tokens):
    x = np.random.default_rng(0).normal(size=len(indices))
    np.testing.assert_array_equal(
      x[indices][mask_lib.inverse_order(indices)], x
    )
  np.testing.assert_array_equal(tokens[::3] // 3, order)


@pytest.mark.parametrize("blocks", [3, 8, 12, 33])
@pytest.mark.parametrize("stride", [2, 4, 8])
def test_bit_reversal_makes_residues_contiguous(blocks, stride):
  residues = mask_lib.bit_reversal(blocks) % stride
  changes = np.count_nonzero(np.diff(residues))
  assert changes == len(set(residues)) - 1


@pytest.mark.parametrize("order", ["natural", "bit_reversed"])
@pytest.mark.parametrize("blocks", [4, 5])
def test_block_lists_cover_exactly_the_mask(order, blocks):
  mask = BlockMask(4, blocks, (1, 3, 2))
  offsets, indices = mask.block_lists(order)
  covered = np.zeros((mask.num_blocks, mask.num_blocks), int)
  for row, (start, stop) in enumerate(zip(offsets[:-1], offsets[1:])):
    np.add.at(covered[row], indices[start:stop], 1)
  np.testing.assert_array_equal(covered, mask.dense_blocks(order))


@pytest.mark.parametrize(
  "arguments, message",
  [
    (dict(num_frames=0, blocks_per_frame=8), "num_frames must be"),
    (dict(num_frames=2, blocks_per_frame=2.5), "blocks_per_frame must be"),
    (dict(num_frames=2, blocks_per_frame=8, schedule=()), "at least one"),
    (dict(num_frames=2, blocks_per_frame=8, schedule=(1, 0)), "at least 1"),
    (dict(num_frames=2, blocks_per_frame=8, anchor_frames=(2,)), "0..1"),
  ],
)
def test_bad_masks_are_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    BlockMask(**arguments)


def test_masks_over_different_blocks_are_not_combined():
  with pytest.raises(ValueError, match="same"):
    _ = BlockMask(2, 8) & BlockMask(2, 4)


def test_levels_refuse_other_strides():
  with pytest.raises(ValueError, match="block_lists"):
    BlockMask(4, 8, (1, 3)).levels(0)
