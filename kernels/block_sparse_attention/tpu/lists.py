"""What the TPU kernels do, as lists made on the host.

A frame is cut into pieces, the longest runs of tokens that see the same keys
(or parts of them): with strides that are powers of two, in bit-reversed order,
tokens_per_frame / max_stride tokens, otherwise one block. Between pieces the
mask is all or nothing, so that no kernel needs a mask.

A tile is a rectangle of pieces, frames by segments, that stays in fast memory.
The pieces it sees are streamed past it. Few of them are seen by all pieces of
the tile and few by only one: a streamed piece is listed with the rows, the
pieces of the tile that see it, and pieces with equal rows make up an item. What
is left over of such a group is listed too, and done piece by piece.

Pairs of frames at the largest stride ("far") see one piece each of the other.
They can be given a pass of their own, whose tiles are many frames of one
segment: then a streamed piece is seen by the whole tile again.

Lists hold the exact mask: no pair of pieces outside it, none twice. Time and
memory to make them grow with their length.
"""

import dataclasses
import functools
import math
from typing import NamedTuple

import numpy as np

from .. import mask as mask_lib

_MAX_RUN = 4  # Pieces that one copy fetches.
_MAX_FILL = 2.0  # Filled-up tokens, as a multiple of the real ones.


@dataclasses.dataclass(frozen=True)
class Layout:
  """How a frame is cut into pieces.

  Attributes:
    num_frames: Frames of a clip.
    segments: Pieces of a frame.
    valid: Tokens of a piece.
    tokens: Tokens of a piece after filling it up.
    block_order: Natural block at each position of the kernels' order.
    blocks: For every piece of a frame the natural index of its first block.
  """

  num_frames: int
  segments: int
  valid: int
  tokens: int
  block_order: tuple[int, ...]
  blocks: tuple[int, ...]


class WorkList(NamedTuple):
  """The items of every tile of one pass.

  The words of a tile are a header, its items, and the first items of the next
  tile, which are fetched ahead. Header: number of items before this tile; then
  for each size of row set, largest first, the number of items that are done
  piece by piece, and of full ones. Items come in that order. An item: the
  number of its pieces, and in the bits from 8 on how many runs they begin with;
  its rows, four bits each, unless they are all rows of the tile; its pieces,
  frame * 2^16 + segment. A run is `run` pieces with successive segments of one
  frame, or in a pass of far pairs with successive frames of one segment: one
  copy fetches it.

  Attributes:
    words: int32 [tiles, words].
    tile: Frames and segments of a tile.
    sizes: Numbers of rows, largest first.
    stream: Pieces of a full item.
    run: Pieces of a run.
    along_frames: Whether runs go along frames, not segments.
    num_units: Pairs of pieces in the lists, fillings not counted.
    num_items: For every size, items done piece by piece, their pieces, and full
      items, over all tiles.
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
    """Number of full items of one size, for every tile."""
    return self.words[:, 2 + 2 * size_index]

  def rest_counts(self, size_index: int) -> np.ndarray:
    """Pieces of every item of one size that is done piece by piece."""
    counts = []
    for word in self.words:
      header = word[1 : header_words(self.sizes)]
      first = int(header[: 2 * size_index].sum())
      items = word[header_words(self.sizes) :].reshape(-1, 2 + self.stream)
      counts.append(items[first : first + header[2 * size_index], 0] & 255)
    return np.concatenate(counts)

  def singles_per_item(self) -> float:
    """Mean number of pieces that are fetched by a copy of their own."""
    start = header_words(self.sizes)
    pieces, items = 0, 0
    for word in self.words:
      number = int(word[1:start].sum())
      first = word[start:].reshape(-1, 2 + self.stream)[:number, 0]
      pieces += int(((first & 255) - (first >> 8) * self.run).sum())
      items += number
    return pieces / max(items, 1)


def header_words(sizes: tuple[int, ...]) -> int:
  return 1 + 2 * len(sizes)


def make_layout(
  mask: mask_lib.Mask, tokens_per_frame: int, piece_tokens: int, lanes: int
) -> Layout:
  """Cuts the frames of a mask into pieces.

  Raises:
    NotImplementedError: Pieces would have to be filled up to more than twice
      their tokens.
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
    raise NotImplementedError(
      f"runs of {run} tokens that see the same keys would be filled up to"
      f" {tokens}; they must have at least {int(lanes / _MAX_FILL)} tokens"
    )
  segments *= run // valid
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
  """The divisor of a run that costs least when filled up to the lanes."""
  sizes = [n for n in range(1, min(run, limit) + 1) if run % n == 0]
  return min(sizes, key=lambda n: (run // n * (-(-n // lanes)), -n))


@functools.lru_cache(maxsize=32)
def make_lists(
  mask: mask_lib.Mask,
  layout: Layout,
  tiles: tuple[tuple[int, int], ...],
  stream: int,
  buffers: int,
  by_keys: bool = False,
) -> tuple[WorkList, ...]:
  """The work of every pass.

  Args:
    mask: Which blocks see which.
    layout: From `make_layout`.
    tiles: Frames and segments of a tile at most, for every pass. A second one
      does the far pairs of frames.
    stream: Pieces of a full item.
    buffers: Items in flight or in use.
    by_keys: Tiles are of keys, and the queries that see them are streamed, such
      that `buffers` successive items share no piece.

  Returns:
    One list for each tile shape; shorter if a pass has nothing to do.
  """
  pairs = _Pairs(mask, layout, by_keys)
  lists = []
  for index, tile in enumerate(tiles):
    # A clip may be smaller than a tile.
    tile = min(tile[0], layout.num_frames), min(tile[1], layout.segments)
    far = None if len(tiles) == 1 else bool(index)
    if far is None or pairs.has(far):
      lists.append(
        _make_list(pairs, layout, tile, stream, buffers, far, by_keys)
      )
  return tuple(lists)


class _Pairs:
  """Which pieces see which."""

  def __init__(self, mask, layout, by_keys):
    frames = range(mask.num_frames)
    ids = {}
    table = np.array(
      [
        [ids.setdefault(mask.strides(i, j), len(ids)) for j in frames]
        for i in frames
      ]
    )
    difference = np.abs(np.subtract.outer(layout.blocks, layout.blocks))
    # [kinds of pairs of frames, segments of queries, segments of keys].
    seen = np.array(
      [mask_lib.divides_any(strides, difference) for strides in ids]
    )
    far = seen.sum(2).max(1) == 1  # One piece each.
    if far.all():
      far[:] = False
    if by_keys:
      table, seen = table.T, seen.swapaxes(1, 2)
    self._table, self._seen, self._far = table, seen, far

  def has(self, far: bool) -> bool:
    return bool((self._far[self._table] == far).any())

  def of_tile(self, frames, segments, far) -> np.ndarray:
    """Rows that see each piece, as bits, [F, segments]."""
    rows = np.zeros(self._table.shape[1:] + self._seen.shape[2:], np.int32)
    bit = 1
    for frame in frames:
      for segment in segments:
        if frame < len(self._table) and segment < self._seen.shape[1]:
          kinds = self._table[frame]
          seen = self._seen[kinds, segment]
          if far is not None:
            seen = seen & (self._far[kinds] == far)[:, None]
          rows += bit * seen
        bit *= 2
    return rows


class _Item(NamedTuple):
  rows: tuple[int, ...]
  pieces: np.ndarray  # Encoded as in the words.
  num_runs: int


def _make_list(pairs, layout, tile, stream, buffers, far, apart) -> WorkList:
  frames, segments = tile
  num_rows = frames * segments
  sizes = (num_rows,) + tuple(
    1 << bit for bit in reversed(range(4)) if 1 << bit < num_rows
  )
  along_frames = bool(far)
  # A run longer than what it goes along would be no valid slice.
  length = layout.num_frames if along_frames else layout.segments
  run = max(
    n
    for n in range(1, min(_MAX_RUN, length) + 1)
    if math.gcd(stream, _MAX_RUN) % n == 0
  )
  tiles = []
  for frame in range(0, layout.num_frames, frames):
    for segment in range(0, layout.segments, segments):
      rows = pairs.of_tile(
        range(frame, frame + frames),
        range(segment, segment + segments),
        far,
      )
      tiles.append(_items_of_tile(rows, sizes, stream, run, along_frames))
  if apart:
    tiles = _keep_apart(tiles, buffers)
  return _pack(tiles, tile, sizes, stream, buffers, run, along_frames)


def _items_of_tile(rows_of_piece, sizes, stream, run, along_frames):
  """For every size the items that are done piece by piece, and full ones."""
  if along_frames:
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
      runs = min(max(num_runs - start // run, 0), len(part) // run)
      section = sections[len(rows)][len(part) == stream]
      section.append(_Item(rows, part, runs))
  return [sections[size] for size in sizes]


def _runs_first(seen: np.ndarray, run: int) -> tuple[np.ndarray, int]:
  """Flat indices of the pieces seen, [outer, inner]; whole runs come first."""
  padded = np.pad(seen, ((0, 0), (1, 1)))
  steps = np.diff(padded.astype(np.int8), axis=1)
  starts = np.flatnonzero((steps == 1)[:, :-1])
  stops = np.flatnonzero((steps == -1)[:, 1:]) + 1
  runs, rest = [], []
  for start, stop in zip(starts, stops):
    middle = start + (stop - start) // run * run
    runs.append(np.arange(start, middle))
    rest.append(np.arange(middle, stop))
  num_runs = sum(map(len, runs)) // run
  return np.concatenate(runs + rest), num_runs


def _row_sets(bits, sizes):
  """Cuts a set of rows into sets of the given sizes, largest first."""
  rows = [row for row in range(sizes[0]) if bits >> row & 1]
  while rows:
    size = next(size for size in sizes if size <= len(rows))
    yield tuple(rows[:size])
    rows = rows[size:]


def _keep_apart(tiles, window):
  """Reorders items such that `window` successive ones share no piece.

  Items of a section share none. Where sections meet, an item that would come
  too soon is moved back; if that is not enough, empty items, which are of the
  kind that is done piece by piece, are put between.
  """
  ordered, recent = [], []  # The last items.
  empty = _Item((0,), np.zeros(0, np.int32), 0)
  for sections in tiles:
    ordered.append([])
    for rest, full in sections:
      new_rest = []
      for section in (rest, full):
        placed = _place(section, recent, window)
        while placed is None:
          new_rest.append(empty)
          recent = [*recent, empty][-window:]
          placed = _place(section, recent, window)
        recent = [*recent, *placed][-window:]
        if section is rest:
          new_rest += placed
      ordered[-1].append((new_rest, placed))
  return ordered


def _place(items, recent, window):
  """The items in an order that fits after the recent ones; None if stuck."""
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


def _pack(tiles, tile, sizes, stream, buffers, run, along_frames) -> WorkList:
  flat = [
    item
    for sections in tiles
    for part in sections
    for items in part
    for item in items
  ]
  item_words = 2 + stream
  table = np.zeros((len(flat) + buffers, item_words), np.int32)
  for word, item in zip(table, flat):
    word[0] = len(item.pieces) + (item.num_runs << 8)
    if len(item.rows) < tile[0] * tile[1]:
      packed = sum(row << 4 * index for index, row in enumerate(item.rows))
      word[1] = np.uint32(packed).astype(np.int32)  # The same bits.
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
