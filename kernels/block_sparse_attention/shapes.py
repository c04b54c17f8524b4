"""Named shapes, masks and inputs, shared by the tests and the benchmark."""

import dataclasses

import jax
import jax.numpy as jnp

from . import mask as mask_lib

PAPER_SCHEDULE = (1, 1, 2, 4, 8, 16)


@dataclasses.dataclass(frozen=True)
class AttentionShape:
  """One attention call: sizes of the arrays and of the blocks."""

  batch: int
  heads: int
  num_frames: int
  tokens_per_frame: int
  head_dim: int
  blocks_per_frame: int = 32

  @property
  def num_tokens(self) -> int:
    """Number of tokens of a clip, S."""
    return self.num_frames * self.tokens_per_frame

  @property
  def array_shape(self) -> tuple[int, int, int, int]:
    """Shape of query, key and value: [B, H, S, K]."""
    return (self.batch, self.heads, self.num_tokens, self.head_dim)

  def mask(self) -> mask_lib.BlockMask:
    """The paper's mask on these blocks."""
    return mask_lib.BlockMask(self.num_frames, self.blocks_per_frame)

  def dense_mask(self) -> mask_lib.BlockMask:
    """The mask in which every block sees every block."""
    return mask_lib.BlockMask.dense(self.num_frames, self.blocks_per_frame)


# The CPU sizes are small enough to time a backward pass in seconds (64 frames:
# a minute).
SHAPES = {
  "tiny_train": AttentionShape(16, 4, 8, 32, 24, blocks_per_frame=8),
  "quick_16f": AttentionShape(1, 1, 16, 512, 64),
  "cpu_8f": AttentionShape(1, 4, 8, 1024, 64),
  "cpu_16f": AttentionShape(1, 4, 16, 1024, 64),
  "cpu_32f": AttentionShape(1, 1, 32, 1024, 64),
  "cpu_64f": AttentionShape(1, 1, 64, 1024, 64),
  "cpu_8f_4096": AttentionShape(1, 1, 8, 4096, 64),
  "full_8f": AttentionShape(1, 16, 8, 4096, 128),
  "full_16f": AttentionShape(1, 16, 16, 4096, 128),
  "full_32f": AttentionShape(1, 16, 32, 4096, 128),
  "full_64f": AttentionShape(1, 16, 64, 4096, 128),
}


def random_inputs(
  shape: tuple[int, ...],
  dtype: jax.typing.DTypeLike = jnp.float32,
  size: float = 1.0,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Normal query, key and value of one shape; `size` scales query and key."""
  keys = jax.random.split(jax.random.key(0), 3)
  query, key, value = (jax.random.normal(k, shape) for k in keys)
  return tuple(x.astype(dtype) for x in (size * query, size * key, value))
