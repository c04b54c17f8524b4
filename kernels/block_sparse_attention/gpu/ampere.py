"""The three kernels for NVIDIA Ampere and Ada GPUs, in Pallas Mosaic GPU.

A program is one warpgroup. It owns some rows - queries; keys for the gradient
of keys and values - and walks the list of columns that its rows see. While a
step computes, the operands of the next steps are copied to shared memory
asynchronously (cp.async); matrix products are the synchronous ones of the
tensor cores (mma), from registers into registers.

Copies finish in the order in which they were started, and a thread can only
wait until at most so many are left. A step therefore starts exactly one copy
for each operand, when that is released, in an order that is the same in every
step; at the end of the list it copies the last columns again. How many copies
may be left when an operand is read is then a constant (`copies_in_flight`).

A step's mathematics is in `gpu/steps.py`. The instructions are those of
compute capability 8.0, which 8.6 and 8.9 have too. Needs `plgpu.mma`, which
jax 0.10 does not have.

Source: Dao, FlashAttention-2, 2023 (tiles of a program; weights stay in
registers between the two products).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from ..pallas_types import Index
from ..pallas_types import Ref
from . import ampere_units as units
from . import steps
from . import tiles as tiles_lib


def is_supported() -> bool:
  """Whether this jax can compile the kernels."""
  return hasattr(plgpu, "mma")


def forward(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  lists: tiles_lib.TileLists,
  granule: int,
  exponent: float,
  tiles: tiles_lib.AmpereTiles,
  interpret: Any = None,
) -> tuple[jax.Array, jax.Array]:
  """Attention of every head; see `kernels.forward`."""
  tile = tiles.forward
  head_dim, dtype = query.shape[-1], query.dtype

  # `lambda: None` in each step: one warpgroup has none to take turns with, and
  # synchronous products need no wait.
  def compute(
    program: "_Program", unit: units.Unit
  ) -> tuple[jax.Array, jax.Array]:
    (query_smem,) = program.own

    def step(index: jax.Array, state: steps.Softmax) -> steps.Softmax:
      key, value = program.operands(index)
      return steps.forward(
        state,
        query_smem,
        key,
        value,
        exponent,
        unit.product,
        lambda: None,
        round_to=unit.round_to,
      )

    state = steps.Softmax.start(tile.rows, head_dim)
    state = lax.fori_loop(0, program.num_steps, step, state)
    output, log_sum_exp = state.finish()
    return output.astype(dtype), log_sum_exp

  results = _run(
    compute,
    lists,
    granule,
    tile,
    interpret,
    rows=[query],
    columns=[key, value],
    results=[query, jax.ShapeDtypeStruct(query.shape[:2], jnp.float32)],
    name="block_sparse_attention_forward",
  )
  return tuple(results)


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
  tiles: tiles_lib.AmpereTiles,
  interpret: Any = None,
) -> jax.Array:
  """Gradient of the queries; see `kernels.query_bar`."""
  tile = tiles.query_bar
  dtype = query.dtype

  def compute(program: "_Program", unit: units.Unit) -> tuple[jax.Array]:
    query_smem, output_bar_smem = program.own
    log_sum_exp, offset = program.row_vectors()

    def step(index: jax.Array, total: jax.Array) -> jax.Array:
      total = _Sum(total, unit)
      # Keys are released last: they are a factor of the last product.
      value, key = program.operands(index)
      steps.query_bar(
        total,
        query_smem,
        output_bar_smem,
        log_sum_exp,
        offset,
        key,
        value,
        exponent,
        unit.product,
        lambda: None,
        round_to=unit.round_to,
      )
      return total.value

    total = jnp.zeros(query_smem.shape, jnp.float32)
    total = lax.fori_loop(0, program.num_steps, step, total)
    return ((total * (exponent / steps.LOG2_E)).astype(dtype),)

  (result,) = _run(
    compute,
    lists,
    granule,
    tile,
    interpret,
    rows=[query, output_bar],
    row_vectors=[log_sum_exp, offset],
    columns=[value, key],
    results=[query],
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
  tiles: tiles_lib.AmpereTiles,
  interpret: Any = None,
) -> tuple[jax.Array, jax.Array]:
  """Gradients of keys and values; see `kernels.key_value_bar`."""
  tile = tiles.key_value_bar
  dtype = query.dtype

  def compute(
    program: "_Program", unit: units.Unit
  ) -> tuple[jax.Array, jax.Array]:
    key_smem, value_smem = program.own

    def step(
      index: jax.Array, totals: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
      totals = [_Sum(total, unit) for total in totals]
      vectors = program.column_vectors(index)  # In registers already.
      log_sum_exp, offset = map(steps.Ready, vectors)
      output_bar, query = program.operands(index)
      steps.key_value_bar(
        *totals,
        key_smem,
        value_smem,
        query,
        output_bar,
        log_sum_exp,
        offset,
        exponent,
        unit.product,
        lambda: None,
        round_to=unit.round_to,
      )
      return tuple(total.value for total in totals)

    # Sums stay in registers over all steps.
    zeros = jnp.zeros(key_smem.shape, jnp.float32)
    totals = lax.fori_loop(0, program.num_steps, step, (zeros, zeros))
    key_bar = totals[0] * (exponent / steps.LOG2_E)
    return key_bar.astype(dtype), totals[1].astype(dtype)

  results = _run(
    compute,
    lists,
    granule,
    tile,
    interpret,
    rows=[key, value],
    columns=[output_bar, query],
    column_vectors=[log_sum_exp, offset],
    results=[key, value],
    name="block_sparse_attention_key_value_bar",
  )
  return tuple(results)


def copies_in_flight(
  num_operands: int, stages: int, position: int, num_released: int
) -> int:
  """Copies started after that of an operand, at the time when it is read.

  Before step i, the copies of steps 0..i + stages - 1 have been started, each
  in the order in which operands are released; step i starts those of step
  i + stages.

  Args:
    num_operands: Number of operands that a step reads.
    stages: Steps whose operands are in shared memory at once.
    position: Position of the operand in the order of release.
    num_released: Operands that this step has released before.
  """
  # Two operands a and b, two stages; the number is the step that reads them:
  #
  #   started before step 0    a0 b0 a1 b1
  #   step 0 reads a0          3 may be left: all but a0
  #   step 0 releases a0       a0 b0 a1 b1 a2
  #   step 0 reads b0          3 may be left: all but a0 and b0
  #
  # Of the stages * num_operands copies started before this step, position + 1
  # are done with this operand's; this step has started num_released more.
  return stages * num_operands - 1 - position + num_released


class _Program:
  """The rows, operands and copies of a program.

  Attributes:
    num_steps: Length of its loop.
    own: Shared memory with its rows of every input that is tiled by rows; valid
      once an operand has been read.
  """

  def __init__(
    self,
    unit: units.Unit,
    tile: tiles_lib.AmpereTile,
    head: jax.Array,
    index: jax.Array,
    schedule: tiles_lib.Schedule,
    sources: dict[str, list[Ref]],
    scratch: dict[str, list[Ref]],
  ):
    self._unit = unit
    self._tile = tile
    self._head = head
    self._index = index
    self._schedule = schedule
    self._sources = sources
    self._columns = scratch["columns"]
    self.num_steps = schedule.num_steps(index)
    self.own = scratch["rows"]
    self._row = lax.div(schedule.first_row(index), tile.rows)
    # First, so that they are complete when the first operand is: copies finish
    # in the order in which they start.
    for source, smem in zip(sources["rows"], self.own):
      unit.copy(source.at[head, self._row], smem)
    for stage in range(tile.stages):
      column = self._column(stage)
      for position in range(len(self._columns)):
        self.start_copy(position, column, stage)

  def row_vectors(self) -> list[jax.Array]:
    """Its rows of every vector that is tiled by rows."""
    return [
      self._unit.load(source.at[self._head, self._row])
      for source in self._sources["row_vectors"]
    ]

  def column_vectors(self, index: jax.Array) -> list[jax.Array]:
    """The columns of a step, of every vector that is tiled by columns."""
    column = self._column(index)
    return [
      self._unit.load(source.at[self._head, column])
      for source in self._sources["column_vectors"]
    ]

  def operands(self, index: jax.Array) -> list["_Operand"]:
    """The columns of a step, in the order in which they are released."""
    step = _Step(self, index, self._column(index + self._tile.stages))
    return [
      _Operand(step, position, smem.at[step.slot])
      for position, smem in enumerate(self._columns)
    ]

  def slot(self, index: jax.Array) -> Index:
    """Where the operands of a step lie in shared memory."""
    return 0 if self._tile.stages == 1 else lax.rem(index, self._tile.stages)

  def wait(self, position: int, num_released: int) -> None:
    """Waits until an operand of the step has arrived."""
    left = copies_in_flight(
      len(self._columns), self._tile.stages, position, num_released
    )
    self._unit.wait(left)

  def start_copy(self, position: int, column: jax.Array, slot: Index) -> None:
    """Starts to copy a tile of columns into a slot."""
    source = self._sources["columns"][position].at[self._head, column]
    self._unit.copy(source, self._columns[position].at[slot])

  def finish(self, values: Sequence[jax.Array], targets: Sequence[Ref]) -> None:
    """Stores its rows of all results, when nothing is on its way any more."""
    self._unit.wait(0)
    for value, target in zip(values, targets, strict=True):
      self._unit.store(target.at[self._head, self._row], value)

  def _column(self, step: Index) -> jax.Array:
    """Index of a tile of columns; the last one beyond the end of the list."""
    # An unused copy keeps the number in flight constant.
    step = lax.min(jnp.int32(step), self.num_steps - 1)
    first = self._schedule.first_column(self._index, step)
    return lax.div(first, self._tile.columns)


class _Step:
  """Keeps count of the copies of one step, while it is traced."""

  def __init__(
    self, program: _Program, index: jax.Array, next_column: jax.Array
  ):
    self.slot = program.slot(index)
    self._program = program
    # Read from the list here, long before the copies need it.
    self._next_column = next_column
    self._num_released = 0
    self._awaited = set()

  def wait(self, position: int) -> None:
    """Waits until an operand has arrived."""
    # Waits are instructions of the program; one an operand is enough.
    if position not in self._awaited:
      self._program.wait(position, self._num_released)
    self._awaited.add(position)

  def release(self, position: int) -> None:
    """Says that an operand is not needed any more, and refills its slot."""
    assert position == self._num_released, "released out of order"
    # The slot just released takes the columns of `stages` steps later.
    self._program.start_copy(position, self._next_column, self.slot)
    self._num_released += 1


class _Operand:
  """A tile in shared memory."""

  def __init__(self, step: _Step, position: int, smem: Ref):
    self._step = step
    self._position = position
    self._smem = smem

  def read(self) -> Ref:
    """Waits for the tile and returns it."""
    self._step.wait(self._position)
    return self._smem

  def release(self) -> None:
    """Says that the tile is not needed any more."""
    self._step.release(self._position)


class _Sum:
  """A running sum inside one step."""

  def __init__(self, value: jax.Array, unit: units.Unit):
    self.value = value
    self._unit = unit

  def add(self, left: jax.Array, right: Ref) -> None:
    """Adds a matrix product."""
    self.value = self._unit.add_product(self.value, left, right)


def _run(
  compute: Callable[["_Program", units.Unit], Sequence[jax.Array]],
  lists: tiles_lib.TileLists,
  granule: int,
  tile: tiles_lib.AmpereTile,
  interpret: Any,
  *,
  rows: Sequence[jax.Array],
  columns: Sequence[jax.Array],
  results: Sequence[jax.Array | jax.ShapeDtypeStruct],
  name: str,
  row_vectors: Sequence[jax.Array] = (),
  column_vectors: Sequence[jax.Array] = (),
) -> list[jax.Array]:
  """Runs all programs of one kernel.

  Args:
    compute: Called with a _Program and its unit; returns the program's rows of
      all results.
    lists: Granules that see each other.
    granule: Tokens of a granule.
    tile: Tile sizes of this kernel.
    interpret: Parameters of jax's GPU interpreter.
    rows: Inputs [N, S, K] tiled by rows.
    columns: Inputs [N, S, K] tiled by columns, in the order in which a step
      releases them.
    results: Shapes and types of the results, [N, S, K] or [N, S].
    name: Name of the kernel.
    row_vectors: Inputs [N, S] tiled by rows.
    column_vectors: Inputs [N, S] tiled by columns.
  """
  cut = lambda arrays, size: [_cut(x, size) for x in arrays]
  inputs = {
    "rows": cut(rows, tile.rows),
    "row_vectors": cut(row_vectors, tile.rows),
    "columns": cut(columns, tile.columns),
    "column_vectors": cut(column_vectors, tile.columns),
  }
  # A kernel takes a flat list of references.
  leaves, structure = jax.tree.flatten((tiles_lib.TileLists(*lists), inputs))
  # Shapes alone: results may be arrays that only lend their shape.
  targets = jax.eval_shape(lambda xs: cut(xs, tile.rows), results)
  # Rows are copied once; columns have a slot for every stage.
  tile_shape = lambda x: x.shape[2:]
  scratch = {
    "rows": [plgpu.SMEM(tile_shape(x), x.dtype) for x in inputs["rows"]],
    "columns": [
      plgpu.SMEM((tile.stages, *tile_shape(x)), x.dtype)
      for x in inputs["columns"]
    ],
  }
  unit = units.Device() if interpret is None else units.Simulation()

  def body(*refs: Ref, **scratch: list[Ref]) -> None:
    sources, targets = refs[: len(leaves)], refs[len(leaves) :]
    lists, sources = jax.tree.unflatten(structure, sources)
    head, index = lax.axis_index("heads"), lax.axis_index("programs")
    schedule = tiles_lib.Schedule(lists, granule, tile)
    program = _Program(unit, tile, head, index, schedule, sources, scratch)
    program.finish(compute(program, unit), targets)

  num_programs = tiles_lib.Schedule(lists, granule, tile).num_programs
  run = plgpu.kernel(
    body,
    out_type=targets,
    scratch_types=scratch,
    grid=(rows[0].shape[0], num_programs),
    grid_names=("heads", "programs"),
    compiler_params=plgpu.CompilerParams(
      # Exponentials by the special function unit: its error is far below the 16
      # bits that weights are rounded to.
      approx_math=True,
      lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
      reduction_scratch_bytes=0,  # Rows are reduced inside a warp.
    ),
    interpret=interpret,
    kernel_name=name,
  )
  outputs = run(*map(jnp.asarray, leaves))
  return [y.reshape(x.shape) for x, y in zip(results, outputs)]


def _cut(x: jax.Array, size: int) -> jax.Array:
  """[N, S, ...] to [N, S / size, size, ...]."""
  # A tile is then one index: no copy needs a bound or a slice.
  return x.reshape(len(x), -1, size, *x.shape[2:])
