"""The backward kernel of the TPU backend: all three gradients in one pass.

A tile of keys and values stays in fast memory and the queries that see it are
streamed past, with their output cotangents, log-sum-exps and offsets. A pair of
pieces takes five products (two kernels, one by queries and one by keys, would
compute s and dp twice and take seven):

    s = k q^T,  p = 2^(s - lse),  dp = v do^T,  ds = p * (dp - offset),
    dv += p do,  dk += ds q,  dq += ds^T k.

Scores are [keys, queries], as in the forward kernel. The gradients of keys and
values are summed in fast memory. Those of a query piece are summed in main
memory, in float32: the sum so far arrives with the piece, and goes back with
the item's share added. The list keeps items that share a piece apart, so that a
sum is written before it is read again.
"""

from collections.abc import Sequence
import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp

from ..pallas_types import Copy
from ..pallas_types import Index
from ..pallas_types import Ref
from . import array_order
from . import lists as tpu_lists
from . import products
from . import stream as tpu_stream
from . import tiles as tpu_tiles

# An item waits until the copies out of the item two before it are done, and
# only then starts the copies in of the item `buffers` - 1 after it. An item may
# hence not share a piece with the `buffers` items before it, which is the
# window of `lists`: more buffers here would need a longer window.
#
#   item i             begin: item i - 2 is written     end: start to write i
#                      fetch: start to read i + buffers - 1
_OUT_BUFFERS = 2
_LAG = 2  # Pairs of pieces whose scores are begun early.


class _Backward:
  """The work on one tile of keys."""

  def __init__(
    self,
    stream: tpu_stream.ItemStream,
    tile: tuple[Ref, Ref],
    streamed: Sequence[Ref],
    sums: Sequence[Ref],
    out: "_Out",
    scale: float,
    valid: int,
    segments: int,
  ):
    self.stream = stream
    self.keys, self.values = tile
    self.queries, self.outputs_bar, self.rows, self.queries_bar = streamed
    self.keys_bar, self.values_bar = sums
    self.out = out
    self.scale, self.valid, self.segments = scale, valid, segments

  def run(self, item: jax.Array, size: int, pieces: Sequence[Index]) -> None:
    """One item, or some of its pieces.

    The scores of a pair of pieces are begun before those of the pairs before it
    are done with: the compiler keeps to the order of the program, and would let
    the matrix units wait for the exponentials.
    """
    slot, rows = self.stream.slot(item), self.stream.rows(item, size)
    out = self.out.buffer(item)
    # With a lag of 2, B for `_begin` and F for `_finish` of a pair:
    #
    #   B0 B1 | B2 F0 | B3 F1 | B4 F2 | ... | F3 | F4
    #
    # The products of B2 are independent of F0 and run during its exponentials.
    #
    # Row by row, so that the sums of a row's keys and values are read and
    # written once an item.
    pairs = [(row, piece) for row in rows for piece in pieces]
    begun = [self._begin(slot, *pair) for pair in pairs[:_LAG]]
    for index, (row, piece) in enumerate(pairs):
      if index + _LAG < len(pairs):
        begun.append(self._begin(slot, *pairs[index + _LAG]))
      place = products.divide(row, self.segments)
      if index % len(pieces) == 0:
        sums = self.keys_bar[place], self.values_bar[place]
      *shares, query_share = self._finish(slot, row, piece, *begun.pop(0))
      sums = [x + share for x, share in zip(sums, shares)]
      if index % len(pieces) == len(pieces) - 1:
        self.keys_bar[place], self.values_bar[place] = sums
      # The first row adds to the sum that arrived with the piece, later rows to
      # the item's own buffer: the buffer it arrived in is refilled meanwhile.
      is_first = index < len(pieces)
      before = self.queries_bar[slot, piece] if is_first else out[piece]
      out[piece] = before + query_share

  def _begin(
    self, slot: jax.Array, row: Index, piece: Index
  ) -> tuple[jax.Array, jax.Array]:
    """Scores and the gradients of the weights."""
    place = products.divide(row, self.segments)
    scores = products.product(
      self.keys[place], self.queries[slot, piece], products.ROWS
    )
    weights_bar = products.product(
      self.values[place], self.outputs_bar[slot, piece], products.ROWS
    )
    return scores, weights_bar

  def _finish(
    self,
    slot: jax.Array,
    row: Index,
    piece: Index,
    scores: jax.Array,
    weights_bar: jax.Array,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Shares of the gradients of keys, values and queries, transposed."""
    query, output_bar = self.queries[slot, piece], self.outputs_bar[slot, piece]
    log_sum_exp = self.rows[slot, piece, 0:1]
    offset = self.rows[slot, piece, 1:2]
    # Padding keys must be masked. Padding queries are all zero (cotangent and
    # offset too), so they add nothing to any gradient.
    scores = products.masked_fill(scores * self.scale, self.valid)
    weights = jnp.exp2(scores - log_sum_exp)
    # Rounded to the dtype of the inputs, as factor of two products.
    scores_bar = (weights * (weights_bar - offset)).astype(query.dtype)
    key = self.keys[products.divide(row, self.segments)]
    return (
      products.product(query, scores_bar, products.FIRST_WITH_LAST),
      products.product(
        output_bar, weights.astype(query.dtype), products.FIRST_WITH_LAST
      ),
      products.product(key, scores_bar, products.COLUMNS),
    )

  def run_rest(self, size: int, first: Index, number: jax.Array) -> None:
    def run(item: jax.Array, start: jax.Array, count: int) -> None:
      self.run(item, size, [start + c for c in range(count)])

    tpu_stream.for_rest(
      self.stream, first, number, run, self.out.begin, self.out.end
    )

  def run_full(self, size: int, first: Index, number: jax.Array) -> None:
    def step(index: jax.Array, _: jax.Array) -> int:
      item = first + index
      # Before `fetch_ahead`: see `_OUT_BUFFERS`.
      self.out.begin(item)
      self.stream.wait_full(item)
      self.stream.fetch_ahead(item)
      self.run(item, size, range(self.stream.size))
      self.out.end(item)
      return 0

    lax.fori_loop(0, number, step, 0)


class _Out:
  """Sums of the queries' gradients on their way back to main memory."""

  def __init__(
    self,
    stream: tpu_stream.ItemStream,
    array: Ref,
    head: jax.Array,
    buffers: Ref,
    pending: Ref,
    semaphores: Ref,
  ):
    self._stream, self._array, self._head = stream, array, head
    self._buffers = buffers
    self._pending = pending  # Copies under way, for every buffer.
    self._semaphores = semaphores

  def _slot(self, item: Index) -> jax.Array:
    return lax.rem(self._stream.number(item), _OUT_BUFFERS)

  def buffer(self, item: Index) -> Ref:
    return self._buffers.at[self._slot(item)]

  def reset(self) -> None:
    for slot in range(_OUT_BUFFERS):
      self._pending[slot] = 0

  def begin(self, item: Index) -> None:
    """Waits until the buffer of an item is free."""
    self._wait(self._slot(item))

  def end(self, item: Index) -> None:
    """Starts the copies of an item's pieces."""
    slot = self._slot(item)
    # A later item, perhaps of another tile, waits for these copies; it knows
    # their number from scalar memory.
    self._pending[slot] = self._stream.count(item)
    self._stream.for_copies(
      item,
      lambda index, is_run: self._copy(slot, index, item, is_run).start(),
    )

  def drain(self) -> None:
    for slot in range(_OUT_BUFFERS):
      self._wait(slot)

  def _wait(self, slot: Index) -> None:
    pending = self._pending[slot]
    # For all pieces of a full item one wait instead of many.
    is_full = pending == self._stream.size

    @pl.when(is_full)
    def _() -> None:
      buffer = self._buffers.at[slot]
      # Waits for the bytes of all copies from this buffer.
      pltpu.make_async_copy(buffer, buffer, self._semaphores.at[slot]).wait()

    @pl.when(jnp.logical_not(is_full))
    def _() -> None:
      # A semaphore counts bytes, so piece by piece will do for runs too, and
      # any item's address (here item 0's) has the right size.
      def wait(index: jax.Array, _: jax.Array) -> int:
        self._copy(slot, index, 0, False).wait()
        return 0

      lax.fori_loop(0, pending, wait, 0)

    self._pending[slot] = 0

  def _copy(
    self,
    slot: Index,
    index: Index,
    item: Index,
    is_run: bool,
  ) -> Copy:
    return pltpu.make_async_copy(
      self._stream.of_buffer(self._buffers, slot, index, is_run),
      self._stream.of_array(self._array, item, index, is_run),
      self._semaphores.at[slot],
    )


def _kernel(
  *refs: Ref,
  work: tpu_lists.WorkList,
  scale: float,
  valid: int,
  buffers: int,
  order: array_order.ArrayOrder,
  is_first: bool,
  is_last: bool,
) -> None:
  words, key, value, queries_all, outputs_bar_all, rows_all, _ = refs[:7]
  # Inputs, outputs and scratch in one row. The seventh input is the sum of the
  # queries' gradient, which shares its memory with the first output.
  refs = list(refs[7:])
  old = () if is_first else (refs.pop(0), refs.pop(0))
  queries_bar_all, *results = (refs.pop(0) for _ in range(3))
  queries, outputs_bar, rows, queries_bar, semaphores = refs[:5]
  out_buffers, pending, out_semaphores, *sums = refs[5:]
  frames, segments = work.tile
  tile = [(f, g) for f in range(frames) for g in range(segments)]
  if not is_last:
    # The result is the sums: nothing is left to copy or to turn at the end.
    sums = results
  head = pl.program_id(0)
  stream = tpu_stream.ItemStream(
    words,
    head,
    (
      (queries_all, queries),
      (outputs_bar_all, outputs_bar),
      (rows_all, rows),
      (queries_bar_all, queries_bar),
    ),
    semaphores,
    work,
    buffers,
    order,
  )
  out = _Out(
    stream, queries_bar_all, head, out_buffers, pending, out_semaphores
  )
  index = pl.program_id(1) * pl.num_programs(2) + pl.program_id(2)

  @pl.when(index == 0)
  def _() -> None:
    out.reset()
    stream.begin()

  # Transposed, [K, tokens]: this is how the products deliver them.
  for i, x in enumerate(sums):
    x[...] = jnp.zeros_like(x) if is_first else old[i][...]
  backward = _Backward(
    stream,
    (key, value),
    (queries, outputs_bar, rows, queries_bar),
    sums,
    out,
    scale,
    valid,
    segments,
  )
  for size, first_rest, num_rest, first_full, num_full in stream.sections():
    some_rest, _, some_full = work.num_items[work.sizes.index(size)]
    if some_rest:
      backward.run_rest(size, first_rest, num_rest)
    if some_full:
      backward.run_full(size, first_full, num_full)
  if is_last:
    for place in tile:
      for x, result in zip(sums, results):
        result[place] = x[place].T.astype(result.dtype)

  @pl.when(index == pl.num_programs(1) * pl.num_programs(2) - 1)
  def _() -> None:
    stream.end()
    out.drain()


def backward(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  output_bar: jax.Array,
  rows: jax.Array,
  lists: tuple[tpu_lists.WorkList, ...],
  *,
  scale: float,
  valid: int,
  tiles: tpu_tiles.TileSizes,
  order: array_order.ArrayOrder,
  interpret: bool,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients, up to a factor: those of query and key lack `scale`.

  Args:
    query: [heads, frames, segments, tokens, K], or frames first; pieces in the
      kernels' order.
    key: Same shape and dtype as query.
    value: Same shape and dtype as query.
    output_bar: Cotangent of the output, as query.
    rows: [heads, frames, segments, 2, tokens] float32: log-sum-exp in base 2,
      and sum over K of output * output_bar less the cotangent of the
      log-sum-exp.
    lists: The work, made `by_keys`.
    scale: Factor on the scores.
    valid: Tokens of a piece that count, the first ones.
    tiles: Sizes of buffers and units.
    order: Order of heads and frames in all arrays.
    interpret: Passed to `pl.pallas_call`.

  Returns:
    Gradient of query, transposed: [heads, frames, segments, K, tokens] float32;
    gradients of key and value, as key.
  """
  heads, num_frames = order.sizes(query)
  num_segments, tokens, width = query.shape[2:]
  # Main memory holds the sum over passes and tiles: two tiles of keys see the
  # same queries. Pieces that no key sees in a pass keep their sum, so it starts
  # at zero.
  query_bar = jnp.zeros(
    order.shape(heads, num_frames, num_segments, width, tokens), jnp.float32
  )
  bars = ()
  for index, work in enumerate(lists):
    query_bar, *bars = _one_pass(
      query,
      key,
      value,
      output_bar,
      rows,
      query_bar,
      bars,
      work,
      scale=scale,
      valid=valid,
      tiles=tiles,
      order=order,
      interpret=interpret,
      is_last=index == len(lists) - 1,
    )
  return query_bar, *bars


def _one_pass(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  output_bar: jax.Array,
  rows: jax.Array,
  query_bar: jax.Array,
  bars: Sequence[jax.Array],
  work: tpu_lists.WorkList,
  *,
  scale: float,
  valid: int,
  tiles: tpu_tiles.TileSizes,
  order: array_order.ArrayOrder,
  interpret: bool,
  is_last: bool,
) -> Sequence[jax.Array]:
  buffers = tiles.buffers
  heads, num_frames = order.sizes(query)
  num_segments, tokens, width = query.shape[2:]
  frames, segments = work.tile
  grid = (heads, pl.cdiv(num_frames, frames), pl.cdiv(num_segments, segments))
  num_words = work.words.shape[1]
  stream = work.stream
  tile = order.block(frames, segments, tokens, width)
  words = pl.BlockSpec(
    (None, 1, num_words),
    lambda h, f, g: (f * grid[2] + g, 0, 0),
    memory_space=pltpu.SMEM,
  )
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  # Sums between passes stay float32 and transposed; only the result is rounded.
  carried = order.block(frames, segments, width, tokens)
  bar = jax.ShapeDtypeStruct(key.shape, key.dtype)
  if not is_last:
    bar = jax.ShapeDtypeStruct(query_bar.shape, jnp.float32)
  kernel = functools.partial(
    _kernel,
    work=work,
    scale=scale * products.LOG2_E,
    valid=valid,
    buffers=buffers,
    order=order,
    is_first=not bars,
    is_last=is_last,
  )
  sums = [pltpu.VMEM((frames, segments, width, tokens), jnp.float32)] * 2
  # Five products a pair of pieces, two operations a multiply-add.
  flops = 10 * heads * work.num_units * tokens * tokens * width
  streamed = heads * sum(r + f for r, _, f in work.num_items) * stream
  pieces = pltpu.VMEM((buffers, stream, tokens, width), query.dtype)
  return pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=[words, tile, tile] + [anywhere] * 4 + [carried] * len(bars),
    out_specs=[anywhere] + [tile if is_last else carried] * 2,
    out_shape=[
      jax.ShapeDtypeStruct(query_bar.shape, query_bar.dtype),
      bar,
      bar,
    ],
    # The queries' gradient is summed in place. Kernels read it through the
    # output as well: earlier items must be seen.
    input_output_aliases={6: 0},
    scratch_shapes=[
      pieces,
      pieces,
      # Log-sum-exp and offset in one array: one copy less an item.
      pltpu.VMEM((buffers, stream, 2, tokens), jnp.float32),
      pltpu.VMEM((buffers, stream, width, tokens), jnp.float32),
      pltpu.SemaphoreType.DMA((buffers,)),
      pltpu.VMEM((_OUT_BUFFERS, stream, width, tokens), jnp.float32),
      pltpu.SMEM((_OUT_BUFFERS,), jnp.int32),
      pltpu.SemaphoreType.DMA((_OUT_BUFFERS,)),
      *sums * is_last,
    ],
    compiler_params=pltpu.CompilerParams(
      # Tiles of one head add to the same sums, so they run in order; heads are
      # independent.
      dimension_semantics=("parallel", "arbitrary", "arbitrary"),
      vmem_limit_bytes=tiles.memory_mib << 20,
      # Checks of addresses were half of the scalar code between items. All
      # addresses come from the lists, which hold pieces of the clip only.
      disable_bounds_checks=True,
      disable_semaphore_checks=True,
    ),
    cost_estimate=pl.CostEstimate(
      flops=flops,
      transcendentals=flops // (10 * width),
      bytes_accessed=streamed
      * tokens
      * (width * (2 * query.dtype.itemsize + 8) + 8),
    ),
    interpret=interpret,
    name=f"block_sparse_backward_{frames}x{segments}",
  )(
    jnp.asarray(work.words)[:, None],
    key,
    value,
    query,
    output_bar,
    rows,
    query_bar,
    *bars,
  )
