"""Dense attention on TPU: our kernels within a frame, or jax's splash kernels.

Both take multiples of their tiles. A frame here has 4096 tokens and one more,
and its context 1370. For splash attention, both are padded to the cheapest
block size, and segment ids keep the padding out of every softmax. Our kernels,
with a mask that hides nothing, take the 4096 tokens: the key of the other one
joins by the log-sum-exp, and its query is attended without a kernel. By the
compilers' schedules ours are faster within a frame on v5e, v5p and v6e, where
they are taken; `kernels/block_sparse_attention/bench/aot_dense.py` prints both.
"""

import functools
import math
from typing import Any

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as splash
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.kernels import block_sparse_attention as bsa
from sculpt4d_jax.kernels.block_sparse_attention.tpu import (
  attention as pallas_tpu,
)
from sculpt4d_jax.kernels.block_sparse_attention.tpu import tiles as tpu_tiles
from sculpt4d_jax.models import remat

Array = array_types.Array
Float = array_types.Float

_LANES = 128
_HEAD_DIMS = (64, 128)
# Largest blocks: a tile of float32 scores then takes 3 MiB of fast memory.
_MAX_QUERY_BLOCK = 512
_MAX_KEY_BLOCK = 1408
# v6e has room for more, and is faster with it, in bfloat16.
_MAX_QUERY_BLOCK_V6E = 1408
# With fewer queries or keys a kernel is not worth its overhead.
_MIN_KEYS = 256
# Chips whose schedules of both were compared.
_FRAME_CHIPS = ("v5e", "v5p", "v6e")
# Our kernels take whole pieces of this many tokens, at least so many of them.
_PIECE = 256
_MIN_PIECES = 4


def serves(query: Array, key: Array) -> bool:
  """Whether the kernels serve arrays [B, Q, H, K] and [B, S, H, K]."""
  return (
    query.dtype in (jnp.bfloat16, jnp.float32)
    and query.shape[-1] in _HEAD_DIMS
    and min(query.shape[1], key.shape[1]) >= _MIN_KEYS
  )


def attend(
  query: Float[Array, "B Q H K"],
  key: Float[Array, "B S H K"],
  value: Float[Array, "B S H K"],
  *,
  num_keys: int | None = None,
  interpret: bool = False,
) -> Float[Array, "B Q H K"]:
  """softmax(query . key / sqrt(K)) . value.

  Args:
    query: Queries.
    key: Keys.
    value: Values.
    num_keys: Number of keys that count, the first ones; None is all.
    interpret: Runs on any device, slowly.
  """
  num_keys = num_keys or key.shape[1]
  if num_keys == key.shape[1] and serves_frame(query, key, interpret=interpret):
    return _by_our_kernels(query, key, value, interpret)[0]
  num_queries = query.shape[1]
  block_q = _block(num_queries, _max_query_block(query.dtype))
  # Of the array's size, which a caller may have padded already.
  block_kv = _block(key.shape[1], _MAX_KEY_BLOCK)
  scale = np.asarray(1.0 / math.sqrt(query.shape[-1]), query.dtype)
  # Of keys and queries, those are scaled that are fewer.
  query = _fill(query, block_q)
  key, value = _fill(key * scale, block_kv), _fill(value, block_kv)
  out = _splash(query, key, value, num_keys, block_q, block_kv, interpret)
  return jnp.swapaxes(out, 1, 2)[:, :num_queries]


def padded_keys(num_keys: int, num_queries: int) -> int:
  """Keys that `attend` pads to, which a caller may do before they are made."""
  if min(num_keys, num_queries) < _MIN_KEYS:
    return num_keys
  block = _block(num_keys, _MAX_KEY_BLOCK)
  return -(-num_keys // block) * block


def padded_set(num_tokens: int, dtype: jnp.dtype) -> int:
  """Tokens that `attend` pads to, both as queries and as keys."""
  if num_tokens < _MIN_KEYS:
    return num_tokens
  block = _block(num_tokens, _max_query_block(dtype))
  return -(-num_tokens // block) * block


# The kernels' own rule, behind one of ours: the names of its results, by which
# a policy keeps them, are not seen inside of the kernels' compiled function.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def _splash(query: Array, key: Array, value: Array, *sizes: int) -> Array:
  return _splash_forward(query, key, value, *sizes)[0]


def _splash_forward(
  query: Array,
  key: Array,
  value: Array,
  num_keys: int,
  block_q: int,
  block_kv: int,
  interpret: bool,
) -> tuple[Array, Any]:
  num_heads = query.shape[1]
  kernel = _kernel(
    query.shape[2], key.shape[2], num_heads, block_q, block_kv, interpret
  )
  segments = splash.SegmentIds(
    q=jnp.zeros((query.shape[2],), jnp.int32),
    # Padding keys are segment 1, which no query is in. Padding queries may
    # attend; they are cut off later.
    kv=(jnp.arange(key.shape[2]) >= num_keys).astype(jnp.int32),
  )
  attend = jax.vmap(kernel, in_axes=(0, 0, 0, None))
  return jax.vjp(lambda *xs: attend(*xs, segments), query, key, value)


def _splash_backward(
  num_keys: int,
  block_q: int,
  block_kv: int,
  interpret: bool,
  vjp: Any,
  bar: Array,
) -> tuple[Array, Array, Array]:
  del num_keys, block_q, block_kv, interpret
  return vjp(bar)


_splash.defvjp(_splash_forward, _splash_backward)


def _max_query_block(dtype: jnp.dtype) -> int:
  if _chip() == "v6e" and dtype == jnp.bfloat16:
    return _MAX_QUERY_BLOCK_V6E
  return _MAX_QUERY_BLOCK


def serves_frame(query: Array, key: Array, *, interpret: bool = False) -> bool:
  """Whether our kernels serve tokens [B, S, H, K] that attend to each other.

  They are served in whole pieces, on the chips where our kernels are faster
  than splash attention.
  """
  pieces, left = divmod(query.shape[1], _PIECE)
  return (
    (interpret or _chip() in _FRAME_CHIPS)
    and query.shape == key.shape
    and query.dtype == jnp.bfloat16
    and query.shape[-1] in _HEAD_DIMS
    and pieces >= _MIN_PIECES
    and not left
  )


def _chip() -> str:
  """The kind of the mesh's devices, which need not be attached."""
  return tpu_tiles.chip_of(partitioning.platform()[1])


def attend_frame(
  query: tuple[Float[Array, "B S H K"], Float[Array, "B L H K"]],
  key: tuple[Float[Array, "B S H K"], Float[Array, "B L H K"]],
  value: tuple[Float[Array, "B S H K"], Float[Array, "B L H K"]],
  *,
  interpret: bool = False,
) -> tuple[Float[Array, "B S H K"], Float[Array, "B L H K"]]:
  """Attention among the tokens of a frame: many, in whole pieces, and few.

  Args:
    query: Queries of the many and of the few.
    key: Their keys.
    value: Their values.
    interpret: Runs on any device, slowly.
  """
  scale = 1.0 / math.sqrt(query[0].shape[-1])
  out, log_sum_exp = _by_our_kernels(query[0], key[0], value[0], interpret)
  # softmax over both = softmax over the many, weighted by their share of the
  # sum of exponentials, and the few keys by theirs.
  scores = scale * jnp.einsum(
    "bqhk,bshk->bqhs", query[0], key[1], preferred_element_type=jnp.float32
  )
  total = jax.nn.logsumexp(
    jnp.concatenate([log_sum_exp, scores], -1), -1, keepdims=True
  )
  out = out * jnp.exp(log_sum_exp - total) + jnp.einsum(
    "bqhs,bshk->bqhk", jnp.exp(scores - total), value[1].astype(jnp.float32)
  )
  return out.astype(query[0].dtype), _attend_to_parts(query[1], key, value)


def _by_our_kernels(
  query: Array, key: Array, value: Array, interpret: bool
) -> tuple[Array, Array]:
  """Output [B, S, H, K] and log-sum-exp [B, S, H, 1]."""
  # In the interpreter tiles have the width of one piece.
  where = dict(interpret=True) if interpret else dict(chip=_chip())
  out, log_sum_exp = pallas_tpu.attention(
    *(jnp.swapaxes(x, 1, 2) for x in (query, key, value)),
    bsa.BlockMask.dense(1, 1),
    scale=1.0 / math.sqrt(query.shape[-1]),
    **where,
  )
  # The barrier keeps the compiler from converting the whole array by itself.
  out = jax.lax.optimization_barrier(jnp.swapaxes(out, 1, 2))
  return out, jnp.swapaxes(log_sum_exp, 1, 2)[..., None]


def _attend_to_parts(
  query: Array, keys: tuple[Array, ...], values: tuple[Array, ...]
) -> Array:
  """Few queries [B, L, H, K] to keys in several arrays, which stay apart."""
  scale = 1.0 / math.sqrt(query.shape[-1])
  scores = [
    scale
    * jnp.einsum(
      "bqhk,bshk->bhqs", query, key, preferred_element_type=jnp.float32
    )
    for key in keys
  ]
  maximum = functools.reduce(
    jnp.maximum, [s.max(-1, keepdims=True) for s in scores]
  )
  # It cancels out of the result: no gradient need flow through it.
  maximum = jax.lax.stop_gradient(maximum)
  weights = [jnp.exp(s - maximum) for s in scores]
  total = sum(w.sum(-1, keepdims=True) for w in weights)
  return sum(
    jnp.einsum(
      "bhqs,bshk->bqhk",
      (w / total).astype(value.dtype),
      value,
      preferred_element_type=jnp.float32,
    )
    for w, value in zip(weights, values, strict=True)
  ).astype(query.dtype)


def _block(size: int, limit: int) -> int:
  """The cheapest block size: padding, plus a fixed cost for each block."""

  def cost(block: int) -> float:
    return -(-size // block) * block * (1 + _LANES / block)

  return min(range(_LANES, limit + 1, _LANES), key=cost)


def _fill(x: Array, block: int) -> Array:
  """[B, S, H, K] to [B, H, S', K], S' a multiple of the block."""
  fill = -x.shape[1] % block
  x = jnp.swapaxes(x, 1, 2)
  return jnp.pad(x, ((0, 0), (0, 0), (0, fill), (0, 0))) if fill else x


def _kernel(
  num_queries: int,
  num_keys: int,
  num_heads: int,
  block_q: int,
  block_kv: int,
  interpret: bool,
):
  mask = splash.MultiHeadMask(
    [splash.FullMask((num_queries, num_keys))] * num_heads
  )
  blocks = splash.BlockSizes(
    block_q=block_q,
    block_kv=block_kv,
    block_kv_compute=_compute_block(block_kv),
    block_q_dkv=block_q,
    block_kv_dkv=block_kv,
    block_kv_dkv_compute=_compute_block(block_kv),
    use_fused_bwd_kernel=True,
  )
  return splash.make_splash_mha_single_device(
    mask=mask,
    block_sizes=blocks,
    interpret=interpret,
    residual_checkpoint_name=remat.ATTENTION,
  )


def _compute_block(block: int) -> int:
  """The largest divisor of a block, in lanes, of at most 768."""
  lanes = block // _LANES
  best = max(n for n in range(1, lanes + 1) if lanes % n == 0 and n <= 6)
  return block if best == 1 else best * _LANES
