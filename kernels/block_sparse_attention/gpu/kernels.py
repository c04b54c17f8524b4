"""The three kernels for NVIDIA Hopper GPUs, in Pallas Mosaic GPU.

A program owns some rows (queries; keys in the kernel of dK and dV) and walks
the list of columns that its rows see. One warpgroup copies: it keeps the
operands of `stages` steps in flight into shared memory with the tensor memory
accelerator (TMA). The other warpgroups compute, each for 64 rows, and all read
the same operands:

    copying warpgroup      slot 0   slot 1   ...   slot 0 again
                           TMA ---> ready[0]          ^
    computing warpgroups            wait ready, use,  |
                                    arrive consumed --+

`ready` and `consumed` are mbarriers of each slot. The mathematics of a step is
in `steps.py`, shared with the emulation in `walk.py`. Results leave through the
shared memory that held the program's rows.
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from ..pallas_types import Ref
from ..pallas_types import Scratch
from . import program as work
from . import steps
from . import tiles as tiles_lib

_ROWS = tiles_lib.WARPGROUP_ROWS
# Registers of a thread, in multiples of 8. A multiprocessor has 64 Ki: (2 * 240
# + 24) * 128 threads, or (3 * 160 + 24) * 128, are 63 Ki. The copying warpgroup
# gives its share away down to 24, the least that the hardware allows.
_COPY_REGISTERS = 24
_COMPUTE_REGISTERS = {1: 240, 2: 240, 3: 160}


def forward(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  lists: tiles_lib.TileLists,
  granule: int,
  exponent: float,
  tiles: tiles_lib.GpuTiles,
  interpret: Any = None,
) -> tuple[jax.Array, jax.Array]:
  """Attention of every head.

  Args:
    query: [N, S, K], N heads of all batch entries.
    key: Same shape as query.
    value: Same shape as query.
    lists: Key granules that each query granule sees.
    granule: Number of tokens of a granule; the tiles divide it.
    exponent: Scale of the scores times log2(e); not negative.
    tiles: Tile sizes.
    interpret: Parameters of jax's GPU interpreter, to run without a device.

  Returns:
    Output [N, S, K] in the dtype of query, log-sum-exp [N, S] float32.
  """
  tile = tiles.forward
  num_heads, num_tokens, head_dim = query.shape
  dtype = query.dtype

  def compute(program: work.Program) -> None:
    query_smem, log_sum_exp_smem = program.own
    program.load_own(query_smem, program.inputs[0])
    if tiles.alternate and tile.warpgroups == 2:
      turns = program.scratch["turns"]
      take_turns = functools.partial(work.rendezvous, turns)
    else:
      take_turns = lambda: None

    def step(index: jax.Array, state: steps.Softmax) -> steps.Softmax:
      return steps.forward(
        steps.Softmax(*state),
        query_smem,
        *program.operands(index),
        exponent,
        program.product,
        take_turns,
        # The turn passes on as soon as the scores are issued, while they are
        # still being computed.
        functools.partial(program.product, after_issue=take_turns),
      )

    # The second warpgroup runs half a step behind the first, so that one does
    # its softmax while the other occupies the tensor cores. They meet at T:
    #
    #   first    scores T softmax T values, scores T softmax        T values ...
    #   second          T scores  T softmax        T values, scores T softmax ...
    pl.when(program.warpgroup == 1)(take_turns)
    state = steps.Softmax.start(_ROWS, head_dim)
    state = lax.fori_loop(0, program.num_steps, step, state)
    pl.when(program.warpgroup == 0)(take_turns)
    output, log_sum_exp = state.finish()
    # The queries are not needed any more: results leave through their memory.
    query_smem[...] = output.astype(dtype)
    log_sum_exp_smem[...] = log_sum_exp
    program.store_own((query_smem, log_sum_exp_smem), program.outputs)

  own = [_own(tile, dtype, head_dim), _own(tile, jnp.float32)]
  columns = [_columns(tile, dtype, head_dim)] * 2
  return _run(
    compute,
    (query, key, value),
    lists,
    granule,
    tile,
    tiles,
    interpret,
    own=own,
    columns=columns,
    results=[
      jax.ShapeDtypeStruct(query.shape, dtype),
      jax.ShapeDtypeStruct((num_heads, num_tokens), jnp.float32),
    ],
    name="block_sparse_attention_forward",
  )


def query_bar(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  output_bar: jax.Array,
  log_sum_exp: jax.Array,
  offset: jax.Array,
  lists: tiles_lib.TileLists,
  granule: int,
  exponent: float,
  tiles: tiles_lib.GpuTiles,
  interpret: Any = None,
) -> jax.Array:
  """Gradient with respect to the queries.

  Args:
    query: See `forward`, like all arguments that are not described here.
    key: See query.
    value: See query.
    output_bar: Cotangent of the output, [N, S, K].
    log_sum_exp: Result of `forward` in base 2, [N, S].
    offset: Sum over K of output * output_bar, less the cotangent of the natural
      log-sum-exp, [N, S] float32.
    lists: See query.
    granule: See query.
    exponent: See query.
    tiles: See query.
    interpret: See query.
  """
  tile = tiles.query_bar
  head_dim, dtype = query.shape[-1], query.dtype

  def compute(program: work.Program) -> None:
    rows = program.own
    for smem, source in zip(rows, program.inputs[:4]):
      program.load_own(smem, source)
    query_smem, output_bar_smem, log_sum_exp_smem, offset_smem = rows

    def run(total: Ref) -> jax.Array:
      # Kept in registers for the whole loop.
      log_sum_exp, offset = log_sum_exp_smem[...], offset_smem[...]

      @pl.loop(0, program.num_steps)
      def _(index: jax.Array) -> None:
        steps.query_bar(
          work.Sum(total, program),
          query_smem,
          output_bar_smem,
          log_sum_exp,
          offset,
          *program.operands(index),
          exponent,
          program.product,
          work.finish,
        )

      return total[...]

    # A sum of the matrix unit's own layout, so that no step converts it.
    result = pl.run_scoped(run, plgpu.ACC((_ROWS, head_dim), jnp.float32))
    # exponent / log2(e) is the scale, which the steps leave out.
    query_smem[...] = (result * (exponent / steps.LOG2_E)).astype(dtype)
    program.store_own((query_smem,), program.outputs)

  own = [_own(tile, dtype, head_dim)] * 2 + [_own(tile, jnp.float32)] * 2
  columns = [_columns(tile, dtype, head_dim)] * 2
  (result,) = _run(
    compute,
    (query, output_bar, log_sum_exp, offset, key, value),
    lists,
    granule,
    tile,
    tiles,
    interpret,
    own=own,
    columns=columns,
    results=[jax.ShapeDtypeStruct(query.shape, dtype)],
    name="block_sparse_attention_query_bar",
  )
  return result


def key_value_bar(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  output_bar: jax.Array,
  log_sum_exp: jax.Array,
  offset: jax.Array,
  lists: tiles_lib.TileLists,
  granule: int,
  exponent: float,
  tiles: tiles_lib.GpuTiles,
  interpret: Any = None,
) -> tuple[jax.Array, jax.Array]:
  """Gradients with respect to keys and values.

  Args:
    query: See `query_bar`, like all arguments that are not described here.
    key: See query.
    value: See query.
    output_bar: See query.
    log_sum_exp: See query.
    offset: See query.
    lists: Query granules that see each key granule.
    granule: See query.
    exponent: See query.
    tiles: See query.
    interpret: See query.
  """
  tile = tiles.key_value_bar
  head_dim, dtype = query.shape[-1], query.dtype

  def compute(program: work.Program) -> None:
    key_smem, value_smem = program.own
    program.load_own(key_smem, program.inputs[0])
    program.load_own(value_smem, program.inputs[1])

    def run(key_total: Ref, value_total: Ref) -> tuple[jax.Array, jax.Array]:
      @pl.loop(0, program.num_steps)
      def _(index: jax.Array) -> None:
        query, output_bar, statistics = program.operands(index)
        # One copy brings both; the one that is read last releases it.
        log_sum_exp = work.Part(statistics, 0, release=lambda: None)
        offset = work.Part(statistics, 1, release=statistics.release)
        steps.key_value_bar(
          work.Sum(key_total, program),
          work.Sum(value_total, program),
          key_smem,
          value_smem,
          query,
          output_bar,
          log_sum_exp,
          offset,
          exponent,
          program.product,
          work.finish,
        )

      return key_total[...], value_total[...]

    total = plgpu.ACC((_ROWS, head_dim), jnp.float32)
    key_bar, value_bar = pl.run_scoped(run, total, total)
    key_smem[...] = (key_bar * (exponent / steps.LOG2_E)).astype(dtype)
    value_smem[...] = value_bar.astype(dtype)
    program.store_own((key_smem, value_smem), program.outputs)

  columns = [_columns(tile, dtype, head_dim)] * 2
  columns += [plgpu.SMEM((tile.stages, 2, tile.columns), jnp.float32)]
  # Joined, so that a step waits for one copy and one barrier less.
  statistics = jnp.stack([log_sum_exp, offset], axis=1)  # [N, 2, S]
  return _run(
    compute,
    (key, value, query, output_bar, statistics),
    lists,
    granule,
    tile,
    tiles,
    interpret,
    own=[_own(tile, dtype, head_dim)] * 2,
    columns=columns,
    results=[jax.ShapeDtypeStruct(key.shape, dtype)] * 2,
    name="block_sparse_attention_key_value_bar",
  )


def _own(
  tile: tiles_lib.Tile, dtype: jax.typing.DTypeLike, *width: int
) -> Scratch:
  return plgpu.SMEM((tile.warpgroups, _ROWS, *width), dtype)


def _columns(
  tile: tiles_lib.Tile, dtype: jax.typing.DTypeLike, *width: int
) -> Scratch:
  return plgpu.SMEM((tile.stages, tile.columns, *width), dtype)


def _run(
  compute: Callable[[work.Program], None],
  arrays: Sequence[jax.Array],
  lists: tiles_lib.TileLists,
  granule: int,
  tile: tiles_lib.Tile,
  tiles: tiles_lib.GpuTiles,
  interpret: Any,
  *,
  own: Sequence[Scratch],
  columns: Sequence[Scratch],
  results: Sequence[jax.ShapeDtypeStruct],
  name: str,
) -> tuple[jax.Array, ...]:
  """Runs all programs of one kernel.

  Args:
    compute: Called with a Program on every computing warpgroup.
    arrays: Inputs, the last of them tiled by columns.
    lists: Granules that see each other.
    granule: Tokens of a granule.
    tile: Tile sizes of this kernel.
    tiles: Tile sizes of all kernels.
    interpret: Parameters of jax's GPU interpreter.
    own: Shared memory for inputs tiled by rows.
    columns: Shared memory for inputs tiled by columns.
    results: Types of the results, all tiled by rows.
    name: Name of the kernel.
  """
  num_heads, _, head_dim = arrays[0].shape
  dtype = arrays[0].dtype
  num_inputs = len(arrays)
  barriers = lambda n: plgpu.Barrier(num_arrivals=n, num_barriers=tile.stages)
  scratch = {
    "own": own,
    "columns": columns,
    "own_ready": plgpu.Barrier(num_barriers=tile.warpgroups * len(own)),
    "ready": [barriers(1) for _ in columns],
    # A slot is free when all computing warpgroups have arrived.
    "consumed": [barriers(tile.warpgroups) for _ in columns],
  }
  if tiles.alternate and tile.warpgroups == 2:
    scratch["turns"] = plgpu.Barrier(num_arrivals=2)
  # jax's interpreter multiplies operands in shared memory only.
  if tiles.weights_in_shared_memory or interpret is not None:
    scratch["staging"] = _own(tile, dtype, tile.columns)
  # Nor does it know transposed operands.
  if interpret is not None:
    shape = (tile.warpgroups, head_dim, tile.columns)
    scratch["transposed"] = plgpu.SMEM(shape, dtype)
  schedule = tiles_lib.Schedule(lists, granule, tile)

  def body(*refs: Ref, **scratch: Ref | list[Ref]) -> None:
    inputs, outputs = refs[3 : 3 + num_inputs], refs[3 + num_inputs :]
    schedule = tiles_lib.Schedule(tiles_lib.TileLists(*refs[:3]), granule, tile)
    head, index = lax.axis_index("heads"), lax.axis_index("programs")
    num_steps = schedule.num_steps(index)

    # All warpgroups run this function; registers move before the work begins.
    @pl.when(lax.axis_index("warpgroup") < tile.warpgroups)
    def _() -> None:
      plgpu.set_max_registers(
        _COMPUTE_REGISTERS[tile.warpgroups], action="increase"
      )
      first_row = schedule.first_row(index)
      compute(
        work.Program(head, first_row, num_steps, inputs, outputs, scratch)
      )

    @pl.when(lax.axis_index("warpgroup") == tile.warpgroups)
    def _() -> None:
      plgpu.set_max_registers(_COPY_REGISTERS, action="decrease")
      first_column = functools.partial(schedule.first_column, index)
      _copy_columns(
        head, first_column, num_steps, inputs[-len(columns) :], scratch
      )

  run = plgpu.kernel(
    body,
    out_type=results,
    scratch_types=scratch,
    grid=(num_heads, schedule.num_programs),
    grid_names=("heads", "programs"),
    num_threads=tile.warpgroups + 1,
    thread_name="warpgroup",
    compiler_params=plgpu.CompilerParams(
      # Exponentials by the special function unit: its error is far below the 16
      # bits that weights are rounded to.
      approx_math=True,
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
    ),
    interpret=interpret,
    kernel_name=name,
  )
  return tuple(run(*map(jnp.asarray, lists), *arrays))


def _copy_columns(
  head: jax.Array,
  first_column: Callable[[jax.Array], jax.Array],
  num_steps: jax.Array,
  sources: Sequence[Ref],
  scratch: dict[str, Ref | list[Ref]],
) -> None:
  """Runs the copying warpgroup.

  It also waits until the last operands are consumed, so that no arrival at a
  barrier is pending when the program ends.
  """
  # The last `num_stages` rounds only wait.
  num_stages, num_columns = scratch["columns"][0].shape[:2]

  @pl.loop(0, num_steps + num_stages)
  def _(step: jax.Array) -> None:
    slot = lax.rem(step, num_stages)
    for source, smem, ready, consumed in zip(
      sources, scratch["columns"], scratch["ready"], scratch["consumed"]
    ):

      @pl.when(step >= num_stages)
      def _() -> None:
        plgpu.barrier_wait(consumed.at[slot])

      @pl.when(step < num_steps)
      def _() -> None:
        columns = pl.ds(first_column(step), num_columns)
        is_pair = smem.shape[1] != num_columns  # Statistics, [N, 2, S].
        rows = (head, slice(None), columns) if is_pair else (head, columns)
        plgpu.copy_gmem_to_smem(source.at[rows], smem.at[slot], ready.at[slot])
