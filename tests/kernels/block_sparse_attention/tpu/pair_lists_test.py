"""The lists of the forward kernel hold the mask exactly, in full items."""

import numpy as np
import pytest

from sculpt4d_jax.kernels import block_sparse_attention as bsa
from sculpt4d_jax.kernels.block_sparse_attention.tpu import lists as tpu_lists
from sculpt4d_jax.kernels.block_sparse_attention.tpu import pair_lists
from sculpt4d_jax.kernels.block_sparse_attention.tpu import tiles as tpu_tiles

BlockMask = bsa.BlockMask


def _items(work, tile):
  """Pieces and pairs of every item of a tile; full items have all pairs."""
  words = work.words[tile]
  _, num_pair, num_full = words[: pair_lists.HEADER_WORDS]
  items = words[pair_lists.HEADER_WORDS :].reshape(-1, work.item_words)
  for index in range(num_pair + num_full):
    pieces, pairs = np.split(items[index], [work.stream])
    if index < num_pair:
      yield pieces, [(x & 255, x >> 8 & 255, x >> 16) for x in pairs]
    else:
      yield (
        pieces,
        [
          (row, piece, 0)
          for row in range(work.num_rows)
          for piece in range(work.stream)
        ],
      )


@pytest.mark.parametrize(
  "mask, tiles, groups, has_full",
  [
    (BlockMask(9, 16), ((1, 4), (4, 1)), (8, 8), True),
    (BlockMask(16, 32), ((1, 16), (16, 1)), (16, 16), True),
    (BlockMask(16, 32), ((2, 2),), (3, 3), True),
    (BlockMask(6, 7, (1, 3, 5), (2,)), ((1, 4), (4, 1)), (5, 2), True),
    (BlockMask.dense(3, 4), ((1, 4), (4, 1)), (4, 4), True),
    (BlockMask(19, 32), ((8, 16),), (64,), False),
  ],
  ids=["near_far", "sixteen", "one_pass", "lists", "dense", "joint"],
)
def test_lists_hold_the_mask_exactly(mask, tiles, groups, has_full):
  layout = tpu_lists.make_layout(mask, 8 * mask.blocks_per_frame, 256, 1)
  lists = pair_lists.make_lists(mask, layout, tiles, 4, groups, 3, has_full)
  order = "bit_reversed" if mask.is_power_of_two else "natural"
  seen = np.zeros((mask.num_frames, layout.segments) * 2, int)
  num_filled = 0
  for work in lists:
    corners = list(tpu_lists.tiles_of(layout, work.tile))
    assert len(corners) == len(work.words)
    for tile, (frames, segments) in enumerate(corners):
      for pieces, pairs in _items(work, tile):
        places = [
          (frames[row // work.tile[1]], segments[row % work.tile[1]])
          + (int(pieces[piece]) >> 16, int(pieces[piece]) & 0xFFFF)
          for row, piece, _ in pairs
        ]
        for index, (place, pair) in enumerate(zip(places, pairs)):
          if pair[2]:
            # A repetition: a row whose sums have begun, and a piece it sees.
            assert place == places[index - 1]
            num_filled += 1
          else:
            seen[place] += 1
  total = mask.num_frames * layout.segments
  of_piece = (np.arange(total) * (mask.num_blocks / total)).astype(int)
  expected = mask.dense_blocks(order)[np.ix_(of_piece, of_piece)]
  np.testing.assert_array_equal(seen.reshape(total, total), expected)
  assert sum(work.num_units for work in lists) == expected.sum()
  assert sum(work.num_filled for work in lists) == num_filled


def test_pieces_of_few_rows_share_an_item_with_those_of_many():
  # 16 pairs of 4 pieces: two of 2 rows, one of 4 and one of 8.
  seen = [
    (10, (0, 1)),
    (11, (2, 3)),
    (12, tuple(range(4))),
    (13, tuple(range(8))),
  ]
  ((pieces, pairs),) = pair_lists._pack(seen, 4, 16)
  assert pieces == [10, 11, 12, 13]
  assert [pair & 255 for pair in pairs] == [0, 1, 2, 3, *range(4), *range(8)]
  assert [pair >> 8 for pair in pairs] == [0] * 2 + [1] * 2 + [2] * 4 + [3] * 8
  # A piece with more rows than an item takes is in two.
  items = pair_lists._pack(seen[-1:], 4, 5)
  assert [(p, len(pairs)) for p, pairs in items] == [([13], 5), ([13], 3)]


@pytest.mark.parametrize("num_frames", [16, 64])
def test_few_pairs_are_repetitions(num_frames):
  near, far = _lists_of_chip("v5p", num_frames)
  # Numbers of pairs of near frames are multiples of the group.
  assert near.num_filled == 0
  assert far.num_filled <= 0.06 * far.num_units


@pytest.mark.parametrize("num_frames", [16, 32, 64])
def test_a_joint_pass_has_pair_items_only(num_frames):
  (work,) = _lists_of_chip("v6e", num_frames)
  assert not work.full_items().any()
  assert work.num_rows == 128
  assert work.num_filled <= 0.004 * work.num_units


def test_a_joint_pass_gives_way_where_it_does_not_suit():
  tiles = tpu_tiles.default("v6e")
  find = lambda mask, tokens: pair_lists.for_tiles(
    mask, tpu_lists.make_layout(mask, tokens, 256, 128), tiles
  )
  # One frame; lists too long for scalar memory; items that would not fill up.
  assert find(BlockMask(1, 32), 4096)[0].tile == (1, 16)
  assert find(BlockMask.dense(64, 16), 4096)[0].tile == (1, 16)
  assert find(BlockMask(2, 32), 1024)[0].full_items().any()
  # Two sets of words, of 4 bytes each, in 1 MiB.
  for mask in (BlockMask(128, 32), BlockMask.dense(32, 16)):
    (work,) = find(mask, 4096)
    assert work.tile == (8, 16)
    assert 8 * work.words.shape[1] < 1 << 20


def _lists_of_chip(chip, num_frames):
  mask = BlockMask(num_frames, 32)
  layout = tpu_lists.make_layout(mask, 4096, 256, 128)
  assert (layout.segments, layout.tokens) == (16, 256)
  lists = pair_lists.for_tiles(mask, layout, tpu_tiles.default(chip))
  pairs = round(mask.density() * (num_frames * 16) ** 2)
  assert sum(work.num_units for work in lists) == pairs
  return lists
