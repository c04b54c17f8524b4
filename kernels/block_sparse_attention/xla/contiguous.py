"""One head of attention between contiguous runs of tokens, in plain JAX.

For masks whose strides are powers of two, with the blocks of every frame in
bit-reversed order (`mask.py`). Cut a frame of P tokens into s segments: at
stride s, segment a of the queries sees segment a of the keys, in every key
frame of the level. The queries of one frame therefore need, for every level,
one batched dense product [s, P / s, K] x [s, frames * P / s, K], with no mask
and no gather of blocks.

Every level is a separate softmax, with its maximum and its sum of
exponentials, by which the outputs of a frame's levels are joined. A level takes
the queries in chunks, so that its scores stay in cache; a chunk is a part of
one segment, or covers `m` whole segments. The backward pass recomputes the
scores from the log-sum-exp, again level by level.

Query frames that see equally many key frames at each stride (all but a few at
the ends of a clip) share one loop, so that the program does not grow with the
clip. It shrinks further where loops can be joined by filling up their lists of
key frames, at the cost of a few per cent of masked work.
"""

from collections.abc import Callable, Sequence
import functools
import itertools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from .. import mask as mask_lib

# On scores of key frames that only fill a list up: no exponential is left of
# them, and none of their maximum, which must be finite.
_NEVER = float(-0.5 * np.finfo(np.float32).max)
# Masked work for a smaller program, as a share of the exact. On short inputs
# the program takes longer to compile than to run.
_MAX_PADDING = 0.01
_MAX_PADDING_SHORT = 0.3
_SHORT_TOKENS = 4096


class Chunks(NamedTuple):
  """Limits of what a step takes at once of the queries of one frame.

  Attributes:
    scores: Most scores.
    min_tokens: Queries of a segment that are not cut further for it.
  """

  scores: int
  min_tokens: int


class _KeyFrames(NamedTuple):
  """Key frames of one stride, for one query frame or, stacked, for several."""

  frames: np.ndarray | jax.Array  # [W]
  bias: np.ndarray | jax.Array | None  # [W], `_NEVER` where filled up.


class _Group(NamedTuple):
  """Query frames that share one loop."""

  frames: np.ndarray  # [n]
  strides: tuple[int, ...]
  key_frames: tuple[_KeyFrames, ...]  # For each stride, [n, W].


class _Level(NamedTuple):
  """What one query frame sees at one stride."""

  key: jax.Array  # [stride, keys, K].
  value: jax.Array  # As key.
  bias: jax.Array | float  # On the scores, [keys].


# Strides, and how many key frames are seen at each.
_Widths = tuple[tuple[int, int], ...]


def forward(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: mask_lib.Mask,
  chunks: Chunks,
) -> tuple[jax.Array, jax.Array]:
  """Attention of one head.

  Args:
    query: [F, P, K] float32, scaled, blocks in bit-reversed order.
    key: Same shape as query, not scaled.
    value: Same shape as key.
    mask: A mask that `is_power_of_two`.
    chunks: Chunk sizes.

  Returns:
    Output [F, P, K] and log-sum-exp [F, P], float32.
  """
  # What the queries of frame 2 see, if stride 1 reaches one frame and stride 2
  # the next ("#" is seen); each level is one batched dense product:
  #
  #   key frame     0      1      2      3      4
  #   segment a    # .    # #    # #    # #    # .
  #   segment b    . #    # #    # #    # #    . #
  #   level        2      1      1      1      2

  def step(
    results: tuple[jax.Array, jax.Array],
    frame: jax.Array | np.integer,
    key_frames: tuple[_KeyFrames, ...],
    strides: tuple[int, ...],
  ) -> tuple[jax.Array, jax.Array]:
    rows = lax.optimization_barrier(query[frame])
    levels = [
      _attend_level(rows, _level(key, value, *frames, stride), chunks)
      for frames, stride in zip(key_frames, strides)
    ]
    return tuple(
      lax.dynamic_update_index_in_dim(x, y, frame, 0)
      for x, y in zip(results, _join_levels(levels))
    )

  results = (jnp.zeros_like(query), jnp.zeros_like(query[..., 0]))
  return _over_query_frames(step, results, mask, results[1].size)


def backward(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  log_sum_exp: jax.Array,
  output_bar: jax.Array,
  offset: jax.Array,
  mask: mask_lib.Mask,
  chunks: Chunks,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients with respect to query, key and value, each [F, P, K].

  Args:
    query: Same as for `forward`, like key, value, mask and chunks.
    key: See query.
    value: See query.
    log_sum_exp: [F, P], from `forward`.
    output_bar: Cotangent of the output, [F, P, K].
    offset: Sum over K of output * output_bar, less the cotangent of the
      log-sum-exp, [F, P].
    mask: See query.
    chunks: See query.
  """

  def step(
    bars: tuple[jax.Array, jax.Array, jax.Array],
    frame: jax.Array | np.integer,
    key_frames: tuple[_KeyFrames, ...],
    strides: tuple[int, ...],
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    # The barrier: XLA would copy the rows again for every level.
    rows = lax.optimization_barrier(
      [x[frame] for x in (query, log_sum_exp, output_bar, offset)]
    )
    query_bars, *level_bars = bars
    query_bar = jnp.zeros_like(rows[0])
    for frames, stride in zip(key_frames, strides):
      level = _level(key, value, *frames, stride)
      share, *shares = _differentiate_level(rows, level, chunks)
      query_bar += share
      level_bars = [
        _add_frames(x, frames.frames, share)
        for x, share in zip(level_bars, shares)
      ]
    query_bars = lax.dynamic_update_index_in_dim(
      query_bars, query_bar, frame, 0
    )
    return query_bars, *level_bars

  # [F, K, P]: shares of the gradients come with the keys last, which is how
  # their products are fastest.
  zeros = [jnp.zeros_like(x.swapaxes(1, 2)) for x in (key, value)]
  bars = (jnp.zeros_like(query), *zeros)
  bars = _over_query_frames(step, bars, mask, log_sum_exp.size)
  return bars[0], bars[1].swapaxes(1, 2), bars[2].swapaxes(1, 2)


def _attend_level(
  query: jax.Array, level: _Level, chunks: Chunks
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Softmax over what one frame's queries [P, K] see at one stride.

  Returns:
    Maximum [P], sum of exponentials [P], sum of exponentials times values
    [P, K].
  """
  outer, inner = _num_parts(query, level, chunks)

  def attend_segments(
    xs: tuple[jax.Array, jax.Array, jax.Array],
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    query, key, value = xs
    attend = lambda query: _attend_chunk(query, key, value, level.bias)
    return _map(attend, query, inner)

  return _map(attend_segments, (query, level.key, level.value), outer)


def _attend_chunk(
  query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | float
) -> tuple[jax.Array, jax.Array, jax.Array]:
  scores = _product(query, key) + bias  # [m, n / m, keys]
  maximum = scores.max(-1, keepdims=True)
  weights = jnp.exp(scores - maximum)
  output = _weighted(weights, value)
  return maximum.ravel(), weights.sum(-1).ravel(), output


def _join_levels(
  levels: Sequence[tuple[jax.Array, jax.Array, jax.Array]],
) -> tuple[jax.Array, jax.Array]:
  """One frame's output [P, K] and log-sum-exp [P]."""
  maximum = functools.reduce(jnp.maximum, [level[0] for level in levels])
  factors = [jnp.exp(level[0] - maximum) for level in levels]
  total = sum(x * level[1] for x, level in zip(factors, levels))
  output = sum(x[:, None] * level[2] for x, level in zip(factors, levels))
  return output / total[:, None], maximum + jnp.log(total)


def _differentiate_level(
  rows: Sequence[jax.Array], level: _Level, chunks: Chunks
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Shares of the gradients of one frame's queries at one stride.

  Args:
    rows: Query, log-sum-exp, output_bar and offset, [P, ...].
    level: The keys, values and bias that the frame sees at this stride.
    chunks: See `forward`.

  Returns:
    Gradient of query, [P, K]; of the keys and values, [stride, K, keys].
  """
  outer, inner = _num_parts(rows[0], level, chunks)

  def differentiate_segments(
    xs: tuple[Sequence[jax.Array], jax.Array, jax.Array],
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    rows, key, value = xs
    differentiate = functools.partial(
      differentiate_chunk, key=key, value=value, bias=level.bias
    )
    if inner == 1:
      return differentiate(rows)

    def body(
      bars: list[jax.Array], rows: Sequence[jax.Array]
    ) -> tuple[list[jax.Array], jax.Array]:
      query_bar, *shares = differentiate(rows)
      return [x + share for x, share in zip(bars, shares)], query_bar

    zeros = [jnp.zeros_like(x.swapaxes(1, 2)) for x in (key, value)]
    shares, query_bar = lax.scan(body, zeros, _split(rows, inner))
    return _merge(query_bar), *shares

  return _map(differentiate_segments, (rows, level.key, level.value), outer)


def differentiate_chunk(
  rows: Sequence[jax.Array],
  key: jax.Array,
  value: jax.Array,
  bias: jax.Array | np.ndarray | float,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients of queries' attention, each to the keys of its segment.

  Args:
    rows: Query, log-sum-exp, output_bar and offset, [n, ...]; the first n / m
      belong to the first segment, and so on.
    key: [m, keys, K].
    value: Same shape as key.
    bias: Added to the scores [m, n / m, keys].

  Returns:
    Gradient of query, [n, K]; shares of the other two, [m, K, keys].
  """
  query, log_sum_exp, output_bar, offset = rows
  column = lambda x: x.reshape(len(key), -1, 1)
  scores = _product(query, key) + bias
  weights = jnp.exp(scores - column(log_sum_exp))
  scores_bar = weights * (_product(output_bar, value) - column(offset))
  return (
    _weighted(scores_bar, key),
    _transposed(scores_bar, query),
    _transposed(weights, output_bar),
  )


def _product(rows: jax.Array, keys: jax.Array) -> jax.Array:
  """[n, K] x [m, keys, K] -> [m, n / m, keys]."""
  rows = rows.reshape(len(keys), -1, rows.shape[-1])
  return jnp.einsum("mqk,msk->mqs", rows, keys)


def _weighted(weights: jax.Array, values: jax.Array) -> jax.Array:
  """[m, n / m, keys] x [m, keys, K] -> [n, K]."""
  output = jnp.einsum("mqs,msk->mqk", weights, values)
  return output.reshape(-1, output.shape[-1])


def _transposed(weights: jax.Array, rows: jax.Array) -> jax.Array:
  """[m, n / m, keys] x [n, K] -> [m, K, keys]."""
  rows = rows.reshape(len(weights), -1, rows.shape[-1])
  # Not an einsum: it would order the operands, and with them the transposes of
  # the product, as it likes.
  return lax.dot_general(rows, weights, (((1,), (1,)), ((0,), (0,))))


def _num_parts(
  query: jax.Array, level: _Level, chunks: Chunks
) -> tuple[int, int]:
  """Into how many parts a level is cut: by its segments, and these by queries.

  Both are powers of two, and their product divides the queries.
  """
  tokens = len(query)
  stride, num_keys, _ = level.key.shape
  parts = 1
  while tokens % (2 * parts) == 0 and tokens * num_keys > parts * chunks.scores:
    if parts >= stride and tokens <= parts * chunks.min_tokens:
      break
    parts *= 2
  outer = min(parts, stride)
  return outer, parts // outer


def _map(function: Callable[[Any], Any], args: Any, parts: int) -> Any:
  """Calls a function on parts of its arguments' first axes, one by one."""
  if parts == 1:
    return function(args)
  return _merge(lax.map(function, _split(args, parts)))


def _split(tree: Any, parts: int) -> Any:
  return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), tree)


def _merge(tree: Any) -> Any:
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), tree)


def _level(
  key: jax.Array,
  value: jax.Array,
  frames: np.ndarray | jax.Array,
  bias: np.ndarray | jax.Array | None,
  stride: int,
) -> _Level:
  """What one query frame sees at one stride, of keys and values [F, P, K]."""
  if bias is None:
    bias = 0.0
  else:
    bias = jnp.repeat(bias, key.shape[1] // stride)
  return _Level(*(_take_frames(x, frames, stride) for x in (key, value)), bias)


def _take_frames(
  x: jax.Array, frames: np.ndarray | jax.Array, stride: int
) -> jax.Array:
  """Some frames of [F, P, K], by segments: [stride, keys, K]."""
  if isinstance(frames, np.ndarray):
    runs = mask_lib.Level(stride, tuple(frames)).frame_runs
    x = jnp.concatenate([x[start:stop] for start, stop in runs])
  else:
    x = x.at[frames].get(mode="promise_in_bounds")
  # At stride 2, frames f and g of segments a and b:
  #
  #   x        fa fb | ga gb
  #   result   fa ga | fb gb     what segment a of the queries sees, then b
  width = x.shape[-1]
  x = x.reshape(len(x), stride, -1, width).swapaxes(0, 1)
  return x.reshape(stride, -1, width)


def _add_frames(
  x: jax.Array, frames: np.ndarray | jax.Array, share: jax.Array
) -> jax.Array:
  """Adds a gradient of what `_take_frames` returns.

  Args:
    x: Gradients [F, K, P].
    frames: Same as for `_take_frames`.
    share: [stride, K, keys].
  """
  stride, width, _ = share.shape
  share = share.reshape(stride, width, len(frames), -1)
  share = share.transpose(2, 1, 0, 3).reshape(len(frames), *x.shape[1:])
  if not isinstance(frames, np.ndarray):
    return x.at[frames].add(share, mode="promise_in_bounds")
  first = 0
  for start, stop in mask_lib.Level(stride, tuple(frames)).frame_runs:
    x = x.at[start:stop].add(share[first : first + stop - start])
    first += stop - start
  return x


def _over_query_frames(
  step: Callable[..., Any], carry: Any, mask: mask_lib.Mask, num_tokens: int
) -> Any:
  """Folds step(carry, frame, key_frames, strides) over all query frames."""
  is_short = num_tokens <= _SHORT_TOKENS
  padding = _MAX_PADDING_SHORT if is_short else _MAX_PADDING
  for group in _groups(mask, padding):
    one = functools.partial(step, strides=group.strides)
    if len(group.frames) == 1:
      carry = one(carry, *jax.tree.map(lambda x: x[0], group[::2]))
    else:
      carry, _ = lax.scan(
        lambda carry, xs: (one(carry, *xs), None),
        carry,
        jax.tree.map(jnp.asarray, group[::2]),
      )
  return carry


@functools.lru_cache(maxsize=64)
def _groups(mask: mask_lib.Mask, max_padding: float) -> tuple[_Group, ...]:
  """All query frames in few groups, within `max_padding` of the exact work.

  Starts from groups of equal lists and joins the two that cost least, as long
  as the sum stays within the limit.
  """
  groups = {}  # From key frames by stride, ((stride, W), ...), to query frames.
  for frame in range(mask.num_frames):
    widths = tuple((x.stride, len(x.frames)) for x in mask.levels(frame))
    groups.setdefault(widths, []).append(frame)
  work = lambda groups: sum(
    len(frames) * sum(width / stride for stride, width in widths)
    for widths, frames in groups.items()
  )
  limit = work(groups) * (1 + max_padding)
  while len(groups) > 1:
    joined = min(
      (_join(groups, a, b) for a, b in itertools.combinations(groups, 2)),
      key=work,
    )
    if work(joined) > limit:
      break
    groups = joined
  return tuple(_fill_up(mask, *group) for group in groups.items())


def _join(
  groups: dict[_Widths, list[int]], a: _Widths, b: _Widths
) -> dict[_Widths, list[int]]:
  """The groups with a and b made one, as wide as the wider at each stride."""
  widths = dict(a)
  for stride, width in b:
    widths[stride] = max(width, widths.get(stride, 0))
  joined = {key: groups[key] for key in groups if key not in (a, b)}
  widths = tuple(sorted(widths.items()))
  joined[widths] = joined.get(widths, []) + groups[a] + groups[b]
  return joined


def _fill_up(mask: mask_lib.Mask, widths: _Widths, frames: list[int]) -> _Group:
  key_frames = []
  for stride, width in widths:
    filled = np.zeros((len(frames), width), np.int32)
    bias = np.full((len(frames), width), _NEVER, np.float32)
    for row, frame in enumerate(frames):
      for level in mask.levels(frame):
        if level.stride == stride:
          filled[row, : len(level.frames)] = level.frames
          bias[row, : len(level.frames)] = 0
    key_frames.append(_KeyFrames(filled, bias if bias.any() else None))
  strides = tuple(stride for stride, _ in widths)
  return _Group(np.array(frames, np.int32), strides, tuple(key_frames))
