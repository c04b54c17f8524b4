"""Pieces of a clip, and the work lists of the backward kernel, on the host.

A frame is cut into pieces: the longest runs of tokens that see the same keys,
or equal parts of such runs. With power-of-two strides and bit-reversed order a
run has tokens_per_frame / max_stride tokens; otherwise it is one block. Between
two pieces the mask is all or nothing, so the kernels never apply a mask.

A tile is a rectangle of pieces, frames by segments, that stays in fast memory
while the pieces that it sees are streamed past it:

    resident tile             streamed piece k
    +----+----+
    | r0 | r1 |   <--------   rows {r0, r2} of the tile see k
    +----+----+
    | r2 | r3 |               item = (rows, pieces with exactly these rows)
    +----+----+

Few pieces are seen by every row and few by only one. Each streamed piece is
therefore listed with the rows that see it, and pieces with equal rows form work
items. The remainder of such a group is listed as well and is computed piece by
piece.

Pairs of frames at the largest stride ("far" pairs) see one piece of each other.
They can be moved to a second pass whose tiles are many frames of one segment,
so that a streamed piece is again seen by the whole tile.

The lists hold the exact mask: no pair of pieces outside it, and none twice.
Building them takes time and memory proportional to their length. Those of the
forward kernel are in `pair_lists.py`.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import numpy as np

from .. import errors
from .. import mask as mask_lib

# Pieces that one copy fetches. Longer runs would be fewer copies, but fewer
# pieces are part of a run of full length.
_MAX_RUN = 4
_MAX_FILL = 2.0  # Padded tokens, as a multiple of the real ones.


@dataclasses.dataclass(frozen=True)
class Layout:
  """Division of a frame into pieces.

  Attributes:
    num_frames: Number of frames of a clip.
    segments: Number of pieces of a frame.
    valid: Number of tokens of a piece.
    tokens: Number of tokens of a piece after padding.
    block_order: Natural block at each position of the kernels' order.
    blocks: Natural index of the first block of every piece of a frame.
  """

  num_frames: int
  segments: int
  valid: int
  tokens: int
  block_order: tuple[int, ...]
  blocks: tuple[int, ...]


class WorkList(NamedTuple):
  """The work items of every tile of one pass.

  The words of a tile, int32:

      header   [ items before this tile | rest, full | rest, full | ... ]
                                          largest      next size
      items    in the order of the header, then the first items of the next
               tile, which the kernel prefetches

      item             31               16 15         8 7               0
              word 0   [ number of leading runs       | number of pieces ]
              word 1   [ row 7 | row 6 | row 5 | ... | row 2 | row 1 | row 0 ]
              word 2.. [ frame            | segment                      ]

  Word 1 holds the rows of the tile that see the pieces, 4 bits each; it is
  unused where all rows do.

  "Rest" items are computed piece by piece; "full" items have `stream` pieces. A
  run is `run` pieces with successive segments of one frame, or, in the pass of
  far pairs, with successive frames of one segment. One DMA copies a run.

  Attributes:
    words: Header and items, int32 [tiles, words].
    tile: Number of frames and of segments of a tile.
    sizes: Sizes of row sets, largest first.
    stream: Number of pieces of a full item.
    run: Number of pieces of a run.
    along_frames: Whether runs extend along frames instead of segments.
    num_units: Number of pairs of pieces in the lists, without padding.
    num_items: Number of rest items, of their pieces, and of full items for
      every size, summed over all tiles.
  """

  words: np.ndarray
  tile: tuple[int, int]
  sizes: tuple[int, ...]
  stream: int
  run: int
  along_frames: bool
  num_units: int
  num_items: tuple[tuple[int, int, int], ...]

  def full_items(self, size_index: int) -> np.ndarray:
    """Counts the full items of one size, for every tile."""
    return self.words[:, 2 + 2 * size_index]

  def rest_counts(self, size_index: int) -> np.ndarray:
    """Counts the pieces of every rest item of one size."""
    counts = []
    for word in self.words:
      header = word[1 : header_words(self.sizes)]
      # Larger sizes come first; of each size, rest items before full ones.
      first = int(header[: 2 * size_index].sum())
      items = word[header_words(self.sizes) :].reshape(-1, 2 + self.stream)
      counts.append(items[first : first + header[2 * size_index], 0] & 255)
    return np.concatenate(counts)

  def singles_per_item(self) -> float:
    """Mean number of pieces of an item that need a separate copy."""
    start = header_words(self.sizes)
    pieces, items = 0, 0
    for word in self.words:
      number = int(word[1:start].sum())
      first = word[start:].reshape(-1, 2 + self.stream)[:number, 0]
      pieces += int(((first & 255) - (first >> 8) * self.run).sum())
      items += number
    return pieces / max(items, 1)


def header_words(sizes: tuple[int, ...]) -> int:
  """Number of words of a tile's header."""
  return 1 + 2 * len(sizes)


def make_layout(
  mask: mask_lib.Mask, tokens_per_frame: int, piece_tokens: int, lanes: int
) -> Layout:
  """Cuts the frames of a mask into pieces.

  Raises:
    NotImplementedError: Padding would more than double the tokens.
  """
  blocks = mask.blocks_per_frame
  if mask.is_power_of_two:
    order = mask_lib.bit_reversal(blocks)
    segments = mask.max_stride
  else:
    order = np.arange(blocks)
    segments = blocks
  run = tokens_per_frame // segments
  valid = _piece_size(run, piece_tokens, lanes)
  tokens = -(-valid // lanes) * lanes
  if tokens > _MAX_FILL * valid:
    raise errors.NotServedError(
      f"runs of {run} tokens that see the same keys would be padded to"
      f" {tokens}; they must have at least {int(lanes / _MAX_FILL)} tokens"
    )
  # A run longer than the limit is cut into equal pieces.
  segments *= run // valid
  # One block speaks for its piece, as all tokens of a piece see the same keys.
  # Pieces that are parts of one block share it.
  first_blocks = order[np.arange(segments) * blocks // segments]
  return Layout(
    mask.num_frames,
    segments,
    valid,
    tokens,
    tuple(int(u) for u in order),
    tuple(int(u) for u in first_blocks),
  )


def _piece_size(run: int, limit: int, lanes: int) -> int:
  """Finds the divisor of a run that costs least after padding to the lanes."""
  # Fewest padded tokens in all; among equals the largest piece, which makes
  # fewer items and larger products.
  sizes = [n for n in range(1, min(run, limit) + 1) if run % n == 0]
  return min(sizes, key=lambda n: (run // n * (-(-n // lanes)), -n))


@functools.lru_cache(maxsize=32)
def make_lists(
  mask: mask_lib.Mask,
  layout: Layout,
  tiles: tuple[tuple[int, int], ...],
  stream: int,
  buffers: int,
) -> tuple[WorkList, ...]:
  """Builds the work list of every pass: tiles of keys, streamed queries.

  Args:
    mask: Mask of blocks.
    layout: Result of `make_layout`.
    tiles: Largest number of frames and segments of a tile, for every pass. A
      second pass computes the far pairs of frames.
    stream: Number of pieces of a full item.
    buffers: Number of items in flight or in use. The kernel accumulates into
      streamed pieces, so this many successive items share none.

  Returns:
    One list for each tile shape; passes without work are left out.
  """
  pairs = Pairs(mask, layout, by_keys=True)
  lists = []
  for index, tile in enumerate(tiles):
    # A clip may be smaller than a tile.
    tile = min(tile[0], layout.num_frames), min(tile[1], layout.segments)
    far = None if len(tiles) == 1 else bool(index)
    if far is None or pairs.has(far):
      lists.append(_make_list(pairs, layout, tile, stream, buffers, far))
  return tuple(lists)


def tiles_of(
  layout: Layout, tile: tuple[int, int]
) -> Iterator[tuple[range, range]]:
  """Frames and segments of every tile, in the order of the kernels' grid.

  The last tiles may reach past the end of the clip.
  """
  frames, segments = tile
  for frame in range(0, layout.num_frames, frames):
    for segment in range(0, layout.segments, segments):
      yield range(frame, frame + frames), range(segment, segment + segments)


class Pairs:
  """Pairs of pieces that see each other.

  `of_tile` asks which keys the queries of a tile see, or, with `by_keys`, which
  queries see its keys.
  """

  def __init__(self, mask: mask_lib.Mask, layout: Layout, by_keys: bool):
    frames = range(mask.num_frames)
    ids = {}
    table = np.array(
      [
        [ids.setdefault(mask.strides(i, j), len(ids)) for j in frames]
        for i in frames
      ]
    )
    difference = np.abs(np.subtract.outer(layout.blocks, layout.blocks))
    # Most pairs of frames share their strides: the mask is computed once for
    # each kind of pair. [kinds, query segments, key segments]
    seen = np.array(
      [mask_lib.divides_any(strides, difference) for strides in ids]
    )
    far = seen.sum(2).max(1) == 1  # They see one piece of each other.
    if far.all():
      far[:] = False  # A single pass computes everything.
    # The backward pass asks which queries see a key: the transposed relation.
    if by_keys:
      table, seen = table.T, seen.swapaxes(1, 2)
    self._table, self._seen, self._far = table, seen, far

  def has(self, far: bool) -> bool:
    """Whether there are far pairs, or others."""
    return bool((self._far[self._table] == far).any())

  def of_tile(
    self, frames: range, segments: range, far: bool | None
  ) -> np.ndarray:
    """Bit set of the tile's rows that see each piece, int32 [F, segments]."""
    seen = self.rows_of_tile(frames, segments, far)
    # Bit i stands for row i of the tile.
    return np.tensordot(1 << np.arange(len(seen), dtype=np.int32), seen, 1)

  def rows_of_tile(
    self, frames: range, segments: range, far: bool | None
  ) -> np.ndarray:
    """Whether each row of the tile sees each piece, bool [rows, F, segments]."""
    # The last tiles may reach past the end of the clip: rows out there see
    # nothing.
    shape = self._table.shape[1:] + self._seen.shape[2:]
    rows = np.zeros((len(frames), len(segments), *shape), bool)
    for f, frame in enumerate(frames):
      for g, segment in enumerate(segments):
        if frame < len(self._table) and segment < self._seen.shape[1]:
          kinds = self._table[frame]
          rows[f, g] = self._seen[kinds, segment]
          if far is not None:
            rows[f, g] &= (self._far[kinds] == far)[:, None]
    return rows.reshape(-1, *shape)


class _Item(NamedTuple):
  rows: tuple[int, ...]
  pieces: np.ndarray  # Encoded as in the words.
  num_runs: int


def _make_list(
  pairs: Pairs,
  layout: Layout,
  tile: tuple[int, int],
  stream: int,
  buffers: int,
  far: bool | None,
) -> WorkList:
  frames, segments = tile
  num_rows = frames * segments
  # Few sizes of row sets, as the kernel is unrolled for each: all rows, or 4, 2,
  # 1. Word 1 has room for 8 row indices of 4 bits.
  sizes = (num_rows,) + tuple(
    1 << bit for bit in reversed(range(4)) if 1 << bit < num_rows
  )
  along_frames = bool(far)
  # A longer run would not be a valid slice of the axis that it extends along.
  length = layout.num_frames if along_frames else layout.segments
  run = max(
    n
    for n in range(1, min(_MAX_RUN, length) + 1)
    if math.gcd(stream, _MAX_RUN) % n == 0
  )
  tiles = [
    _items_of_tile(
      pairs.of_tile(*corner, far), sizes, stream, run, along_frames
    )
    for corner in tiles_of(layout, tile)
  ]
  tiles = _keep_apart(tiles, buffers)
  return _pack(tiles, tile, sizes, stream, buffers, run, along_frames)


def _items_of_tile(
  rows_of_piece: np.ndarray,
  sizes: tuple[int, ...],
  stream: int,
  run: int,
  along_frames: bool,
) -> list[tuple[list[_Item], list[_Item]]]:
  """Forms the rest items and the full items of every size."""
  if along_frames:
    # `_runs_first` looks for runs along the inner axis.
    rows_of_piece = rows_of_piece.T
  pieces_of_rows = {}
  for bits in np.unique(rows_of_piece):
    if bits:
      seen = rows_of_piece == bits
      for rows in _row_sets(int(bits), sizes):
        if rows in pieces_of_rows:
          pieces_of_rows[rows] |= seen
        else:
          pieces_of_rows[rows] = seen.copy()
  sections = {size: ([], []) for size in sizes}
  for rows, seen in sorted(pieces_of_rows.items()):
    pieces, num_runs = _runs_first(seen, run)
    outer, inner = np.divmod(pieces, seen.shape[1])
    if along_frames:
      outer, inner = inner, outer
    pieces = (outer << 16) + inner
    for start in range(0, len(pieces), stream):
      part = pieces[start : start + stream]
      # Runs lead the pieces and `run` divides `stream`, so each chunk starts at
      # the boundary of a run for as long as there are runs.
      runs = min(max(num_runs - start // run, 0), len(part) // run)
      section = sections[len(rows)][len(part) == stream]
      section.append(_Item(rows, part, runs))
  return [sections[size] for size in sizes]


def _runs_first(seen: np.ndarray, run: int) -> tuple[np.ndarray, int]:
  """Flat indices of the seen pieces [outer, inner], whole runs first."""
  padded = np.pad(seen, ((0, 0), (1, 1)))
  steps = np.diff(padded.astype(np.int8), axis=1)
  starts = np.flatnonzero((steps == 1)[:, :-1])
  stops = np.flatnonzero((steps == -1)[:, 1:]) + 1
  runs, rest = [], []
  for start, stop in zip(starts, stops):
    middle = start + (stop - start) // run * run
    # Counted from the start of a stretch, not from multiples of `run`: a copy
    # may begin at any piece.
    runs.append(np.arange(start, middle))
    rest.append(np.arange(middle, stop))
  num_runs = sum(map(len, runs)) // run
  return np.concatenate(runs + rest), num_runs


def _row_sets(bits: int, sizes: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
  """Splits a set of rows into sets of the given sizes, largest first."""
  rows = [row for row in range(sizes[0]) if bits >> row & 1]
  while rows:
    size = next(size for size in sizes if size <= len(rows))
    yield tuple(rows[:size])
    rows = rows[size:]


def _keep_apart(tiles: list[Any], window: int) -> list[Any]:
  """Reorders items so that `window` successive ones share no piece.

  Items of one section never share a piece. Where two sections meet, an item
  that would follow too closely is moved back. If that does not suffice, empty
  rest items are inserted.
  """
  ordered, recent = [], []  # `recent` holds the last `window` items.
  empty = _Item((0,), np.zeros(0, np.int32), 0)
  for sections in tiles:
    ordered.append([])
    for rest, full in sections:
      new_rest = []
      for section in (rest, full):
        placed = _place(section, recent, window)
        # Each empty item moves one item out of the window, so that at most
        # `window` of them are inserted. One costs a step of the kernel's loop.
        while placed is None:
          new_rest.append(empty)
          recent = [*recent, empty][-window:]
          placed = _place(section, recent, window)
        # The window extends over tiles, because copies do.
        recent = [*recent, *placed][-window:]
        if section is rest:
          new_rest += placed
      ordered[-1].append((new_rest, placed))
  return ordered


def _place(
  items: list[_Item], recent: list[_Item], window: int
) -> list[_Item] | None:
  """Orders items so that they may follow the recent ones; None if stuck."""
  placed = list(recent)
  waiting = list(items)
  while waiting:
    taken = {int(piece) for item in placed[-window:] for piece in item.pieces}
    for index, item in enumerate(waiting):
      if taken.isdisjoint(item.pieces.tolist()):
        placed.append(waiting.pop(index))
        break
    else:
      return None
  return placed[len(recent) :]


def _pack(
  tiles: list[Any],
  tile: tuple[int, int],
  sizes: tuple[int, ...],
  stream: int,
  buffers: int,
  run: int,
  along_frames: bool,
) -> WorkList:
  """Writes the items into words, as `WorkList` describes them."""
  flat = [
    item
    for sections in tiles
    for part in sections
    for items in part
    for item in items
  ]
  item_words = 2 + stream
  # The zero words at the end are empty items: the kernel may prefetch past the
  # last item.
  table = np.zeros((len(flat) + buffers, item_words), np.int32)
  for word, item in zip(table, flat):
    word[0] = len(item.pieces) + (item.num_runs << 8)
    # The kernel knows the rows of a set of all rows.
    if len(item.rows) < tile[0] * tile[1]:
      packed = sum(row << 4 * index for index, row in enumerate(item.rows))
      word[1] = np.uint32(packed).astype(np.int32)  # Keeps the bit pattern.
    word[2 : 2 + len(item.pieces)] = item.pieces
  counts = np.array(
    [[len(items) for part in sections for items in part] for sections in tiles]
  )
  num_items = counts.sum(1)
  start = header_words(sizes)
  width = start + item_words * (int(num_items.max()) + buffers)
  words = np.zeros((len(tiles), width), np.int32)
  before = 0
  for word, count, num in zip(words, counts, num_items):
    # Buffers follow the number of an item over all tiles: the first items of a
    # tile are in flight while the tile before it is computed.
    word[0] = before
    word[1:start] = count
    part = table[before : before + num + buffers].reshape(-1)
    word[start : start + len(part)] = part
    before += num
  num_units = sum(len(item.rows) * len(item.pieces) for item in flat)
  by_size = tuple(
    (
      sum(len(sections[k][0]) for sections in tiles),
      sum(len(i.pieces) for sections in tiles for i in sections[k][0]),
      sum(len(sections[k][1]) for sections in tiles),
    )
    for k in range(len(sizes))
  )
  return WorkList(
    words, tile, sizes, stream, run, along_frames, num_units, by_size
  )
