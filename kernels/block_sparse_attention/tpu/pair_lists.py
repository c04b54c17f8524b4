"""Work lists of the forward kernel, built on the host.

Pieces and tiles are those of `lists.py`: a tile of pieces of queries stays in
fast memory while the pieces that it sees are streamed past it. Items have one
of two forms, so that the kernel is unrolled for these only:

    full item    `stream` pieces, each seen by all rows of the tile
    pair item    `group` pairs (row, piece) of at most `stream` pieces

Pieces that some rows see, and those left over after the full items, form pair
items: their pairs are packed so that an item has as many as it takes and few
pieces. The last item of a tile repeats its last pair; the kernel multiplies
the repetitions by zero. Otherwise the lists hold the exact mask: no pair of
pieces outside it, and none twice.
"""

import bisect
from collections.abc import Sequence
import functools
from typing import NamedTuple

import numpy as np

from .. import mask as mask_lib
from . import lists as tpu_lists
from . import tiles as tpu_tiles

HEADER_WORDS = 3
FILL = 1 << 16  # Bit of a pair that repeats another one.
# Limits of a joint pass: words of a tile, of which two sets are in the 1 MiB of
# scalar memory at once, and repeated pairs as a share of the others.
_MOST_WORDS = 96 << 10
_MOST_FILLED = 0.25

# A piece as it is encoded in the words, and the rows that see it.
_Seen = tuple[int, tuple[int, ...]]


class PairList(NamedTuple):
  """The work items of every tile of one pass.

  The words of a tile, int32:

      header   [ items before this tile | pair items | full items ]
      items    pair items, full ones, then the first items of the next tile,
               which the kernel prefetches

      item       31     16 15             8 7            0
      pieces     [ frame  |          segment            ]    `stream` words
      pairs      [ fill   | number of piece | row       ]    `group` words

  An item of fewer pieces repeats its last one. Full items have no pairs.

  Attributes:
    words: Header and items, int32 [tiles, words].
    tile: Number of frames and of segments of a tile.
    stream: Number of pieces of an item.
    group: Number of pairs of a pair item.
    num_units: Number of pairs of pieces in the lists, without repetitions.
    num_filled: Number of repetitions.
  """

  words: np.ndarray
  tile: tuple[int, int]
  stream: int
  group: int
  num_units: int
  num_filled: int

  @property
  def num_rows(self) -> int:
    """Number of pieces of a tile."""
    return self.tile[0] * self.tile[1]

  @property
  def item_words(self) -> int:
    """Number of words of an item."""
    return self.stream + self.group

  def pair_items(self) -> np.ndarray:
    """Counts the pair items of every tile."""
    return self.words[:, 1]

  def full_items(self) -> np.ndarray:
    """Counts the full items of every tile."""
    return self.words[:, 2]


def for_tiles(
  mask: mask_lib.Mask, layout: tpu_lists.Layout, tiles: tpu_tiles.TileSizes
) -> tuple[PairList, ...]:
  """Builds the lists of a joint pass, or of near and far pairs.

  A single frame has too few pairs for a joint pass to be worth while; other
  clips may have too many for the scalar memory, or too few to fill the items.
  """
  if tiles.joint and layout.num_frames > 1:
    (work,) = make_lists(
      mask,
      layout,
      (tiles.joint.tile,),
      tiles.joint.stream,
      (tiles.joint.group,),
      tiles.buffers,
      has_full=False,
    )
    is_short = work.words.shape[1] <= _MOST_WORDS
    if is_short and work.num_filled <= _MOST_FILLED * work.num_units:
      return (work,)
  shapes = tiles.tiles(by_keys=False)
  return make_lists(
    mask, layout, shapes, tiles.stream, tiles.groups, tiles.buffers
  )


@functools.lru_cache(maxsize=32)
def make_lists(
  mask: mask_lib.Mask,
  layout: tpu_lists.Layout,
  tiles: tuple[tuple[int, int], ...],
  stream: int,
  groups: tuple[int, ...],
  buffers: int,
  has_full: bool = True,
) -> tuple[PairList, ...]:
  """Builds the work list of every pass.

  Args:
    mask: Mask of blocks.
    layout: Result of `lists.make_layout`.
    tiles: Largest number of frames and segments of a tile, for every pass. A
      second pass computes the far pairs of frames.
    stream: Number of pieces of an item.
    groups: Number of pairs of a pair item, for every pass.
    buffers: Number of items in flight or in use.
    has_full: Whether there are full items; otherwise all are pair items.

  Returns:
    One list for each tile shape; passes without work are left out.
  """
  pairs = tpu_lists.Pairs(mask, layout, by_keys=False)
  lists = []
  for index, (tile, group) in enumerate(zip(tiles, groups)):
    # A clip may be smaller than a tile.
    tile = min(tile[0], layout.num_frames), min(tile[1], layout.segments)
    far = None if len(tiles) == 1 else bool(index)
    if far is None or pairs.has(far):
      seen = [
        _of_tile(pairs.rows_of_tile(frames, segments, far))
        for frames, segments in tpu_lists.tiles_of(layout, tile)
      ]
      # An item takes no more pairs than the largest tile has.
      most = max(sum(len(rows) for _, rows in pieces) for pieces in seen)
      group = min(group, most)
      lists.append(_make_list(seen, tile, stream, group, buffers, has_full))
  return tuple(lists)


def _of_tile(seen_by: np.ndarray) -> list[_Seen]:
  """The pieces that a tile sees, frame by frame; seen_by [rows, F, segments]."""
  seen = []
  for frame, segment in zip(*np.nonzero(seen_by.any(0))):
    rows = np.flatnonzero(seen_by[:, frame, segment]).tolist()
    seen.append((int(frame) << 16 | int(segment), tuple(rows)))
  return seen


def _make_list(
  tiles: list[list[_Seen]],
  tile: tuple[int, int],
  stream: int,
  group: int,
  buffers: int,
  has_full: bool,
) -> PairList:
  num_rows = tile[0] * tile[1]
  items_of_tile, counts, num_filled = [], [], 0
  for seen in tiles:
    by_all = [piece for piece, rows in seen if len(rows) == num_rows]
    num_full = len(by_all) // stream if has_full else 0
    left = set(by_all[num_full * stream :])
    rest = [
      (piece, rows)
      for piece, rows in seen
      if len(rows) < num_rows or piece in left
    ]
    items = []
    for pieces, pairs in _pack(rest, stream, group):
      pieces = pieces + pieces[-1:] * (stream - len(pieces))
      fill = group - len(pairs)
      num_filled += fill
      items.append(pieces + pairs + [pairs[-1] | FILL] * fill)
    counts.append((len(items), num_full))
    for start in range(0, num_full * stream, stream):
      items.append(by_all[start : start + stream] + [0] * group)
    items_of_tile.append(items)
  num_units = sum(len(rows) for seen in tiles for _, rows in seen)
  width = HEADER_WORDS + (stream + group) * (
    max(map(len, items_of_tile)) + buffers
  )
  words = np.zeros((len(tiles), width), np.int32)
  # The kernel may prefetch past the last item: zeros are a piece too.
  flat = [item for items in items_of_tile for item in items]
  table = np.zeros((len(flat) + buffers, stream + group), np.int32)
  if flat:
    table[: len(flat)] = flat
  before = 0
  for word, count, items in zip(words, counts, items_of_tile):
    # Buffers follow the number of an item over all tiles: the first items of a
    # tile are in flight while the tile before it is computed.
    word[:HEADER_WORDS] = before, *count
    part = table[before : before + len(items) + buffers].reshape(-1)
    word[HEADER_WORDS : HEADER_WORDS + len(part)] = part
    before += len(items)
  return PairList(words, tile, stream, group, num_units, num_filled)


def _pack(
  seen: Sequence[_Seen], stream: int, group: int
) -> list[tuple[list[int], list[int]]]:
  """Packs pairs into items: pieces of each, and pairs as words.

  Pieces that few rows see go together with some that many do, as an item has
  room for few pieces:

      pieces of 2, 2, 4 and 8 rows  ->  one item of 16 pairs
  """
  # Sorted by the number of rows, in the order of memory among equals.
  left = sorted((len(rows), piece, rows) for piece, rows in seen)
  items = []
  while left:
    pieces, pairs = [], []
    while left and len(pieces) < stream and len(pairs) < group:
      room = group - len(pairs)
      # The fewest rows that let the pieces after this one fill the item.
      others = stream - len(pieces) - 1
      fewest = max(1, room - others * min(left[-1][0], room))
      at = min(bisect.bisect_left(left, (fewest,)), len(left) - 1)
      _, piece, rows = left.pop(at)
      pairs += [len(pieces) << 8 | row for row in rows[:room]]
      pieces.append(piece)
      if rows[room:]:
        bisect.insort(left, (len(rows) - room, piece, rows[room:]))
    items.append((pieces, pairs))
  return items
