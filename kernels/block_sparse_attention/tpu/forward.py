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

from collections.abc import Iterator, Sequence
import functools

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
import jax.numpy as jnp
import numpy as np

from ..pallas_types import Index
from ..pallas_types import Ref
from . import lists as tpu_lists
from . import products
from . import stream as tpu_stream
from . import tiles as tpu_tiles

_ONES = 16  # Rows of ones below the values; 16 fill a bfloat16 register.


class _Forward:
  """The work on one tile of queries."""

  def __init__(
    self,
    stream: tpu_stream.ItemStream,
    query: Ref,
    keys: Ref,
    values: Ref,
    state: Sequence[Ref],
    scale: float,
    valid: int,
    segments: int,
  ):
    self.stream = stream
    self.query, self.keys, self.values = query, keys, values
    self.maximum, self.total, self.output = state
    self.scale, self.valid = scale, valid
    self.place = functools.partial(products.divide, segments=segments)

  def start(
    self,
    item: Index,
    size: int,
    scores: Ref,
    maxima: Ref,
    turned: Ref,
    pieces: Sequence[Index],
  ) -> Iterator[None]:
    """Stage 1 of an item; yields after each pair of pieces.

    Writes scores [pairs, keys, queries], their maxima over the item, and the
    transposed values [pieces, K, keys].
    """
    slot, rows = self.stream.slot(item), self.stream.rows(item, size)
    for r, row in enumerate(rows):
      query = self.query[self.place(row)]
      maximum = None
      for c, piece in enumerate(pieces):
        # For the first row only; the other rows reuse the transposed values.
        if r == 0:
          values = self.values[slot, piece].T
          turned[c, : values.shape[0]] = values
        s = (
          products.product(self.keys[slot, piece], query, products.ROWS)
          * self.scale
        )
        s = products.masked_fill(s, self.valid)
        scores[r * len(pieces) + c] = s
        top = jnp.max(s, 0, keepdims=True)
        maximum = top if maximum is None else jnp.maximum(maximum, top)
        yield
      maxima[r] = maximum

  def finish(
    self,
    item: Index,
    size: int,
    scores: Ref,
    maxima: Ref,
    turned: Ref,
    pieces: Sequence[Index],
  ) -> Iterator[None]:
    """Stage 2 of an item; yields after each pair of pieces.

    The running sums are read late, next to their update: where rows are known
    only at run time, a read waits for all earlier writes.
    """
    rows = [self.place(row) for row in self.stream.rows(item, size)]
    shrinks = []
    for r, row in enumerate(rows):
      # Rescales earlier sums to the new maximum.
      before = self.maximum[row]
      maxima[r] = jnp.maximum(before, maxima[r])
      shrinks.append(jnp.exp2(before - maxima[r]))
    # A second loop: a write between the reads above would hold up the next
    # read, as two rows known only at run time may be the same for the compiler.
    for r, row in enumerate(rows):
      self.maximum[row] = maxima[r]
    for r, row in enumerate(rows):
      maximum, total, output = maxima[r], 0.0, 0.0
      for c in range(len(pieces)):
        weights = jnp.exp2(scores[r * len(pieces) + c] - maximum)
        share, sums = self._weigh(turned[c], weights)
        output, total = output + share, total + sums
        if c == len(pieces) - 1:
          self.total[row] = shrinks[r] * self.total[row] + total
          self.output[row] = shrinks[r] * self.output[row] + output
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

  def run_rest(
    self,
    size: int,
    buffer: Sequence[Ref],
    first: Index,
    number: jax.Array,
  ) -> None:
    def run(item: jax.Array, start: jax.Array, count: int) -> None:
      pieces = [start + c for c in range(count)]
      args = (item, size, *buffer, pieces)
      _exhaust(self.start(*args))
      _exhaust(self.finish(*args))

    tpu_stream.for_rest(self.stream, first, number, run)

  def run_full(
    self,
    size: int,
    even: Sequence[Ref],
    odd: Sequence[Ref],
    first: Index,
    numbers: np.ndarray,
    number: jax.Array,
  ) -> None:
    """Runs full items from `first` on.

    `numbers` are the item counts of all tiles, known at trace time: code for
    one item and for several is emitted only where some tile needs it.
    """
    pieces = range(self.stream.size)

    # Alone, an item has no neighbour to overlap with.
    def one_step() -> None:
      self.stream.wait_full(first)
      self.stream.fetch_ahead(first)
      _exhaust(self.start(first, size, *even, pieces))
      _exhaust(self.finish(first, size, *even, pieces))

    if (numbers == 1).any():
      pl.when(number == 1)(one_step)
    if (numbers > 1).any():
      pl.when(number > 1)(
        lambda: self._run_overlapping(size, even, odd, first, number)
      )

  def _run_overlapping(
    self,
    size: int,
    even: Sequence[Ref],
    odd: Sequence[Ref],
    first: Index,
    number: jax.Array,
  ) -> None:
    """Software pipeline: stage 2 of an item with stage 1 of the next."""
    pieces = range(self.stream.size)

    def step(
      item: Index,
      old: Sequence[Ref],
      new: Sequence[Ref],
    ) -> None:
      self.stream.wait_full(item + 1)
      self.stream.fetch_ahead(item)
      _exhaust(
        self.start(item + 1, size, *new, pieces),
        self.finish(item, size, *old, pieces),
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

    def last_step(buffer: Sequence[Ref]) -> None:
      _exhaust(self.finish(first + number - 1, size, *buffer, pieces))

    # Before the loop stage 1 of the first item, after it stage 2 of the last;
    # the loop takes the number - 1 steps between them, two at a time.
    self.stream.wait_full(first)
    _exhaust(self.start(first, size, *even, pieces))
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
  work: tpu_lists.WorkList,
  scale: float,
  valid: int,
  buffers: int,
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
  even, odd = refs[:3], refs[3:6]
  # A pass before the last returns its running sums.
  state = maximum, total, output = refs[6:] if is_last else results
  frames, segments = work.tile
  tile = [(f, g) for f in range(frames) for g in range(segments)]
  stream = tpu_stream.ItemStream(
    words,
    pl.program_id(0),
    ((keys_all, keys), (values_all, values)),
    semaphores,
    work,
    buffers,
  )
  index = pl.program_id(1) * pl.num_programs(2) + pl.program_id(2)

  @pl.when(index == 0)
  def _() -> None:
    stream.begin()  # The first items of the grid; later ones are prefetched.
    for turned in (even[2], odd[2]):
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
  forward = _Forward(stream, query, keys, values, state, scale, valid, segments)
  # Static over sizes: a row set's length decides how far a stage is unrolled.
  for size, first_rest, num_rest, first_full, num_full in stream.sections():
    size_index = work.sizes.index(size)
    if work.num_items[size_index][0]:
      forward.run_rest(size, even, first_rest, num_rest)
    numbers = work.full_items(size_index)
    forward.run_full(size, even, odd, first_full, numbers, num_full)
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
  lists: tuple[tpu_lists.WorkList, ...],
  *,
  scale: float,
  valid: int,
  tiles: tpu_tiles.TileSizes,
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
  work: tpu_lists.WorkList,
  *,
  scale: float,
  valid: int,
  tiles: tpu_tiles.TileSizes,
  interpret: bool,
  is_last: bool,
) -> Sequence[jax.Array]:
  buffers = tiles.buffers
  heads, num_frames, num_segments, tokens, width = query.shape
  frames, segments = work.tile
  grid = (heads, pl.cdiv(num_frames, frames), pl.cdiv(num_segments, segments))
  num_words = work.words.shape[1]
  num_rows, stream = work.sizes[0], work.stream

  def tile(*shape: int) -> pl.BlockSpec:
    return pl.BlockSpec(
      (None, frames, segments, *shape), lambda h, f, g: (h, f, g, 0, 0)
    )

  def array(
    *shape: int, dtype: jax.typing.DTypeLike = jnp.float32
  ) -> jax.ShapeDtypeStruct:
    shape = (heads, num_frames, num_segments, *shape)
    return jax.ShapeDtypeStruct(shape, dtype)

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
  num_pairs = num_rows * stream
  # In float32 the sums stay on the vector units: the product would round.
  has_ones = tiles.spare_vector_units and value.dtype == jnp.bfloat16
  ones = _ONES if has_ones else 0
  between_stages = [
    pltpu.VMEM((num_pairs, tokens, tokens), jnp.float32),
    pltpu.VMEM((num_rows, *per_token), jnp.float32),
    pltpu.VMEM((stream, width + ones, tokens), value.dtype),
  ]
  sums = [pltpu.VMEM((*work.tile, *s), jnp.float32) for s in carried * is_last]
  pieces = pltpu.VMEM((buffers, stream, tokens, width), key.dtype)
  # Two products a pair of pieces, two operations a multiply-add.
  flops = 4 * heads * work.num_units * tokens * tokens * width
  streamed = heads * sum(r + f for r, _, f in work.num_items) * stream
  kernel = functools.partial(
    _kernel,
    work=work,
    # The scores are scaled anyway, so that base 2 costs nothing.
    scale=scale * products.LOG2_E,
    valid=valid,
    buffers=buffers,
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
