"""Which blocks see which: first-frame anchor and a stride schedule over frames.

A clip has `num_frames` frames and every frame `blocks_per_frame` blocks of
consecutive tokens. Query block (i, u), block u of frame i, sees key block (j,
v) if and only if

    j is an anchor frame   or   u mod s == v mod s,
    s = schedule[min(|i - j|, len(schedule) - 1)].

Between two frames the mask depends on u - v alone, and it is a union of "s
divides u - v" for a few strides s. That form is closed under `&` (least common
multiples) and `|` (unions), so a mask never needs a quadratic table: everything
below works on strides, one small set for a pair of frames. Stride
`blocks_per_frame` or more means "the same block only"; a query block always
sees itself.

Order. For s = 2^k, "s divides u - v" says that the low k bits of u and v agree.
Listing the blocks of a frame by the bit reversal of their index makes these
bits the leading ones: blocks that may see each other become CONTIGUOUS, and the
mask between two frames becomes s dense squares on the diagonal. "Natural" order
is block u at position u; in "bit-reversed" order position p holds block
`bit_reversal(blocks_per_frame)[p]`.

Source: Sculpt4D (arXiv 2604.21592), block-sparse attention and Tables A1, A2.
"""

from collections.abc import Iterable
import dataclasses
import functools
import math
from typing import Literal, NamedTuple

import numpy as np

from . import errors

TokenOrder = Literal["natural", "bit_reversed"]


class Level(NamedTuple):
  """Key frames that one query frame sees with the same stride."""

  stride: int
  frames: tuple[int, ...]  # Ascending.

  @property
  def frame_runs(self) -> tuple[tuple[int, int], ...]:
    """The frames as half-open ranges (start, stop)."""
    return _runs(self.frames)


class BlockLists(NamedTuple):
  """Compressed rows: row r sees indices[offsets[r]:offsets[r + 1]]."""

  offsets: np.ndarray  # [F * blocks_per_frame + 1]
  indices: np.ndarray  # Ascending within a row.


class Mask:
  """Base class: a `BlockMask`, or two masks combined by & or |.

  A mask is an immutable value, known when a function is traced: it can be
  hashed, compared, printed, and passed to jit as a static argument.
  """

  num_frames: int
  blocks_per_frame: int

  def strides(self, query_frame: int, key_frame: int) -> tuple[int, ...]:
    """Strides s for which "s divides u - v" lets block u see block v.

    Ascending, none a multiple of another, at most `blocks_per_frame`: equal
    tuples mean equal masks between the two frames.
    """
    raise NotImplementedError

  def __and__(self, other: "Mask") -> "Mask":
    return _CombinedMask("&", self, other)

  def __or__(self, other: "Mask") -> "Mask":
    return _CombinedMask("|", self, other)

  @property
  def num_blocks(self) -> int:
    """Number of blocks of all frames."""
    return self.num_frames * self.blocks_per_frame

  @property
  def is_power_of_two(self) -> bool:
    """Whether bit reversal makes every pair of frames block-diagonal.

    True if `blocks_per_frame` and all strides are powers of two.
    """
    return _is_power_of_two(self.blocks_per_frame) and all(
      _is_power_of_two(stride)
      for row in _stride_table(self)
      for strides in row
      for stride in strides
    )

  @property
  def max_stride(self) -> int:
    """The largest stride in use: segments a frame, in bit-reversed order."""
    return max(
      stride
      for row in _stride_table(self)
      for strides in row
      for stride in strides
    )

  def num_pairs(self) -> int:
    """Pairs of blocks that see each other."""
    return sum(
      _count_pairs(strides, self.blocks_per_frame)
      for row in _stride_table(self)
      for strides in row
    )

  def density(self) -> float:
    """Block pairs that see each other, as a fraction of all; exact."""
    return self.num_pairs() / self.num_blocks**2

  def dense_blocks(self, token_order: TokenOrder = "natural") -> np.ndarray:
    """The whole mask, [F * blocks, F * blocks] bool; for small sizes."""
    blocks = self.blocks_per_frame
    u = block_order(blocks, token_order)
    difference = np.abs(u[:, None] - u[None, :])
    # Only u - v matters between two frames, so one difference table serves all.
    table = np.zeros((self.num_frames, blocks, self.num_frames, blocks), bool)
    for i, row in enumerate(_stride_table(self)):
      for j, strides in enumerate(row):
        table[i, :, j, :] = divides_any(strides, difference)
    return table.reshape(self.num_blocks, self.num_blocks)

  def levels(self, query_frame: int) -> tuple[Level, ...]:
    """Key frames of one query frame, grouped by stride; strides ascending.

    Raises:
      ValueError: The mask is not `is_power_of_two`, so that a pair of frames
        may need more than one stride. Use `block_lists`.
    """
    if not self.is_power_of_two:
      raise errors.RequestError(
        "levels needs a mask whose strides and blocks_per_frame are powers of"
        f" two, got {self}; use block_lists for any other."
      )
    return _levels(self, query_frame)

  def block_lists(self, token_order: TokenOrder = "natural") -> BlockLists:
    """Key blocks that each query block sees, for masks of any kind."""
    return _block_lists(self, token_order)

  def __str__(self) -> str:
    return f"{self!r}, density {self.density():.2%}"


@dataclasses.dataclass(frozen=True)
class BlockMask(Mask):
  """First-frame anchor and stride schedule; see the module docstring.

  Attributes:
    num_frames: Frames F of a clip.
    blocks_per_frame: Blocks of a frame, at least 1.
    schedule: Stride at frame distance 0, 1, 2, ...; the last entry serves all
      larger distances.
    anchor_frames: Key frames that every query sees whole. One-way: the anchor's
      own queries follow the schedule.
  """

  num_frames: int
  blocks_per_frame: int
  schedule: tuple[int, ...] = (1, 1, 2, 4, 8, 16)
  anchor_frames: tuple[int, ...] = (0,)

  def __post_init__(self):
    for name in ("num_frames", "blocks_per_frame"):
      _require_positive(name, getattr(self, name))
      # Converted to plain integers and tuples: equal masks must be equal
      # as jit's static arguments.
      object.__setattr__(self, name, int(getattr(self, name)))
    schedule = tuple(int(stride) for stride in self.schedule)
    if not schedule or min(schedule) < 1:
      raise errors.RequestError(
        "schedule must list at least one stride, each at least 1, got"
        f" {schedule}; (1,) is dense attention."
      )
    anchors = tuple(sorted({int(frame) for frame in self.anchor_frames}))
    if anchors and not 0 <= anchors[0] <= anchors[-1] < self.num_frames:
      raise errors.RequestError(
        f"anchor_frames={anchors} must lie in 0..{self.num_frames - 1} for"
        f" num_frames={self.num_frames}; () is no anchor."
      )
    object.__setattr__(self, "schedule", schedule)
    object.__setattr__(self, "anchor_frames", anchors)

  @classmethod
  def dense(cls, num_frames: int, blocks_per_frame: int) -> "BlockMask":
    """Every block sees every block."""
    return cls(num_frames, blocks_per_frame, schedule=(1,), anchor_frames=())

  def strides(self, query_frame: int, key_frame: int) -> tuple[int, ...]:
    """See `Mask.strides`."""
    if key_frame in self.anchor_frames:
      return (1,)
    distance = min(abs(query_frame - key_frame), len(self.schedule) - 1)
    # Any stride from `blocks_per_frame` on means "the same block only"; clamped
    # so that equal masks have equal strides.
    return (min(self.schedule[distance], self.blocks_per_frame),)


@dataclasses.dataclass(frozen=True)
class _CombinedMask(Mask):
  """Intersection (&) or union (|) of two masks over the same blocks."""

  operator: Literal["&", "|"]
  left: Mask
  right: Mask

  def __post_init__(self):
    shapes = [
      (mask.num_frames, mask.blocks_per_frame)
      for mask in (self.left, self.right)
    ]
    if shapes[0] != shapes[1]:
      raise errors.RequestError(
        "Masks can be combined only over the same (num_frames,"
        f" blocks_per_frame), got {shapes[0]} and {shapes[1]}."
      )

  @property
  def num_frames(self) -> int:
    return self.left.num_frames

  @property
  def blocks_per_frame(self) -> int:
    return self.left.blocks_per_frame

  def strides(self, query_frame: int, key_frame: int) -> tuple[int, ...]:
    left = self.left.strides(query_frame, key_frame)
    right = self.right.strides(query_frame, key_frame)
    if self.operator == "|":
      # Unions of "s divides u - v" just list more strides.
      strides = left + right
    else:
      # "a and b divide u - v" is "lcm(a, b) divides u - v", for every pair.
      strides = (math.lcm(a, b) for a in left for b in right)
    return _smallest(strides, self.blocks_per_frame)

  def __repr__(self) -> str:
    return f"({self.left!r} {self.operator} {self.right!r})"


def bit_reversal(blocks_per_frame: int) -> np.ndarray:
  """Blocks of a frame by the bit reversal of their index, [blocks_per_frame].

  Position p of the new order holds block `bit_reversal(n)[p]`: tokens go there
  with `x[order]` and return with `x[inverse_order(order)]`. For a power of
  two the order is its own inverse. For any other n it is the order of the next
  power of two with the blocks that do not exist left out: blocks that agree
  modulo a power of two still are contiguous, only in runs of unequal length.
  """
  _require_positive("blocks_per_frame", blocks_per_frame)
  num_bits = (int(blocks_per_frame) - 1).bit_length()
  # Eight blocks, and the runs that see each other at each stride:
  #
  #   order      0   4   2   6   1   5   3   7
  #   in bits   000 100 010 110 001 101 011 111
  #   stride 2  [-------------] [-------------]
  #   stride 4  [-----] [-----] [-----] [-----]
  #
  # Bit by bit over all indices at once; those that do not exist are dropped at
  # the end.
  index = np.arange(1 << num_bits)
  order = np.zeros_like(index)
  for bit in range(num_bits):
    order |= ((index >> bit) & 1) << (num_bits - 1 - bit)
  return order[order < blocks_per_frame]


def inverse_order(order: np.ndarray) -> np.ndarray:
  """The order that undoes `order`: x[order][inverse_order(order)] == x."""
  return np.argsort(order)


def bit_reversed_tokens(
  tokens_per_frame: int, blocks_per_frame: int
) -> np.ndarray:
  """Tokens of a frame with its blocks in bit-reversed order, [N] indices.

  `x[:, bit_reversed_tokens(N, blocks)]` takes [F, N, ...] to the order that
  `token_order="bit_reversed"` means; `inverse_order` of it leads back.
  """
  block_size = require_block_size(tokens_per_frame, blocks_per_frame)
  order = bit_reversal(blocks_per_frame)
  return (order[:, None] * block_size + np.arange(block_size)).reshape(-1)


def require_block_size(tokens_per_frame: int, blocks_per_frame: int) -> int:
  """Tokens of a block.

  Raises:
    ValueError: The blocks do not divide the frame.
  """
  if tokens_per_frame < 1 or tokens_per_frame % blocks_per_frame:
    raise errors.RequestError(
      f"tokens_per_frame={tokens_per_frame} is not a positive multiple of"
      f" blocks_per_frame={blocks_per_frame}; pad the tokens or choose a"
      " number of blocks that divides them."
    )
  return tokens_per_frame // blocks_per_frame


def block_order(blocks_per_frame: int, token_order: TokenOrder) -> np.ndarray:
  """Natural index of the block at each position of a frame."""
  if token_order == "bit_reversed":
    return bit_reversal(blocks_per_frame)
  return np.arange(blocks_per_frame)


def _is_power_of_two(n: int) -> bool:
  return n & (n - 1) == 0


def _require_positive(name: str, value: int) -> None:
  if int(value) != value or value < 1:
    raise errors.RequestError(
      f"{name} must be a whole number of at least 1, got {value}."
    )


def _smallest(strides: Iterable[int], blocks: int) -> tuple[int, ...]:
  """Drops strides that add nothing to the union of the others."""
  kept = []
  for stride in sorted({min(stride, blocks) for stride in strides}):
    # Stride `blocks` lets a block see itself, which every stride does.
    if not (kept and stride == blocks) and all(stride % s for s in kept):
      kept.append(stride)
  return tuple(kept)


def divides_any(strides: tuple[int, ...], difference: np.ndarray) -> np.ndarray:
  """Whether any of the strides divides a difference of block indices."""
  seen = np.zeros(difference.shape, bool)
  for stride in strides:
    seen |= difference % stride == 0
  return seen


@functools.cache
def _count_pairs(strides: tuple[int, ...], blocks: int) -> int:
  """Pairs (u, v) of blocks that see each other: by difference, then summed."""
  difference = np.arange(blocks)
  # How often each |u - v| occurs among all pairs (u, v).
  pairs = np.where(difference == 0, blocks, 2 * (blocks - difference))
  return int(pairs[divides_any(strides, difference)].sum())


# Cached: every layer of a model traces the same few masks.
@functools.lru_cache(maxsize=256)
def _stride_table(mask: Mask) -> tuple[tuple[tuple[int, ...], ...], ...]:
  """strides(i, j) for all pairs of frames: F^2 small tuples."""
  frames = range(mask.num_frames)
  return tuple(tuple(mask.strides(i, j) for j in frames) for i in frames)


@functools.lru_cache(maxsize=4096)
def _levels(mask: Mask, query_frame: int) -> tuple[Level, ...]:
  frames_by_stride = {}
  # Powers of two divide each other, so one stride is left of each union.
  for j, (stride,) in enumerate(_stride_table(mask)[query_frame]):
    frames_by_stride.setdefault(stride, []).append(j)
  return tuple(
    Level(stride, tuple(frames_by_stride[stride]))
    for stride in sorted(frames_by_stride)
  )


@functools.lru_cache(maxsize=64)
def _block_lists(mask: Mask, token_order: TokenOrder) -> BlockLists:
  blocks = mask.blocks_per_frame
  order = block_order(blocks, token_order)
  difference = np.abs(order[:, None] - order[None, :])
  rows = []
  for row in _stride_table(mask):
    # One row of frames at a time, so that the quadratic table never exists.
    seen = np.stack([divides_any(s, difference) for s in row], 1)
    rows += [np.flatnonzero(seen_by_u) for seen_by_u in seen]
  offsets = np.cumsum([0] + [len(row) for row in rows])
  return BlockLists(offsets, np.concatenate(rows).astype(np.int32))


def _runs(numbers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
  return tuple(_join([(n, 1) for n in numbers]))


def _join(pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
  """Joins ascending pieces (start, length) into ranges (start, stop)."""
  ranges = []
  for start, length in pieces:
    if ranges and ranges[-1][1] == start:
      ranges[-1] = (ranges[-1][0], start + length)
    else:
      ranges.append((start, start + length))
  return ranges
