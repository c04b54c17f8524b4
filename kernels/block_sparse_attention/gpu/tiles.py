"""Tile sizes of the NVIDIA GPU kernels, and the lists of tiles they walk.

A GRANULE is a run of tokens in which all queries see the same keys and all keys
are seen by the same queries: in bit-reversed order, blocks_per_frame /
max_stride blocks; in natural order, one block. Granules that see each other do
so whole, so a kernel whose tiles divide the granule needs no mask: it walks
a list of granules. The lists have one entry for a pair of granules, never one
for a pair of blocks that see nothing.
"""

import dataclasses
import functools
import math
from typing import NamedTuple, Self

from jax import lax
import numpy as np

from .. import errors
from .. import mask as mask_lib
from ..pallas_types import Index

WARPGROUP_ROWS = 64  # Rows of a matrix product of one warpgroup on Hopper.
HOPPER_SHARED_MEMORY = 227 * 1024  # Bytes a program may use.
_MAX_COPY_ROWS = 256  # Of one copy by the tensor memory accelerator.


@dataclasses.dataclass(frozen=True)
class Tile:
  """Tile sizes of one kernel for Hopper.

  Attributes:
    warpgroups: Computing warpgroups of a program, each with 64 rows;
      one more warpgroup copies.
    columns: Number of tokens in a step of the loop, a multiple of 64.
    stages: Number of steps whose operands are in shared memory at once, at
      least 2.
  """

  warpgroups: int
  columns: int
  stages: int = 2

  def __post_init__(self):
    if not 1 <= self.warpgroups <= 3:
      raise errors.RequestError(
        f"warpgroups={self.warpgroups} must be 1, 2 or 3: registers are"
        " shared out between them."
      )
    if self.columns % 64 or not 64 <= self.columns <= _MAX_COPY_ROWS:
      raise errors.RequestError(
        f"columns={self.columns} must be a multiple of 64 in 64.."
        f"{_MAX_COPY_ROWS}."
      )
    if self.stages < 2:
      raise errors.RequestError(
        f"stages={self.stages} must be at least 2: one to compute with while"
        " the next is copied."
      )

  @property
  def rows(self) -> int:
    """Tokens whose results one program computes."""
    return self.warpgroups * WARPGROUP_ROWS

  def fit(self, granule: int) -> "Tile":
    """The largest tile, at most this one, that divides the granule.

    Args:
      granule: Tokens, a multiple of 64.
    """
    parts = granule // WARPGROUP_ROWS
    warpgroups = _largest_divisor(parts, self.warpgroups)
    columns = 64 * _largest_divisor(parts, self.columns // 64)
    return dataclasses.replace(self, warpgroups=warpgroups, columns=columns)


class _KernelTiles:
  """Base of the tile sizes of the three kernels, on any GPU."""

  _KERNELS = ("forward", "query_bar", "key_value_bar")

  def fit(self, granule: int) -> Self:
    """Tiles that divide the granule, for every kernel."""
    tiles = {name: getattr(self, name).fit(granule) for name in self._KERNELS}
    return dataclasses.replace(self, **tiles)

  def require_shared_memory(
    self, head_dim: int, itemsize: int, limit: int = HOPPER_SHARED_MEMORY
  ) -> None:
    """Checks that the operands of each kernel fit a multiprocessor.

    Args:
      head_dim: Head width K.
      itemsize: Bytes of an element.
      limit: Bytes a program may use.

    Raises:
      ValueError: They do not.
    """
    for name in self._KERNELS:
      size = self._shared_memory(name, head_dim, itemsize)
      _require_fits(name, getattr(self, name), size, head_dim, limit)

  def _shared_memory(self, name: str, head_dim: int, itemsize: int) -> int:
    """Bytes that one kernel takes."""
    raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class GpuTiles(_KernelTiles):
  """Tile sizes of the three kernels.

  Attributes:
    forward: Rows are queries, columns are keys.
    query_bar: Gradient of the queries: rows are queries, columns are keys.
    key_value_bar: Gradient of keys and values: rows are keys, columns queries.
    alternate: Whether the two computing warpgroups of the forward kernel take
      turns, one at the matrix unit while the other is at the softmax.
    weights_in_shared_memory: Whether weights reach the second matrix product
      through shared memory instead of registers. Saves registers, costs a
      copy.
  """

  forward: Tile = Tile(2, 128)
  query_bar: Tile = Tile(2, 64)
  key_value_bar: Tile = Tile(2, 64)
  alternate: bool = True
  weights_in_shared_memory: bool = False

  def _shared_memory(self, name: str, head_dim: int, itemsize: int) -> int:
    tile = getattr(self, name)
    own_arrays = 1 if name == "forward" else 2
    # The 8 bytes are log-sum-exp and offset, float32.
    row_bytes = own_arrays * head_dim * itemsize + 8
    column_bytes = 2 * head_dim * itemsize + 8
    size = tile.rows * row_bytes + tile.stages * tile.columns * column_bytes
    if self.weights_in_shared_memory:
      size += tile.rows * tile.columns * itemsize
    return size + 1024  # Barriers, and room for alignment.


@dataclasses.dataclass(frozen=True)
class AmpereTile:
  """Tile sizes of one kernel for Ampere or Ada.

  Attributes:
    rows: Number of tokens of a program of four warps: 64 or 128.
      With 128, every operand read from shared memory serves two products.
    columns: Number of tokens in a step of the loop: 32, 64 or 128.
    stages: Number of steps whose operands are in shared memory at once. One
      suffices: an operand is refilled as soon as its products are done.
  """

  rows: int
  columns: int
  stages: int = 1

  def __post_init__(self):
    if self.rows not in (64, 128):
      raise errors.RequestError(f"rows={self.rows} must be 64 or 128.")
    if self.columns not in (32, 64, 128):
      raise errors.RequestError(
        f"columns={self.columns} must be 32, 64 or 128."
      )
    if self.stages < 1:
      raise errors.RequestError(f"stages={self.stages} must be at least 1.")

  def fit(self, granule: int) -> "AmpereTile":
    """The largest tile, at most this one, that divides the granule.

    Args:
      granule: Tokens, a multiple of 64.
    """
    rows = math.gcd(self.rows, granule)
    columns = math.gcd(self.columns, granule)
    return dataclasses.replace(self, rows=rows, columns=columns)


@dataclasses.dataclass(frozen=True)
class AmpereTiles(_KernelTiles):
  """Tile sizes of the three kernels for Ampere and Ada.

  Attributes:
    forward: Rows are queries, columns are keys.
    query_bar: Gradient of the queries: rows are queries, columns are keys.
    key_value_bar: Gradient of keys and values: rows are keys, columns queries.
  """

  forward: AmpereTile = AmpereTile(128, 64)
  query_bar: AmpereTile = AmpereTile(64, 64)
  key_value_bar: AmpereTile = AmpereTile(64, 64)

  def _shared_memory(self, name: str, head_dim: int, itemsize: int) -> int:
    tile = getattr(self, name)
    # Forward owns queries; the others own two arrays (queries and cotangents,
    # keys and values). Log-sum-exps and offsets stay in registers.
    own_tokens = tile.rows * (1 if name == "forward" else 2)
    tokens = own_tokens + 2 * tile.stages * tile.columns
    return tokens * head_dim * itemsize + 1024  # Room for alignment.


AnyTile = Tile | AmpereTile
Tiles = GpuTiles | AmpereTiles


class TileLists(NamedTuple):
  """Compressed rows, in the order in which programs take them.

  Row rows[i] sees the granules columns[offsets[i]:offsets[i + 1]]. Long rows
  come first, so that no program starts a long row when others end.
  """

  rows: np.ndarray  # [granules] int32.
  offsets: np.ndarray  # [granules + 1] int32.
  columns: np.ndarray  # [pairs of granules] int32; ascending within a row.


class Schedule:
  """Positions of a program's rows and of the columns of its steps.

  Attributes:
    num_programs: Number of programs of one head.
  """

  def __init__(self, lists: TileLists, granule: int, tile: AnyTile):
    """Serves NumPy arrays, traced arrays and references alike.

    Args:
      lists: Granules that see each other.
      granule: Tokens of a granule, a multiple of the tile's rows and columns.
      tile: Tile sizes of a program.
    """
    self._lists = lists
    self._granule = granule
    self._tile = tile
    self._parts = granule // tile.rows  # Programs of a granule.
    self._steps = granule // tile.columns
    self.num_programs = lists.rows.shape[0] * self._parts

  def first_row(self, program: Index) -> Index:
    """Token at which the rows of a program begin."""
    granule = self._lists.rows[lax.div(program, self._parts)]
    part = lax.rem(program, self._parts)
    return granule * self._granule + part * self._tile.rows

  def num_steps(self, program: Index) -> Index:
    """Length of the program's loop."""
    start, stop = self._range(program)
    return (stop - start) * self._steps

  def first_column(self, program: Index, step: Index) -> Index:
    """Token at which the columns of a step begin."""
    start, _ = self._range(program)
    granule = self._lists.columns[start + lax.div(step, self._steps)]
    part = lax.rem(step, self._steps)
    return granule * self._granule + part * self._tile.columns

  def _range(self, program: Index) -> tuple[Index, Index]:
    row = lax.div(program, self._parts)
    return self._lists.offsets[row], self._lists.offsets[row + 1]


def granule_blocks(
  mask: mask_lib.Mask, token_order: mask_lib.TokenOrder
) -> int:
  """Blocks of a granule; divides blocks_per_frame."""
  # A frame of eight blocks and strides up to 4:
  #
  #   bit-reversed   0 4 | 2 6 | 1 5 | 3 7               four granules
  #   natural        0 | 1 | 2 | 3 | 4 | 5 | 6 | 7       eight
  if mask.max_stride == 1:
    return mask.blocks_per_frame
  if token_order == "bit_reversed" and mask.is_power_of_two:
    return mask.blocks_per_frame // mask.max_stride
  return 1


@functools.lru_cache(maxsize=64)
def tile_lists(
  mask: mask_lib.Mask,
  token_order: mask_lib.TokenOrder,
  by_key: bool = False,
) -> TileLists:
  """Granules that see each other: keys of each query granule, or the reverse.

  Args:
    mask: Visible key blocks of each query block.
    token_order: Order of the blocks within each frame.
    by_key: Whether rows are granules of keys and columns granules of queries.
  """
  size = granule_blocks(mask, token_order)
  num_rows = mask.num_blocks // size
  offsets, blocks = mask.block_lists(token_order)
  row_of_block = np.repeat(np.arange(mask.num_blocks), np.diff(offsets))
  # A granule is seen whole or not at all: its first block speaks for it.
  is_first = (row_of_block % size == 0) & (blocks % size == 0)
  rows, columns = row_of_block[is_first] // size, blocks[is_first] // size
  if by_key:
    rows, columns = columns, rows
  lengths = np.bincount(rows, minlength=num_rows)
  # Longest first; stable, so that equally long rows stay in order.
  order = np.argsort(-lengths, kind="stable")
  position = np.empty_like(order)
  position[order] = np.arange(num_rows)
  # The last key of lexsort is the primary one.
  by_position = np.lexsort((columns, position[rows]))
  offsets = np.concatenate([[0], np.cumsum(lengths[order])])
  arrays = (order, offsets, columns[by_position])
  return TileLists(*(x.astype(np.int32) for x in arrays))


def _largest_divisor(number: int, limit: int) -> int:
  return max(n for n in range(1, limit + 1) if math.gcd(n, number) == n)


def _require_fits(
  name: str, tile: AnyTile, size: int, head_dim: int, limit: int
) -> None:
  if size > limit:
    raise errors.RequestError(
      f"{name}={tile} needs {size} bytes of shared memory at head width"
      f" {head_dim}, and a program has {limit}; choose fewer columns or"
      " stages."
    )
