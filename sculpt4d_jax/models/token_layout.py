"""Order of token blocks in the DiT, and layers on some frames at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.models import attention
from sculpt4d_jax.models import dit_config

Array = array_types.Array


def by_frames(number: int, layer: Callable[..., Any], *arrays: Any) -> Any:
  """Applies a layer to some frames at a time; 0 takes all.

  The layer must not mix frames. Its temporary memory is that of the frames in a
  group; the size of a group is the largest divisor of the clip's frames that is
  at most `number`.

  Args:
    number: Largest number of frames at a time.
    layer: Function of trees of arrays [B, F, ...] to one like the first.
    *arrays: Its arguments.
  """
  num_frames = jax.tree.leaves(arrays)[0].shape[1]
  if not number or number >= num_frames or partitioning.current_mesh():
    return layer(*arrays)
  group = next(n for n in range(number, 0, -1) if num_frames % n == 0)

  def cut(x: jax.Array) -> jax.Array:
    x = x.reshape(x.shape[0], -1, group, *x.shape[2:])
    return jnp.swapaxes(x, 0, 1)

  def join(x: jax.Array) -> jax.Array:
    x = jnp.swapaxes(x, 0, 1)
    return x.reshape(x.shape[0], num_frames, *x.shape[3:])

  out = jax.lax.map(lambda parts: layer(*parts), jax.tree.map(cut, arrays))
  return jax.tree.map(join, out)


def block_order(
  config: dit_config.DiTConfig, mode: str, num_frames: int, num_tokens: int
) -> np.ndarray | None:
  """Order of the tokens' blocks inside the model; None is the natural one.

  All modes use the order that sparse attention needs. Sums over tokens then run
  in the same order, and a temporal layer that adds nothing changes no bit of
  the result.
  """
  if mode != "sparse" and num_tokens % config.temporal_block_size:
    return None  # The other modes need no blocks.
  mask = attention.temporal_mask(
    num_frames,
    num_tokens,
    config.temporal_block_size,
    config.temporal_schedule,
    config.temporal_anchor_frames,
  )
  return attention.contiguous_order(mask)


def reorder(x: Array, order: np.ndarray | None) -> Array:
  """Reorders the blocks of tokens [B, F, N, C]."""
  if order is None:
    return x
  blocks = x.reshape(*x.shape[:2], len(order), -1, x.shape[-1])
  return blocks[:, :, order].reshape(x.shape)
