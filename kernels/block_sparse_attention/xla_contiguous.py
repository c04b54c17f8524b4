"""One head of attention between contiguous runs of tokens, in plain JAX.

For masks whose strides are powers of two, with the blocks of every frame in
bit-reversed order (`mask.py`). Cut a frame of P tokens into s segments: at
stride s, segment a of the queries sees segment a of the keys, in every key
frame of the level. The queries of one frame therefore need, for every level,
one batched dense product [s, P / s, K] x [s, frames * P / s, K], with no mask
and no gather of blocks.

The scores of the levels stay apart and share one maximum and one sum of
exponentials. A frame's queries are taken in chunks, to keep the scores in
cache; a chunk is a part of one segment, or covers `m` whole segments. The
backward pass recomputes the scores from the log-sum-exp.

Query frames that see equally many key frames at each stride (all but a few at
the ends of a clip) share one loop, so that the program does not grow with the
clip. It shrinks further where loops can be joined by filling up their lists of
key frames, at the cost of a few per cent of masked work.
"""

from collections.abc import Callable
import functools
import itertools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from . import mask as mask_lib

# Masked work for a smaller program, as a share of the exact. On short inputs
# the program takes longer to compile than to run.
_MAX_PADDING = 0.01
_MAX_PADDING_SHORT = 0.3
_SHORT_TOKENS = 4096


class _KeyFrames(NamedTuple):
  """Key frames of one stride, for one query frame or, stacked, for several."""

  frames: np.ndarray | jax.Array  # [W]
  bias: np.ndarray | jax.Array | None  # [W], minus infinity where filled up.


class _Group(NamedTuple):
  """Query frames that share one loop."""

  frames: np.ndarray  # [n]
  strides: tuple[int, ...]
  key_frames: tuple[_KeyFrames, ...]  # For each stride, [n, W].


class _Level(NamedTuple):
  """What one query frame sees at one stride."""

  key: jax.Array  # As cut, or [1, keys, K] where taken already.
  value: jax.Array  # As key.
  stride: int
  frames: np.ndarray | jax.Array | None  # [W]; None: taken already.
  bias: jax.Array | float  # On the scores, [keys].


def forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: mask_lib.Mask,
    chunk_tokens: int,
) -> tuple[jax.Array, jax.Array]:
  """Attention of one head.

  Args:
    query: [F, P, K] float32, scaled, blocks in bit-reversed order.
    key: As query, not scaled.
    value: As key.
    mask: A mask that `is_power_of_two`.
    chunk_tokens: Most queries taken at once.

  Returns:
    Output [F, P, K] and log-sum-exp [F, P], float32.
  """
  key, value = (_cut(x, mask.max_stride) for x in (key, value))

  def step(results, frame, key_frames, strides):
    levels = _levels(key, value, key_frames, strides)
    chunks = _chunks(query[frame], chunk_tokens)
    attend = lambda xs: _attend_chunk(*xs, levels, len(chunks))
    new = lax.map(attend, (jnp.arange(len(chunks)), chunks))
    return tuple(_set_frame(x, frame, y) for x, y in zip(results, new))

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
    chunk_tokens: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients with respect to query, key and value, each [F, P, K].

  Args:
    query: As in `forward`; so are key, value, mask and chunk_tokens.
    key: See query.
    value: See query.
    log_sum_exp: [F, P], from `forward`.
    output_bar: Cotangent of the output, [F, P, K].
    offset: Sum over K of output * output_bar, less the cotangent of the
      log-sum-exp, [F, P].
    mask: See query.
    chunk_tokens: See query.
  """
  key, value = (_cut(x, mask.max_stride) for x in (key, value))

  def step(bars, frame, key_frames, strides):
    levels = _levels(key, value, key_frames, strides)
    chunks = [
        _chunks(x[frame], chunk_tokens)
        for x in (query, log_sum_exp, output_bar, offset)
    ]
    query_bar, level_bars = _differentiate_chunks(chunks, levels)
    query_bars, key_bar, value_bar = bars
    query_bars = _set_frame(query_bars, frame, query_bar)
    for (frames, _), level_bar in zip(key_frames, level_bars):
      key_bar = _add_frames(key_bar, frames, level_bar[0])
      value_bar = _add_frames(value_bar, frames, level_bar[1])
    return query_bars, key_bar, value_bar

  # [segments, K, F, P / segments]: shares of the gradients come with the keys
  # last, which is how their products are fastest.
  zeros = [jnp.zeros_like(x.transpose(0, 3, 1, 2)) for x in (key, value)]
  bars = (jnp.zeros_like(query), *zeros)
  bars = _over_query_frames(step, bars, mask, log_sum_exp.size)
  return bars[0], _uncut(bars[1]), _uncut(bars[2])


def _attend_chunk(chunk, query, levels, num_chunks):
  """Output [n, K] and log-sum-exp [n] of one chunk of queries, [n, K]."""
  size = len(query)
  part = functools.partial(_part, chunk=chunk, num_chunks=num_chunks)
  scores = [  # Each [m, n / m, keys].
      _product(query, part(level, level.key)) + level.bias for level in levels
  ]
  maximum = functools.reduce(
      jnp.maximum, [x.max(-1).reshape(size) for x in scores]
  )
  total, output = 0.0, 0.0
  for score, level in zip(scores, levels):
    weights = jnp.exp(score - maximum.reshape(len(score), -1, 1))
    total += weights.sum(-1).reshape(size)
    output += _weighted(weights, part(level, level.value))
  return output / total[:, None], maximum + jnp.log(total)


def _differentiate_chunks(chunks, levels):
  """Gradients of one frame's queries, and of the keys and values they see.

  Args:
    chunks: Query, log-sum-exp, output_bar and offset, [chunks, n, ...].
    levels: What the frame sees.

  Returns:
    Gradient of query, [chunks, n, K]; for each level the gradients of the keys
    and values, [stride, K, keys].
  """
  num_chunks = len(chunks[0])
  # Where a chunk covers whole segments, its share is all that there is.
  num_shared = sum(level.stride < num_chunks for level in levels)

  def body(bars, xs):
    chunk = xs[0]
    query_bar, shares = _differentiate_chunk(*xs, levels, num_chunks)
    add = lambda x, share: _add_part(x, share, chunk, num_chunks)
    bars = jax.tree.map(add, bars, shares[:num_shared])
    return bars, (query_bar, shares[num_shared:])

  zeros = [
      tuple(jnp.zeros_like(_all(level, x).swapaxes(1, 2)) for x in level[:2])
      for level in levels[:num_shared]
  ]
  shared, (query_bar, whole) = lax.scan(
      body, zeros, (jnp.arange(num_chunks), *chunks)
  )
  whole = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), whole)
  return query_bar, shared + whole


def _differentiate_chunk(
    chunk, query, log_sum_exp, output_bar, offset, levels, num_chunks
):
  """One chunk's gradient of query, [n, K], and shares of the other two."""
  part = functools.partial(_part, chunk=chunk, num_chunks=num_chunks)
  query_bar, shares = 0.0, []
  for level in levels:
    key, value = part(level, level.key), part(level, level.value)
    column = lambda x, m=len(key): x.reshape(m, -1, 1)
    scores = _product(query, key) + level.bias
    weights = jnp.exp(scores - column(log_sum_exp))
    scores_bar = weights * (_product(output_bar, value) - column(offset))
    query_bar += _weighted(scores_bar, key)
    key_share = _transposed(scores_bar, query)
    shares.append((key_share, _transposed(weights, output_bar)))
  return query_bar, shares


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


def _chunks(rows: jax.Array, chunk_tokens: int) -> jax.Array:
  """[P, ...] -> [chunks, n, ...]; chunks is a power of two that divides P."""
  tokens = len(rows)
  num_chunks = 1
  while tokens % (2 * num_chunks) == 0 and tokens > num_chunks * chunk_tokens:
    num_chunks *= 2
  return rows.reshape(num_chunks, -1, *rows.shape[1:])


def _set_frame(x: jax.Array, frame, rows: jax.Array) -> jax.Array:
  """Puts what `_chunks` cut, [chunks, n, ...], back as one frame of x."""
  rows = rows.reshape(x.shape[1:])
  return lax.dynamic_update_index_in_dim(x, rows, frame, 0)


def _part(
    level: _Level, x: jax.Array, chunk: jax.Array | int, num_chunks: int
) -> jax.Array:
  """Keys or values that a chunk sees at a stride, [m, keys, K].

  A chunk of queries lies in m = 1 segment or covers m whole ones.
  """
  if level.frames is None:
    return x
  # A segment of the stride is several of those that x is cut into.
  pieces = len(x) // level.stride
  start = chunk * level.stride // num_chunks * pieces
  m = max(1, level.stride // num_chunks)
  part = lax.dynamic_slice_in_dim(x, start, m * pieces)
  return _take_frames(part, level.frames, m)


def _all(level: _Level, x: jax.Array) -> jax.Array:
  """Keys or values that a frame sees at a stride, [stride, keys, K]."""
  return _part(level, x, 0, 1)


def _add_part(
    x: jax.Array, share: jax.Array, chunk: jax.Array, num_chunks: int
) -> jax.Array:
  """Adds a share [1, ...] to the segment of x that the chunk lies in."""
  if len(x) == 1:
    return x + share
  start = chunk * len(x) // num_chunks
  share += lax.dynamic_slice_in_dim(x, start, 1)
  return lax.dynamic_update_slice_in_dim(x, share, start, 0)


def _levels(key, value, key_frames, strides) -> list[_Level]:
  """What one query frame sees, by stride."""
  segments, _, length, _ = key.shape
  levels = []
  for (frames, bias), stride in zip(key_frames, strides):
    if bias is None:
      bias = 0.0
    else:
      pieces = (segments // stride, len(frames), length)
      bias = jnp.broadcast_to(bias[:, None], pieces).reshape(-1)
    if stride == 1:  # All chunks see the same keys.
      taken = (_take_frames(x, frames, 1) for x in (key, value))
      levels.append(_Level(*taken, stride, None, bias))
    else:
      levels.append(_Level(key, value, stride, frames, bias))
  return levels


def _cut(x: jax.Array, segments: int) -> jax.Array:
  """[F, P, K] -> [segments, F, P / segments, K]."""
  return x.reshape(len(x), segments, -1, x.shape[-1]).swapaxes(0, 1)


def _uncut(x: jax.Array) -> jax.Array:
  """[segments, K, F, P / segments] -> [F, P, K]."""
  return x.transpose(2, 0, 3, 1).reshape(x.shape[2], -1, x.shape[1])


def _take_frames(x: jax.Array, frames, stride: int) -> jax.Array:
  """Some frames of what `_cut` gives, as [stride, keys, K].

  The order of the keys of a segment is free, so that whole pieces are copied.
  """
  if isinstance(frames, np.ndarray):
    runs = mask_lib.Level(stride, tuple(frames)).frame_runs
    x = jnp.concatenate([x[:, start:stop] for start, stop in runs], 1)
  else:
    x = x.at[:, frames].get(mode="promise_in_bounds")
  return x.reshape(stride, -1, x.shape[-1])


def _add_frames(x: jax.Array, frames, share: jax.Array) -> jax.Array:
  """Adds a gradient of what `_take_frames` returns.

  Args:
    x: Gradients [segments, K, F, P / segments].
    frames: As for `_take_frames`.
    share: [stride, K, keys].
  """
  segments, width, _, length = x.shape
  share = share.reshape(len(share), width, -1, len(frames), length)
  share = share.swapaxes(1, 2).reshape(segments, width, -1, length)
  if not isinstance(frames, np.ndarray):
    return x.at[:, :, frames].add(share, mode="promise_in_bounds")
  first = 0
  for start, stop in mask_lib.Level(1, tuple(frames)).frame_runs:
    taken = share[:, :, first : first + stop - start]
    x = x.at[:, :, start:stop].add(taken)
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


def _join(groups, a, b):
  """The groups with a and b made one, as wide as the wider at each stride."""
  widths = dict(a)
  for stride, width in b:
    widths[stride] = max(width, widths.get(stride, 0))
  joined = {key: groups[key] for key in groups if key not in (a, b)}
  widths = tuple(sorted(widths.items()))
  joined[widths] = joined.get(widths, []) + groups[a] + groups[b]
  return joined


def _fill_up(mask, widths, frames) -> _Group:
  key_frames = []
  for stride, width in widths:
    filled = np.zeros((len(frames), width), np.int32)
    bias = np.full((len(frames), width), -np.inf, np.float32)
    for row, frame in enumerate(frames):
      for level in mask.levels(frame):
        if level.stride == stride:
          filled[row, : len(level.frames)] = level.frames
          bias[row, : len(level.frames)] = 0
    key_frames.append(_KeyFrames(filled, bias if bias.any() else None))
  strides = tuple(stride for stride, _ in widths)
  return _Group(np.array(frames, np.int32), strides, tuple(key_frames))
