"""Attention without a mask: softmax(query . key / sqrt(K)) . value.

Where no fused kernel applies, scores are computed in float32, a part at a time.
On accelerators a part is as large as memory allows; on CPUs it is as large as
the cache, which is faster than writing all scores to memory and reading them
back.
"""

import math

import jax
from jax import lax
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError

Array = array_types.Array
Float = array_types.Float

# Largest number of scores held by the "xla" implementation: 256 MiB in float32.
MAX_SCORES = 2**26
# Largest number of scores computed at once on CPUs, where larger parts leave
# the cache: 8 MiB.
CPU_SCORES = 2**21


def dot_product_attention(
  query: Float[Array, "B Q H K"],
  key: Float[Array, "B S H K"],
  value: Float[Array, "B S H K"],
  *,
  implementation: str | None = None,
  max_scores: int = MAX_SCORES,
  num_keys: int | None = None,
) -> Float[Array, "B Q H K"]:
  """softmax(query . key / sqrt(K)) . value, without a mask.

  Args:
    query: Queries.
    key: Keys.
    value: Values.
    implementation: "xla" runs everywhere, softmax in float32; "cudnn" is flash
      attention on NVIDIA GPUs, for float16 and bfloat16; "splash" is flash
      attention on TPUs, see `tpu_attention`; None takes the fastest that serves
      the platform and dtype.
    max_scores: Largest B*H*Q*S computed at once. Above it, "xla" works through
      the queries in chunks and recomputes the scores in the backward pass.
    num_keys: Number of keys that count, the first ones; None is all.

  Raises:
    ValueError: Unknown implementation.
  """
  if implementation is None:
    implementation = _fastest(query, key)
  if implementation == "splash":
    # Late, as it imports Pallas, which CPUs can spare.
    from sculpt4d_jax.models import tpu_attention

    return tpu_attention.attend(query, key, value, num_keys=num_keys)
  key, value = key[:, :num_keys], value[:, :num_keys]
  if implementation == "cudnn":
    return jax.nn.dot_product_attention(
      query, key, value, implementation="cudnn"
    )
  if implementation != "xla":
    raise UserError(
      f"Unknown implementation={implementation!r}: choose 'xla', 'cudnn',"
      " 'splash' or None."
    )
  batch, num_queries, heads, _ = query.shape
  scores_per_query = batch * heads * key.shape[1]
  num_scores = num_queries * scores_per_query
  if partitioning.platform()[0] == "cpu" and num_scores > CPU_SCORES:
    # Scores that fit into memory are stored for the backward pass.
    return _attend_by_heads(query, key, value, num_scores > max_scores)
  if num_scores <= max_scores:
    return attend_at_once(query, key, value)
  chunk = max(1, max_scores // scores_per_query)
  return _attend_in_chunks(query, key, value, chunk)


def attend_in_two_parts(
  query: tuple[Float[Array, "B S H K"], Float[Array, "B L H K"]],
  key: tuple[Float[Array, "B S H K"], Float[Array, "B L H K"]],
  value: tuple[Float[Array, "B S H K"], Float[Array, "B L H K"]],
  *,
  implementation: str | None = None,
) -> tuple[Float[Array, "B S H K"], Float[Array, "B L H K"]]:
  """`dot_product_attention` of one set in two arrays, many tokens and few.

  Args:
    query: Queries of both parts.
    key: Keys of both parts.
    value: Values of both parts.
    implementation: See `dot_product_attention`.
  """
  if implementation is None and partitioning.platform()[0] == "tpu":
    from sculpt4d_jax.models import tpu_attention

    if tpu_attention.serves_frame(query[0], key[0]):
      return tpu_attention.attend_frame(query, key, value)
  whole = (jnp.concatenate(parts, 1) for parts in (query, key, value))
  out = dot_product_attention(*whole, implementation=implementation)
  num_many = query[0].shape[1]
  return out[:, :num_many], out[:, num_many:]


def _fastest(query: Array, key: Array) -> str:
  platform = partitioning.platform()[0]
  is_half = query.dtype in (jnp.bfloat16, jnp.float16)
  width = query.shape[-1]
  if platform in ("gpu", "cuda") and is_half:
    # cuDNN's flash attention serves these head widths.
    return "cudnn" if width % 8 == 0 and width <= 128 else "xla"
  if platform == "tpu":
    from sculpt4d_jax.models import tpu_attention

    if tpu_attention.serves(query, key):
      return "splash"
  return "xla"


def attend_at_once(
  query: Float[Array, "B Q H K"],
  key: Float[Array, "B S H K"],
  value: Float[Array, "B S H K"],
) -> Float[Array, "B Q H K"]:
  """Computes all scores at once, softmax in float32."""
  scale = 1.0 / math.sqrt(query.shape[-1])
  # float32: exponentials of bfloat16 scores would be wrong by several per cent.
  scores = jnp.einsum(
    "bqhk,bshk->bhqs", query, key, preferred_element_type=jnp.float32
  )
  weights = jax.nn.softmax(scores * scale, axis=-1).astype(value.dtype)
  return jnp.einsum("bhqs,bshk->bqhk", weights, value)


def _attend_in_chunks(
  query: Array, key: Array, value: Array, chunk: int
) -> Array:
  batch, num_queries, heads, width = query.shape
  num_chunks = -(-num_queries // chunk)
  padding = num_chunks * chunk - num_queries
  # Padding queries are dropped from the output; keys need none.
  padded = jnp.pad(query, ((0, 0), (0, padding), (0, 0), (0, 0)))
  chunks = padded.reshape(batch, num_chunks, chunk, heads, width)
  attend = jax.checkpoint(
    lambda q: attend_at_once(q, key, value), prevent_cse=False
  )
  out = lax.map(attend, jnp.moveaxis(chunks, 1, 0))
  out = jnp.moveaxis(out, 0, 1).reshape(padded.shape)
  return out[:, :num_queries]


def _attend_by_heads(
  query: Array, key: Array, value: Array, recompute: bool
) -> Array:
  """Takes some heads, or queries of one: at most `CPU_SCORES` at once."""
  batch, num_queries, heads, width = query.shape
  scores_per_head = num_queries * key.shape[1]
  group = _divisor(batch * heads, CPU_SCORES // scores_per_head)
  num_parts = -(-group * scores_per_head // CPU_SCORES)  # Above 1 of one head.
  attend = _attend_float32
  if recompute:
    attend = jax.checkpoint(attend, prevent_cse=False)

  def attend_group(arrays: tuple[Array, Array, Array]) -> Array:
    query, key, value = arrays  # Each [group, tokens, K].
    if num_parts == 1:
      return attend(query, key, value)
    size = -(-num_queries // num_parts)
    padding = num_parts * size - num_queries
    parts = jnp.pad(query, ((0, 0), (0, padding), (0, 0)))
    parts = parts.reshape(num_parts, 1, size, width)
    out = lax.map(lambda part: attend(part, key, value), parts)
    return out.reshape(1, -1, width)[:, :num_queries]

  groups = tuple(
    x.swapaxes(1, 2).reshape(-1, group, x.shape[1], width)
    for x in (query, key, value)
  )
  out = lax.map(attend_group, groups)
  return out.reshape(batch, heads, num_queries, width).swapaxes(1, 2)


def _attend_float32(query: Array, key: Array, value: Array) -> Array:
  """[G, Q, K] x [G, S, K] -> [G, Q, K]; CPUs are slow with bfloat16."""
  dtype = value.dtype
  query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
  query = query / math.sqrt(query.shape[-1])
  scores = jnp.einsum("gqk,gsk->gqs", query, key)
  # The maximum cancels out of the result: no gradient need flow through it.
  maximum = lax.stop_gradient(scores.max(-1, keepdims=True))
  weights = jnp.exp(scores - maximum)
  output = jnp.einsum("gqs,gsk->gqk", weights, value)
  return (output / weights.sum(-1, keepdims=True)).astype(dtype)


def _divisor(number: int, limit: int) -> int:
  """The largest divisor of a number that is at most `limit`, or 1."""
  candidates = range(min(number, limit), 1, -1)
  return next((d for d in candidates if number % d == 0), 1)
