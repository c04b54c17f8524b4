"""One head of attention over lists of key blocks, in plain JAX.

For masks of any kind. A query block gathers the key blocks on its list
(`Mask.block_lists`). Query blocks are sorted by the length of their list and
taken in buckets; within a bucket the lists are filled up with block 0, whose
scores are set to minus infinity. The backward pass recomputes the scores from the
log-sum-exp and scatters the gradients of the keys back, block by block.
"""

import functools
from typing import NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from . import mask as mask_lib

_STEP_TOKENS = 256  # Query tokens of a step of the loop.
_MAX_PADDING = 1.1  # Longest over shortest list of a bucket.


class _Bucket(NamedTuple):
  """Query blocks with lists of similar length, R blocks a step."""

  rows: np.ndarray  # Query blocks [steps, R].
  lists: np.ndarray  # Key blocks [steps, R, W].
  bias: np.ndarray  # Zero, or minus infinity where filled up; [steps, R, W].


def forward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: mask_lib.Mask,
    token_order: mask_lib.TokenOrder,
) -> tuple[jax.Array, jax.Array]:
  """Attention of one head.

  Args:
    query: [blocks, block size, K] float32, scaled.
    key: As query, not scaled.
    value: As key.
    mask: Any mask.
    token_order: Order in which the blocks of every frame come.

  Returns:
    Output [blocks, block size, K] and log-sum-exp [blocks, block size], float32.
  """

  def step(results, bucket):
    rows, lists, bias = bucket
    scores = _products(query[rows], key[lists]) + bias[:, None, :, None]
    maximum = scores.max((2, 3))  # [R, n]
    weights = jnp.exp(scores - maximum[:, :, None, None])
    total = weights.sum((2, 3))
    output = jnp.einsum("rqws,rwsk->rqk", weights, value[lists])
    new = (output / total[:, :, None], maximum + jnp.log(total))
    return tuple(x.at[rows].set(y) for x, y in zip(results, new)), None

  results = (jnp.zeros_like(query), jnp.zeros_like(query[..., 0]))
  return _over_buckets(step, results, mask, token_order, query.shape[1])


def backward(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    log_sum_exp: jax.Array,
    output_bar: jax.Array,
    offset: jax.Array,
    mask: mask_lib.Mask,
    token_order: mask_lib.TokenOrder,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Gradients with respect to query, key and value.

  Args:
    query: As in `forward`; so are key, value, mask and token_order.
    key: See query.
    value: See query.
    log_sum_exp: [blocks, block size], from `forward`.
    output_bar: Cotangent of the output, shaped as query.
    offset: Sum over K of output * output_bar, less the cotangent of the
      log-sum-exp, [blocks, block size].
    mask: See query.
    token_order: See query.
  """

  def step(bars, bucket):
    rows, lists, bias = bucket
    query_bar, key_bar, value_bar = bars
    column = lambda x: x[rows][:, :, None, None]
    scores = _products(query[rows], key[lists]) + bias[:, None, :, None]
    weights = jnp.exp(scores - column(log_sum_exp))  # [R, n, W, block size]
    weights_bar = _products(output_bar[rows], value[lists])
    scores_bar = weights * (weights_bar - column(offset))
    query_bar = query_bar.at[rows].set(
        jnp.einsum("rqws,rwsk->rqk", scores_bar, key[lists])
    )
    key_bar = key_bar.at[lists].add(
        jnp.einsum("rqws,rqk->rwsk", scores_bar, query[rows])
    )
    value_bar = value_bar.at[lists].add(
        jnp.einsum("rqws,rqk->rwsk", weights, output_bar[rows])
    )
    return (query_bar, key_bar, value_bar), None

  bars = tuple(jnp.zeros_like(x) for x in (query, key, value))
  return _over_buckets(step, bars, mask, token_order, query.shape[1])


def _products(rows: jax.Array, keys: jax.Array) -> jax.Array:
  """[R, n, K] x [R, W, s, K] -> [R, n, W, s]."""
  return jnp.einsum("rqk,rwsk->rqws", rows, keys)


def _over_buckets(step, carry, mask, token_order, block_size):
  rows_a_step = max(1, _STEP_TOKENS // block_size)
  for bucket in _buckets(mask, token_order, rows_a_step):
    carry, _ = lax.scan(step, carry, tuple(map(jnp.asarray, bucket)))
  return carry


@functools.lru_cache(maxsize=16)
def _buckets(
    mask: mask_lib.Mask, token_order: mask_lib.TokenOrder, rows_a_step: int
) -> tuple[_Bucket, ...]:
  """Query blocks in buckets, every bucket a whole number of equal steps."""
  offsets, indices = mask.block_lists(token_order)
  lengths = np.diff(offsets)
  by_length = np.argsort(lengths, kind="stable")
  buckets = []
  while by_length.size:
    limit = lengths[by_length[0]] * _MAX_PADDING
    count = int((lengths[by_length] <= limit).sum())
    whole = count - count % rows_a_step
    # What is left of a bucket opens the next one; at the very end, and where it
    # is all there is, it is a step of its own.
    taken, size = (whole, rows_a_step) if whole else (count, count)
    rows, by_length = by_length[:taken], by_length[taken:]
    width = int(lengths[rows].max())
    lists = np.zeros((taken, width), np.int32)
    filled = np.arange(width) < lengths[rows][:, None]
    lists[filled] = np.concatenate(
        [indices[offsets[r] : offsets[r + 1]] for r in rows]
    )
    bias = np.where(filled, 0, -np.inf).astype(np.float32)
    buckets.append(
        _Bucket(
            rows.reshape(-1, size).astype(np.int32),
            lists.reshape(-1, size, width),
            bias.reshape(-1, size, width),
        )
    )
  return tuple(buckets)
