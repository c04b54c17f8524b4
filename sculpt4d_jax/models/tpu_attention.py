"""Dense attention on TPU: jax's splash kernels for any number of tokens.

The kernels take multiples of 128 tokens. A frame here has 1 + 4096 tokens and
its context 1370: both are padded to the cheapest block size, and segment ids
keep the padding out of every softmax.
"""

import math

import jax
from jax.experimental.pallas.ops.tpu import splash_attention as splash
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types

Array = array_types.Array
Float = array_types.Float

_LANES = 128
_HEAD_DIMS = (64, 128)
# Largest blocks: a tile of float32 scores then takes 3 MiB of fast memory.
_MAX_QUERY_BLOCK = 512
_MAX_KEY_BLOCK = 1408
# With fewer queries or keys a kernel is not worth its overhead.
_MIN_KEYS = 256


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
  interpret: bool = False,
) -> Float[Array, "B Q H K"]:
  """softmax(query . key / sqrt(K)) . value.

  Args:
    query: Queries.
    key: Keys.
    value: Values.
    interpret: Runs on any device, slowly.
  """
  num_queries, num_keys = query.shape[1], key.shape[1]
  block_q = _block(num_queries, _MAX_QUERY_BLOCK)
  block_kv = _block(num_keys, _MAX_KEY_BLOCK)
  scale = np.asarray(1.0 / math.sqrt(query.shape[-1]), query.dtype)
  num_heads = query.shape[2]
  query = _fill(query * scale, block_q)
  key, value = _fill(key, block_kv), _fill(value, block_kv)
  kernel = _kernel(
    query.shape[2], key.shape[2], num_heads, block_q, block_kv, interpret
  )
  segments = splash.SegmentIds(
    q=jnp.zeros((query.shape[2],), jnp.int32),
    # Padding keys are segment 1, which no query is in. Padding queries may
    # attend; they are cut off below.
    kv=(jnp.arange(key.shape[2]) >= num_keys).astype(jnp.int32),
  )
  out = jax.vmap(kernel, in_axes=(0, 0, 0, None))(query, key, value, segments)
  return jnp.swapaxes(out, 1, 2)[:, :num_queries]


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
    mask=mask, block_sizes=blocks, interpret=interpret
  )


def _compute_block(block: int) -> int:
  """The largest divisor of a block, in lanes, of at most 768."""
  lanes = block // _LANES
  best = max(n for n in range(1, lanes + 1) if lanes % n == 0 and n <= 6)
  return block if best == 1 else best * _LANES
