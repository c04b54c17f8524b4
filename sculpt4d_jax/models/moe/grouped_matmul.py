"""Matrix products of groups of rows, each with its own matrix, on TPU (Pallas).

Rows are sorted by group and every group is padded to whole blocks, so that a
block of rows has ONE matrix. The kernel knows which one in advance (a
prefetched scalar selects the tile to fetch), and successive blocks of a group
keep it in fast memory. The work is that of the blocks in use, for any
sizes of the groups; blocks after the last group are zero and are skipped.

`jax.lax.ragged_dot` serves the same purpose, but on TPU its product is masked
and covers all groups for all rows.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning

Array = array_types.Array
Float = array_types.Float

_LANES = 128
_VMEM_LIMIT = 48 * 2**20
# Rows of a block, largest first. With 8 blocks a group on average, padding
# (half a block a group) is at most about 6 per cent of the rows.
_BLOCK_ROWS = (512, 256, 128)
# Contractions up to this depth are not split: the next block of the same group
# then finds its matrix in fast memory.
_MAX_WHOLE_DEPTH = 2048


class Blocks(NamedTuple):
  """Matrix of each block of rows.

  Attributes:
    expert: Group of each block, [num_blocks] int32, ascending.
    is_used: Whether a block holds rows of a group, [num_blocks] int32.
    has_rows: Whether a group has rows, [E].
  """

  expert: Array
  is_used: Array
  has_rows: Array


def serves(dtype: Any, width: int, hidden_width: int) -> bool:
  """Whether rows and matrices of these widths need no padding."""
  return dtype in (jnp.bfloat16, jnp.float32) and not (
    width % _LANES or hidden_width % _LANES
  )


def block_rows(num_rows: int, num_groups: int) -> int:
  """Rows of a block: large blocks multiply faster, small ones pad less."""
  for rows in _BLOCK_ROWS:
    if num_rows >= 8 * rows * num_groups:
      return rows
  return _BLOCK_ROWS[-1]


def blocks_of(rows_per_group: Array, num_rows: int, block_size: int) -> Blocks:
  """Makes the blocks of sorted rows.

  Args:
    rows_per_group: Number of rows with padding, multiples of `block_size`, [E].
    num_rows: Number of rows, used or not; a multiple of `block_size`.
    block_size: Rows of a block.
  """
  ends = jnp.cumsum(rows_per_group) // block_size
  index = jnp.arange(num_rows // block_size)
  expert = (index[:, None] >= ends).sum(1)  # searchsorted would be a loop.
  expert = jnp.minimum(expert, len(rows_per_group) - 1)
  is_used = index < ends[-1]
  return Blocks(
    expert.astype(jnp.int32), is_used.astype(jnp.int32), rows_per_group > 0
  )


def multiply(
  rows: Float[Array, "R D"],
  kernel: Float[Array, "E _ _"],
  blocks: Blocks,
  *,
  transposed: bool = False,
  bias: Float[Array, "E M"] | None = None,
  initial: Float[Array, "R M"] | None = None,
  dtype: Any = None,
) -> Float[Array, "R M"]:
  """Multiplies every row by the matrix of its block; unused blocks are skipped.

  Widths that are not multiples of the lanes are padded with zeros.

  Args:
    rows: Rows sorted by group.
    kernel: One matrix for each group.
    blocks: Index of each block's matrix.
    transposed: Whether the matrices are stored transposed, [E, M, D].
    bias: Bias of each group, added to unused blocks too.
    initial: Initial value that the product is added to, float32, as is the
      result then; its memory becomes the result's.
    dtype: Dtype of the result without an initial value; None is the rows'.
  """
  width = kernel.shape[1] if transposed else kernel.shape[2]
  kernel = _fill(kernel, (1, 2))
  rows = _fill(rows, (1,))
  if bias is not None:
    bias = _fill(bias, (1,))
  if initial is not None:
    initial = _fill(initial.astype(jnp.float32), (1,))
  dtype = jnp.float32 if initial is not None else dtype or rows.dtype
  out = _multiply(rows, kernel, blocks, transposed, bias, initial, dtype)
  return out[:, :width]


def outer(
  rows: Float[Array, "R D"], others: Float[Array, "R M"], blocks: Blocks
) -> Float[Array, "E D M"]:
  """Sums row^T . other over every group: the gradient of its matrix."""
  depth, width = rows.shape[1], others.shape[1]
  sums = _outer(_fill(rows, (1,)), _fill(others, (1,)), blocks)
  return sums[:, :depth, :width]


def _fill(x: Array, axes: tuple[int, ...]) -> Array:
  """Pads axes to multiples of the lanes."""
  fills = [(0, -n % _LANES if i in axes else 0) for i, n in enumerate(x.shape)]
  return jnp.pad(x, fills) if any(fill for _, fill in fills) else x


def _tile(size: int, limit: int) -> int:
  """The largest divisor of a size up to a limit, both in whole lanes."""
  lanes = size // _LANES
  best = max(n for n in range(1, limit // _LANES + 1) if lanes % n == 0)
  return best * _LANES


def _call(
  kernel: Callable[..., None], name: str, **kwargs: Any
) -> Callable[..., Array]:
  """A Pallas call; interpreted where there is no TPU."""
  return pl.pallas_call(
    kernel,
    name=name,
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("arbitrary",) * 3,
      vmem_limit_bytes=_VMEM_LIMIT,
    ),
    interpret=partitioning.platform()[0] != "tpu",
    **kwargs,
  )


def _dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
  # By default a TPU multiplies float32 in one pass of bfloat16.
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  dimensions = (((contract[0],), (contract[1],)), ((), ()))
  return lax.dot_general(
    a,
    b,
    dimensions,
    precision=precision,
    preferred_element_type=jnp.float32,
  )


def _multiply(
  rows: Array,
  kernel: Array,
  blocks: Blocks,
  transposed: bool,
  bias: Array | None,
  initial: Array | None,
  dtype: Any,
) -> Array:
  """Computes rows @ kernel[expert], or its transpose, + bias + initial."""
  num_blocks = len(blocks.expert)
  block_size = len(rows) // num_blocks
  depth, width = kernel.shape[1:][::-1] if transposed else kernel.shape[1:]
  # Either way a tile of the matrix has at most 2 Mi numbers, 4 MiB in bfloat16.
  whole = depth <= _MAX_WHOLE_DEPTH
  tile_depth = depth if whole else _tile(depth, 1024)
  tile_width = _tile(width, 1024 if whole else 2048)
  steps = depth // tile_depth
  has_bias, has_initial = bias is not None, initial is not None

  def body(
    expert: jax.Ref,
    is_used: jax.Ref,
    rows: jax.Ref,
    kernel: jax.Ref,
    *refs: jax.Ref,
  ) -> None:
    del expert
    refs = list(refs)
    bias = refs.pop(0) if has_bias else None
    initial = refs.pop(0) if has_initial else None
    out, total = refs
    block, step = pl.program_id(1), pl.program_id(2)

    @pl.when(step == 0)
    def _():
      # The sum over depth stays in fast memory; unused blocks only pass
      # `initial` on.
      total[...] = initial[...] if has_initial else jnp.zeros_like(total)

    @pl.when(is_used[block] != 0)
    def _():
      total[...] += _dot(rows[...], kernel[...], (1, 1 if transposed else 0))

    @pl.when(step == steps - 1)
    def _():
      y = total[...]
      if has_bias:
        y += bias[...].astype(jnp.float32)
      out[...] = y.astype(out.dtype)

  if transposed:
    kernel_block = (None, tile_width, tile_depth)
    kernel_index = lambda n, b, k, expert, _: (expert[b], n, k)
  else:
    kernel_block = (None, tile_depth, tile_width)
    kernel_index = lambda n, b, k, expert, _: (expert[b], k, n)
  out_spec = pl.BlockSpec((block_size, tile_width), lambda n, b, k, *_: (b, n))
  specs = [
    # Columns outermost, then blocks: while the group and the tile of columns
    # stay the same, the matrix is not fetched again.
    pl.BlockSpec((block_size, tile_depth), lambda n, b, k, *_: (b, k)),
    pl.BlockSpec(kernel_block, kernel_index),
  ]
  operands = [blocks.expert, blocks.is_used, rows, kernel]
  if has_bias:
    specs.append(
      pl.BlockSpec(
        (None, 1, tile_width), lambda n, b, k, expert, _: (expert[b], 0, n)
      )
    )
    operands.append(bias[:, None])
  aliases = {}
  if has_initial:
    specs.append(out_spec)
    aliases[len(operands)] = 0
    operands.append(initial)
  return _call(
    body,
    "grouped_multiply",
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      grid=(width // tile_width, num_blocks, steps),
      in_specs=specs,
      out_specs=out_spec,
      scratch_shapes=[pltpu.VMEM((block_size, tile_width), jnp.float32)],
    ),
    out_shape=jax.ShapeDtypeStruct((len(rows), width), dtype),
    input_output_aliases=aliases,
    cost_estimate=_cost(rows, kernel, width),
  )(*operands)


def _outer(rows: Array, cotangent: Array, blocks: Blocks) -> Array:
  num_blocks = len(blocks.expert)
  block_size = len(rows) // num_blocks
  depth, width = rows.shape[1], cotangent.shape[1]
  tile_depth, tile_width = _tile(depth, 1024), _tile(width, 1024)

  def body(
    expert: jax.Ref,
    is_used: jax.Ref,
    rows: jax.Ref,
    cotangent: jax.Ref,
    out: jax.Ref,
    total: jax.Ref,
  ) -> None:
    block = pl.program_id(2)
    # Blocks of a group follow each other: a sum begins and ends with it. Unused
    # blocks count as the last group's and add nothing.
    #
    #   block     0      1      2      3      4      5 (unused)
    #   expert    0      0      2      2      2      2
    #             clear         clear
    #             add    add    add    add    add
    #                    write                       write
    before = expert[jnp.maximum(block - 1, 0)]
    after = expert[jnp.minimum(block + 1, num_blocks - 1)]

    @pl.when((block == 0) | (before != expert[block]))
    def _():
      total[...] = jnp.zeros_like(total)

    @pl.when(is_used[block] != 0)
    def _():
      total[...] += _dot(rows[...], cotangent[...], (0, 0))

    @pl.when((block == num_blocks - 1) | (after != expert[block]))
    def _():
      out[...] = total[...].astype(out.dtype)

  shape = (len(blocks.has_rows), depth, width)
  gradient = _call(
    body,
    "grouped_outer",
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=2,
      # Blocks innermost: one sum is in fast memory at a time.
      grid=(depth // tile_depth, width // tile_width, num_blocks),
      in_specs=[
        pl.BlockSpec((block_size, tile_depth), lambda i, j, b, *_: (b, i)),
        pl.BlockSpec((block_size, tile_width), lambda i, j, b, *_: (b, j)),
      ],
      out_specs=pl.BlockSpec(
        (None, tile_depth, tile_width),
        lambda i, j, b, expert, _: (expert[b], i, j),
      ),
      scratch_shapes=[pltpu.VMEM((tile_depth, tile_width), jnp.float32)],
    ),
    out_shape=jax.ShapeDtypeStruct(shape, rows.dtype),
    cost_estimate=_cost(rows, jax.ShapeDtypeStruct(shape, rows.dtype), width),
  )(blocks.expert, blocks.is_used, rows, cotangent)
  # The part of a group without rows was never written.
  return jnp.where(blocks.has_rows[:, None, None], gradient, 0)


def _cost(rows: Array, kernel: Any, width: int) -> Any:
  """Cost of a call, for the compiler's scheduler."""
  size = rows.dtype.itemsize
  return pl.CostEstimate(
    flops=2 * len(rows) * int(np.prod(kernel.shape[1:])),
    bytes_accessed=size * (rows.size + kernel.size + len(rows) * width),
    transcendentals=0,
  )
