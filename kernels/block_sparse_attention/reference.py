"""Dense masked attention in float32: the specification of every backend.

Written to be read, not to be fast: the scores of all pairs of tokens are
stored. Gradients are those of automatic differentiation.
"""

import jax
import jax.numpy as jnp
import numpy as np

from . import mask as mask_lib


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: mask_lib.Mask,
  *,
  scale: float,
  token_order: mask_lib.TokenOrder = "natural",
) -> tuple[jax.Array, jax.Array]:
  """Attention over the token pairs that the mask allows.

  Args:
    query: [B, H, S, K]; S = num_frames * tokens_per_frame.
    key: Same shape and dtype as query.
    value: Same shape and dtype as query.
    mask: Visible key blocks of each query block.
    scale: Factor on the scores.
    token_order: Order of the blocks within each frame.

  Returns:
    Output [B, H, S, K] in the dtype of query, and the log-sum-exp of the scaled
    scores that each query sees, [B, H, S] float32.
  """
  seen = token_mask(mask, query.shape[2], token_order)
  query_f32, key_f32, value_f32 = (
    x.astype(jnp.float32) for x in (query, key, value)
  )
  scores = scale * jnp.einsum(
    "bhqk,bhsk->bhqs", query_f32, key_f32, precision="highest"
  )
  scores = jnp.where(seen, scores, -jnp.inf)
  log_sum_exp = jax.nn.logsumexp(scores, axis=-1)  # [B, H, S]
  weights = jnp.exp(scores - log_sum_exp[..., None])
  output = jnp.einsum(
    "bhqs,bhsk->bhqk", weights, value_f32, precision="highest"
  )
  return output.astype(query.dtype), log_sum_exp


def token_mask(
  mask: mask_lib.Mask, num_tokens: int, token_order: mask_lib.TokenOrder
) -> np.ndarray:
  """The mask for single tokens, [S, S] bool."""
  block_size = num_tokens // mask.num_blocks
  blocks = mask.dense_blocks(token_order)
  return blocks.repeat(block_size, 0).repeat(block_size, 1)
