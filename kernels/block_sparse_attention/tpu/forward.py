"""The forward kernel of the TPU backend.

Scores are stored transposed, [keys, queries]. The softmax then reduces over the
first axis of a register tile, so maxima and sums are plain element-wise
operations. The output is [head width, queries] until it is written: a product
whose stationary operand, the attention weights, fills a matrix unit of any
size.

A work item runs in two stages: (1) scores and their maxima, (2) exponentials
and the product with the values. Stage 1 of an item is interleaved with stage 2
of the item before it:

    item       0     1     2     3
    stage 1   [S0]  [S1]  [S2]  [S3]            matrix units: scores
    stage 2         [E0]  [E1]  [E2]  [E3]      vector units: exponentials
               ---------- time ---------->      then matrix units: values

The two stages are independent, so the matrix units stay busy while exponentials
are computed. Two buffers, `even` and `odd`, carry items from stage 1 to stage
2. Stage 1 also transposes the values, once for all rows of the tile.

The softmax is online and in base 2: m is the running maximum of log2(e) *
scores, l the sum of 2^(. - m), and acc the sum of 2^(. - m) * value.
"""

from collections.abc import Callable, Iterator, Sequence
import functools
from typing import NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from ..pallas_types import Index
from ..pallas_types import Ref
from . import array_order
from . import pair_lists
from . import pair_stream
from . import products
from . import tiles as tpu_tiles

_ONES = 16  # Rows of ones below the values; 16 fill a bfloat16 register.
_AHEAD = 16  # Groups whose maxima are updated early: each waits for the last.
_HUGE = 1e30  # A maximum that makes all weights zero.


class _Buffer(NamedTuple):
  """What stage 1 of an item hands to stage 2."""

  scores: Ref  # [pairs, keys, queries].
  maxima: Ref  # [groups, 1, queries], of the pairs of a group.
  turned: Ref  # The transposed values, [pieces, K, keys].


class _Group(NamedTuple):
  """The pieces of an item that one row is multiplied with."""

  row: Index
  pieces: Sequence[Index]
  is_fill: jax.Array | None  # Whether it repeats another one and adds nothing.


class _Forward:
  """The work on one tile of queries."""

  def __init__(
    self,
    stream: pair_stream.PairStream,
    query: Ref,
    keys: Ref,
    values: Ref,
    state: Sequence[Ref],
    work: pair_lists.PairList,
    scale: float,
    valid: int,
  ):
    self.stream, self.work = stream, work
    self.query, self.keys, self.values = query, keys, values
    self.maximum, self.total, self.output = state
    self.scale, self.valid = scale, valid
    self.place = functools.partial(products.divide, segments=work.tile[1])

  def full_groups(self, item: Index) -> list[_Group]:
    """All rows with all pieces."""
    del item
    pieces = range(self.work.stream)
    return [_Group(row, pieces, None) for row in range(self.work.num_rows)]

  def pair_groups(self, item: Index) -> list[_Group]:
    """The pairs of a pair item, known at run time only."""
    pairs = [self.stream.pair(item, i) for i in range(self.work.group)]
    return [_Group(row, [piece], fill) for row, piece, fill in pairs]

  def start(
    self, item: Index, groups: Sequence[_Group], buffer: _Buffer
  ) -> Iterator[None]:
    """Stage 1 of an item; yields after each pair of pieces."""
    slot, pair = self.stream.slot(item), 0
    for g, group in enumerate(groups):
      query = self.query[self.place(group.row)]
      maximum = None
      for piece in group.pieces:
        if pair < self.work.stream:  # Once for all rows.
          values = self.values[slot, pair].T
          buffer.turned[pair, : values.shape[0]] = values
        s = (
          products.product(self.keys[slot, piece], query, products.ROWS)
          * self.scale
        )
        s = products.masked_fill(s, self.valid)
        buffer.scores[pair] = s
        top = jnp.max(s, 0, keepdims=True)
        maximum = top if maximum is None else jnp.maximum(maximum, top)
        pair += 1
        yield
      buffer.maxima[g] = maximum

  def finish(
    self, item: Index, groups: Sequence[_Group], buffer: _Buffer
  ) -> Iterator[None]:
    """Stage 2 of an item; yields after each pair of pieces.

    The running sums are read late, next to their update: where rows are known
    only at run time, a read waits for all earlier writes.
    """
    del item
    shrinks = []

    def rescale(g: int) -> None:
      """Rescales earlier sums of a group to the new maximum."""
      row = self.place(groups[g].row)
      before, top = self.maximum[row], buffer.maxima[g]
      is_fill = groups[g].is_fill
      if is_fill is not None:
        top = jnp.where(is_fill, -jnp.inf, top)
      after = jnp.maximum(before, top)
      self.maximum[row] = after
      shrinks.append(jnp.exp2(before - after))
      if is_fill is not None:
        after = jnp.where(is_fill, _HUGE, after)
      buffer.maxima[g] = after

    for g in range(min(_AHEAD, len(groups))):
      rescale(g)
    pair = 0
    for g, group in enumerate(groups):
      if g + _AHEAD < len(groups):
        rescale(g + _AHEAD)
      maximum, total, output = buffer.maxima[g], 0.0, 0.0
      row = self.place(group.row)
      for piece in group.pieces:
        weights = jnp.exp2(buffer.scores[pair] - maximum)
        share, sums = self._weigh(buffer.turned[piece], weights)
        output, total = output + share, total + sums
        pair += 1
        if piece is group.pieces[-1]:
          self.total[row] = shrinks[g] * self.total[row] + total
          self.output[row] = shrinks[g] * self.output[row] + output
        yield

  def _weigh(
    self, values: jax.Array, weights: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    """Weights [keys, queries] times the values, and the sums of the weights.

    Where the matrix units have room, rows of ones below the values compute the
    sums in the same product and spare the vector units.
    """
    width = self.output.shape[-2]
    weighted = products.product(
      values, weights.astype(values.dtype), products.LAST_WITH_FIRST
    )
    # The row below the values holds the sums.
    if values.shape[0] > width:
      return weighted[:width], weighted[width : width + 1]
    return weighted, jnp.sum(weights, 0, keepdims=True)

  def run(
    self,
    groups: Callable[[Index], list[_Group]],
    buffers: tuple[_Buffer, _Buffer],
    first: Index,
    numbers: np.ndarray,
    number: jax.Array,
  ) -> None:
    """Runs items of one form from `first` on.

    `numbers` are the item counts of all tiles, known at trace time: code for
    one item and for several is emitted only where some tile needs it.
    """

    # Alone, an item has no neighbour to overlap with.
    def one_step() -> None:
      self.stream.wait(first)
      self.stream.fetch_ahead(first)
      _exhaust(self.start(first, groups(first), buffers[0]))
      _exhaust(self.finish(first, groups(first), buffers[0]))

    if (numbers == 1).any():
      pl.when(number == 1)(one_step)
    if (numbers > 1).any():
      pl.when(number > 1)(
        lambda: self._run_overlapping(groups, buffers, first, number)
      )

  def _run_overlapping(
    self,
    groups: Callable[[Index], list[_Group]],
    buffers: tuple[_Buffer, _Buffer],
    first: Index,
    number: jax.Array,
  ) -> None:
    """Software pipeline: stage 2 of an item with stage 1 of the next."""
    even, odd = buffers

    def step(item: Index, old: _Buffer, new: _Buffer) -> None:
      self.stream.wait(item + 1)
      self.stream.fetch_ahead(item)
      _exhaust(
        self.start(item + 1, groups(item + 1), new),
        self.finish(item, groups(item), old),
      )

    # Two items an iteration: which buffer holds an item is then known when the
    # loop is traced.
    def two_steps(index: jax.Array, _: jax.Array) -> int:
      item = first + 2 * index
      step(item, even, odd)

      @pl.when(2 * index + 2 < number)
      def _() -> None:
        step(item + 1, odd, even)

      return 0

    def last_step(buffer: _Buffer) -> None:
      item = first + number - 1
      _exhaust(self.finish(item, groups(item), buffer))

    # Before the loop stage 1 of the first item, after it stage 2 of the last;
    # the loop takes the number - 1 steps between them, two at a time.
    self.stream.wait(first)
    _exhaust(self.start(first, groups(first), even))
    lax.fori_loop(0, lax.div(number, 2), two_steps, 0)
    # Every item fetches ahead once, or a later `wait` would never return. The
    # last item has no step that does it.
    self.stream.fetch_ahead(first + number - 1)
    is_even = (number & 1) == 1  # Whether the last item is in buffer `even`.
    pl.when(is_even)(lambda: last_step(even))
    pl.when(jnp.logical_not(is_even))(lambda: last_step(odd))


def _exhaust(*generators: Iterator[None]) -> None:
  """Runs generators in turns, which interleaves their instructions."""
  done = object()
  generators = list(generators)
  while generators:
    generators = [g for g in generators if next(g, done) is not done]


def _kernel(
  *refs: Ref,
  work: pair_lists.PairList,
  scale: float,
  valid: int,
  buffers: int,
  order: array_order.ArrayOrder,
  is_first: bool,
  is_last: bool,
) -> None:
  words, query, keys_all, values_all = refs[:4]
  # Pallas passes inputs, outputs and scratch in one row; how many there are of
  # the first two depends on the pass.
  refs = list(refs[4:])
  old_state = () if is_first else (refs.pop(0), refs.pop(0), refs.pop(0))
  results = [refs.pop(0) for _ in range(2 if is_last else 3)]
  keys, values, semaphores, *refs = refs
  even, odd = _Buffer(*refs[:3]), _Buffer(*refs[3:6])
  # A pass before the last returns its running sums.
  state = maximum, total, output = refs[6:] if is_last else results
  frames, segments = work.tile
  tile = [(f, g) for f in range(frames) for g in range(segments)]
  stream = pair_stream.PairStream(
    words,
    pl.program_id(0),
    ((keys_all, keys), (values_all, values)),
    semaphores,
    work,
    buffers,
    order,
  )
  index = pl.program_id(1) * pl.num_programs(2) + pl.program_id(2)

  @pl.when(index == 0)
  def _() -> None:
    stream.begin()  # The first items of the grid; later ones are prefetched.
    for turned in (even.turned, odd.turned):
      width = output.shape[-2]
      # Once is enough: stage 1 overwrites the first `width` rows only.
      if turned.shape[1] > width:
        turned[:, width:] = jnp.ones_like(turned[:, width:])

  if is_first:
    # Minus infinity is safe: an item's maximum is finite even if all its keys
    # are padding, so the first rescaling is by 2^-inf = 0, never NaN.
    maximum[...] = jnp.full_like(maximum, -jnp.inf)
    total[...] = jnp.zeros_like(total)
    output[...] = jnp.zeros_like(output)
  else:
    for x, old in zip(state, old_state):
      x[...] = old[...]
  forward = _Forward(stream, query, keys, values, state, work, scale, valid)
  num_pair, num_full = stream.counts()
  both = even, odd
  forward.run(forward.pair_groups, both, 0, work.pair_items(), num_pair)
  forward.run(forward.full_groups, both, num_pair, work.full_items(), num_full)
  if is_last:
    for place in tile:
      # One reciprocal a query instead of K divisions.
      mean = output[place] * (1.0 / total[place])
      results[0][place] = mean.T.astype(results[0].dtype)
      results[1][place] = products.LN_2 * (
        maximum[place] + jnp.log2(total[place])
      )
  num_tiles = pl.num_programs(1) * pl.num_programs(2)
  pl.when(index == num_tiles - 1)(stream.end)


def forward(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  lists: tuple[pair_lists.PairList, ...],
  *,
  scale: float,
  valid: int,
  tiles: tpu_tiles.TileSizes,
  order: array_order.ArrayOrder,
  interpret: bool,
) -> tuple[jax.Array, jax.Array]:
  """Attention over the pairs of pieces in the lists.

  Args:
    query: [heads, frames, segments, tokens, K], pieces in the kernels' order.
    key: Same shape as query.
    value: Same shape as query.
    lists: Work lists of all passes; each query piece occurs at least once.
    scale: Factor on the scores.
    valid: Number of real tokens of a piece; the rest is padding.
    tiles: Sizes of buffers and tiles.
    order: Order of heads and frames in all arrays, results too.
    interpret: See `pl.pallas_call`.

  Returns:
    Output as query, and log-sum-exp [heads, frames, segments, 1, tokens].
  """
  state = ()
  for index, work in enumerate(lists):
    state = _one_pass(
      query,
      key,
      value,
      state,
      work,
      scale=scale,
      valid=valid,
      tiles=tiles,
      order=order,
      interpret=interpret,
      is_last=index == len(lists) - 1,
    )
  output, log_sum_exp = state
  return output, log_sum_exp


def _one_pass(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  state: Sequence[jax.Array],
  work: pair_lists.PairList,
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
  tile = functools.partial(order.block, frames, segments)

  def array(
    *shape: int, dtype: jax.typing.DTypeLike = jnp.float32
  ) -> jax.ShapeDtypeStruct:
    whole = order.shape(heads, num_frames, num_segments, *shape)
    return jax.ShapeDtypeStruct(whole, dtype)

  # Scalar memory: the words are addresses and lengths of loops, which the
  # scalar unit computes with.
  words = pl.BlockSpec(
    (None, 1, num_words),
    lambda h, f, g: (f * grid[2] + g, 0, 0),
    memory_space=pltpu.SMEM,
  )
  # Keys and values stay in main memory and the kernel copies pieces itself:
  # Pallas' own pipeline copies one block a grid step, and here each tile sees
  # another number of pieces.
  anywhere = pl.BlockSpec(memory_space=pl.ANY)
  per_token, per_value = (1, tokens), (width, tokens)
  carried = (per_token, per_token, per_value)
  if is_last:
    out_specs = [tile(tokens, width), tile(*per_token)]
    out_shape = [array(tokens, width, dtype=query.dtype), array(*per_token)]
  else:
    out_specs = [tile(*shape) for shape in carried]
    out_shape = [array(*shape) for shape in carried]
  num_groups = max(work.num_rows, work.group)
  num_pairs = work.group
  if work.full_items().any():
    num_pairs = max(num_pairs, work.num_rows * stream)
  # In float32 the sums stay on the vector units: the product would round.
  has_ones = tiles.spare_vector_units and value.dtype == jnp.bfloat16
  ones = _ONES if has_ones else 0
  between_stages = [
    pltpu.VMEM((num_pairs, tokens, tokens), jnp.float32),
    pltpu.VMEM((num_groups, *per_token), jnp.float32),
    pltpu.VMEM((stream, width + ones, tokens), value.dtype),
  ]
  sums = [pltpu.VMEM((*work.tile, *s), jnp.float32) for s in carried * is_last]
  pieces = pltpu.VMEM((buffers, stream, tokens, width), key.dtype)
  # Two products a pair of pieces, two operations a multiply-add.
  flops = 4 * heads * work.num_units * tokens * tokens * width
  streamed = heads * int(work.words[:, 1:3].sum()) * stream
  kernel = functools.partial(
    _kernel,
    work=work,
    # The scores are scaled anyway, so that base 2 costs nothing.
    scale=scale * products.LOG2_E,
    valid=valid,
    buffers=buffers,
    order=order,
    is_first=not state,
    is_last=is_last,
  )
  return pl.pallas_call(
    kernel,
    grid=grid,
    in_specs=[words, tile(tokens, width), anywhere, anywhere]
    + [tile(*shape) for shape in carried[: len(state)]],
    out_specs=out_specs,
    out_shape=out_shape,
    scratch_shapes=[
      pieces,
      pieces,
      pltpu.SemaphoreType.DMA((buffers,)),
      # Twice: buffers `even` and `odd`.
      *between_stages,
      *between_stages,
      *sums,
    ],
    compiler_params=pltpu.CompilerParams(
      # Copies for a tile start during the tile before it, so tiles run in
      # order; heads are independent.
      dimension_semantics=("parallel", "arbitrary", "arbitrary"),
      vmem_limit_bytes=tiles.memory_mib << 20,
      # Checks of addresses were half of the scalar code between items. All
      # addresses come from the lists, which hold pieces of the clip only.
      disable_bounds_checks=True,
      disable_semaphore_checks=True,
    ),
    cost_estimate=pl.CostEstimate(
      flops=flops,
      transcendentals=flops // (4 * width),
      bytes_accessed=(
        2 * streamed * tokens * width * key.dtype.itemsize
        + sum(x.size * x.dtype.itemsize for x in out_shape)
        + sum(x.size * x.dtype.itemsize for x in (query, *state))
      ),
    ),
    interpret=interpret,
    name=f"block_sparse_forward_{frames}x{segments}",
  )(
    # The extra axis makes the last two axes of a block those of the array,
    # which the TPU's tiling of memory requires.
    jnp.asarray(work.words)[:, None],
    query,
    key,
    value,
    *state,
  )
