"""One head of attention over lists of key blocks, in plain JAX.

For masks of any kind. A query block gathers the key blocks on its list
(`Mask.block_lists`). Query blocks are sorted by the length of their list and
taken in buckets; within a bucket the lists are filled up with block 0, whose
scores are set to minus infinity. The last step of a bucket is filled up with a
query block that does not exist: what is written to it is dropped. The backward
pass recomputes the scores from the log-sum-exp and scatters the gradients of
the keys back, block by block.
"""

from collections.abc import Callable
import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from .. import mask as mask_lib

# Longest over shortest list of a bucket. Fewer buckets are a smaller program,
# which on short inputs takes longer to compile than to run.
_MAX_RATIO = 1.1
_MAX_RATIO_SHORT = 2.0
_SHORT_TOKENS = 4096


class _Bucket(NamedTuple):
  """Query blocks with lists of similar length, R blocks a step."""

  rows: np.ndarray  # Query blocks [steps, R]; num_blocks where filled up.
  lists: np.ndarray  # Key blocks [steps, R, W].
  bias: np.ndarray  # Zero, or minus infinity where filled up; [steps, R, W].


def forward(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: mask_lib.Mask,
  token_order: mask_lib.TokenOrder,
  step_tokens: int,
) -> tuple[jax.Array, jax.Array]:
  """Attention of one head.

  Args:
    query: [blocks, block size, K] float32, scaled.
    key: Same shape as query, not scaled.
    value: Same shape as key.
    mask: Any mask.
    token_order: Order of the blocks within each frame.
    step_tokens: Query tokens of a step of the loop.

  Returns:
    Output [blocks, block size, K], log-sum-exp [blocks, block size]; float32.
  """

  def step(
    results: tuple[jax.Array, jax.Array],
    bucket: tuple[jax.Array, jax.Array, jax.Array],
  ) -> tuple[tuple[jax.Array, ...], None]:
    rows, lists, bias = bucket
    scores = _products(_read(query, rows), key[lists])
    scores += bias[:, None, :, None]
    maximum = scores.max((2, 3))  # [R, n]
    # A list is whole within its step: no running maximum, no rescaling.
    weights = jnp.exp(scores - maximum[:, :, None, None])
    total = weights.sum((2, 3))
    output = jnp.einsum("rqws,rwsk->rqk", weights, value[lists])
    new = (output / total[:, :, None], maximum + jnp.log(total))
    results = (_write(x, rows, y) for x, y in zip(results, new))
    return tuple(results), None

  results = (jnp.zeros_like(query), jnp.zeros_like(query[..., 0]))
  return _over_buckets(
    step, results, mask, token_order, query.shape[1], step_tokens
  )


def backward(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  log_sum_exp: jax.Array,
  output_bar: jax.Array,
  offset: jax.Array,
  mask: mask_lib.Mask,
  token_order: mask_lib.TokenOrder,
  step_tokens: int,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients with respect to query, key and value.

  Args:
    query: Same as for `forward`, like key, value and the last three.
    key: See query.
    value: See query.
    log_sum_exp: [blocks, block size], from `forward`.
    output_bar: Cotangent of the output, shaped as query.
    offset: Sum over K of output * output_bar, less the cotangent of the
      log-sum-exp, [blocks, block size].
    mask: See query.
    token_order: See query.
    step_tokens: See query.
  """

  def step(
    bars: tuple[jax.Array, jax.Array, jax.Array],
    bucket: tuple[jax.Array, jax.Array, jax.Array],
  ) -> tuple[tuple[jax.Array, ...], None]:
    rows, lists, bias = bucket
    query_bar, key_bar, value_bar = bars
    queries, output_bars = _read(query, rows), _read(output_bar, rows)
    # Copies of the keys, W times as many as there are queries: the price of a
    # plain program for any mask.
    keys, values = key[lists], value[lists]
    column = lambda x: x[:, :, None, None]
    # A query block that does not exist has zero weights and adds nothing.
    log_sum_exps = column(_read(log_sum_exp, rows, jnp.inf))
    scores = _products(queries, keys) + bias[:, None, :, None]
    weights = jnp.exp(scores - log_sum_exps)  # [R, n, W, block size]
    weights_bar = _products(output_bars, values)
    scores_bar = weights * (weights_bar - column(_read(offset, rows)))
    query_share = jnp.einsum("rqws,rwsk->rqk", scores_bar, keys)
    key_share = jnp.einsum("rqws,rqk->rwsk", scores_bar, queries)
    value_share = jnp.einsum("rqws,rqk->rwsk", weights, output_bars)
    # A query block is in one step alone, so its gradient is written; a key
    # block is on many lists, also twice where 0 fills one up, so it adds.
    bars = (
      _write(query_bar, rows, query_share),
      key_bar.at[lists].add(key_share),
      value_bar.at[lists].add(value_share),
    )
    return bars, None

  bars = tuple(jnp.zeros_like(x) for x in (query, key, value))
  return _over_buckets(
    step, bars, mask, token_order, query.shape[1], step_tokens
  )


def _products(rows: jax.Array, keys: jax.Array) -> jax.Array:
  """[R, n, K] x [R, W, s, K] -> [R, n, W, s]."""
  return jnp.einsum("rqk,rwsk->rqws", rows, keys)


def _read(x: jax.Array, rows: jax.Array, fill: float = 0.0) -> jax.Array:
  return x.at[rows].get(mode="fill", fill_value=fill)


def _write(x: jax.Array, rows: jax.Array, new: jax.Array) -> jax.Array:
  return x.at[rows].set(new, mode="drop")


def _over_buckets(
  step: Callable[
    [tuple[jax.Array, ...], tuple[jax.Array, jax.Array, jax.Array]],
    tuple[tuple[jax.Array, ...], None],
  ],
  carry: tuple[jax.Array, ...],
  mask: mask_lib.Mask,
  token_order: mask_lib.TokenOrder,
  block_size: int,
  step_tokens: int,
) -> tuple[jax.Array, ...]:
  """Folds step(carry, bucket) over all query blocks."""
  rows_a_step = max(1, step_tokens // block_size)
  is_short = mask.num_blocks * block_size <= _SHORT_TOKENS
  max_ratio = _MAX_RATIO_SHORT if is_short else _MAX_RATIO
  for bucket in _buckets(mask, token_order, rows_a_step, max_ratio):
    carry, _ = lax.scan(step, carry, tuple(map(jnp.asarray, bucket)))
  return carry


# Every layer, forward and backward, has the same lists: they are sorted once.
@functools.lru_cache(maxsize=16)
def _buckets(
  mask: mask_lib.Mask,
  token_order: mask_lib.TokenOrder,
  rows_a_step: int,
  max_ratio: float,
) -> tuple[_Bucket, ...]:
  """All query blocks, in buckets of lists of similar length.

  Lists of five query blocks, taken two a step (x: filled up, masked by bias):

    by length   row 3 | 0 4       bucket 1 | step 1  row 3    0 4
                row 0 | 0 1 5     bucket 2 | step 1  row 0    0 1 5 x
                row 4 | 1 4 5              |         row 4    1 4 5 x
                row 1 | 0 1 2 5            | step 2  row 1    0 1 2 5
                row 2 | 0 2 3 5            |         row 2    0 2 3 5
  """
  offsets, indices = mask.block_lists(token_order)
  lengths = np.diff(offsets)
  by_length = np.argsort(lengths, kind="stable")
  buckets = []
  while by_length.size:
    limit = lengths[by_length[0]] * max_ratio
    count = int((lengths[by_length] <= limit).sum())
    rows, by_length = by_length[:count], by_length[count:]
    # A bucket smaller than a step would compute rows that do not exist.
    size = min(count, rows_a_step)
    steps = -(-count // size)
    filled = np.arange(lengths[rows].max()) < lengths[rows][:, None]
    lists = np.zeros((steps * size, filled.shape[1]), np.int32)
    bias = np.zeros(lists.shape, np.float32)
    lists[:count][filled] = np.concatenate(
      [indices[offsets[row] : offsets[row + 1]] for row in rows]
    )
    bias[:count][~filled] = -np.inf
    extra = np.full(steps * size - count, mask.num_blocks)
    rows = np.concatenate([rows, extra]).astype(np.int32)
    in_steps = lambda x: x.reshape(steps, -1, *x.shape[1:])
    buckets.append(_Bucket(*map(in_steps, (rows, lists, bias))))
  return tuple(buckets)
