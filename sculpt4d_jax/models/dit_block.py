"""One block of the diffusion transformer; see `dit.py` for its formulas."""

import functools
from typing import NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax.models import attention
from sculpt4d_jax.models import dit_config
from sculpt4d_jax.models import frame_tokens
from sculpt4d_jax.models import head_layout
from sculpt4d_jax.models import layers
from sculpt4d_jax.models import remat
from sculpt4d_jax.models import token_layout
from sculpt4d_jax.models.moe import layer as moe

Array = array_types.Array
Float = array_types.Float
BlockKind = dit_config.BlockKind
DiTConfig = dit_config.DiTConfig
Tokens = frame_tokens.Tokens


class BlockOutput(NamedTuple):
  """Output tokens; the router's figures, None without experts."""

  x: Tokens
  aux_loss: Array | None
  router_load: Array | None


def temporal_layers(
  config: DiTConfig, *, rngs: nnx.Rngs
) -> dict[str, nnx.Module]:
  """The layers that a 4D block adds to a per-frame block."""
  dtypes = dict(
    dtype=jnp.dtype(config.dtype), param_dtype=jnp.dtype(config.param_dtype)
  )
  return dict(
    norm_temporal=layers.LayerNorm(config.width, **dtypes),
    temporal_attention=attention.TemporalAttention(
      config.width,
      config.num_heads,
      block_size=config.temporal_block_size,
      schedule=config.temporal_schedule,
      anchor_frames=config.temporal_anchor_frames,
      rope_theta=config.temporal_rope_theta,
      implementation=config.temporal_implementation,
      rngs=rngs,
      **dtypes,
    ),
  )


class Block(nnx.Module):
  """One block of the transformer; see `dit.py`."""

  def __init__(self, config: DiTConfig, kind: BlockKind, *, rngs: nnx.Rngs):
    width = config.width
    dtypes = dict(
      dtype=jnp.dtype(config.dtype), param_dtype=jnp.dtype(config.param_dtype)
    )
    kwargs = dict(rngs=rngs, **dtypes)
    spatial = dict(
      num_heads=config.num_heads,
      implementation=config.attention_implementation,
      **kwargs,
    )
    if kind.has_skip:
      self.skip_linear = layers.Linear(
        2 * width, width, kernel_axes=(None, "embed"), **kwargs
      )
      self.skip_norm = layers.LayerNorm(width, **dtypes)
    self.norm_spatial = layers.LayerNorm(width, **dtypes)
    self.spatial_attention = attention.SelfAttention(width, **spatial)
    self.norm_cross = layers.LayerNorm(width, **dtypes)
    self.cross_attention = attention.CrossAttention(
      width, context_width=config.context_width, **spatial
    )
    if config.temporal_mode != "none":
      for name, layer in temporal_layers(config, rngs=rngs).items():
        setattr(self, name, layer)
    self.norm_mlp = layers.LayerNorm(width, **dtypes)
    hidden = config.mlp_ratio * width
    if kind.is_moe:
      self.moe = moe.MoE(
        width,
        hidden,
        num_experts=config.num_experts,
        num_chosen=config.num_experts_per_token,
        aux_loss_weight=config.router_aux_loss_weight,
        implementation=config.moe_implementation,
        **kwargs,
      )
    else:
      self.mlp = layers.MLP(width, hidden, **kwargs)
    self.kind = kind

  def fuse_skip(self, x: Tokens, skip: Tokens) -> Tokens:
    """Replaces x by a projection of skip and x, both with channels D."""
    both = jax.tree.map(lambda *y: jnp.concatenate(y, -1), skip, x)
    fused = jax.tree.map(remat.product, self.skip_linear(both))
    return jax.tree.map(self.skip_norm, fused)

  def __call__(
    self,
    x: Tokens,
    context: Float[Array, "B F I W"] | attention.KeyValues,
    skip: Tokens | None = None,
    *,
    temporal_mode: str,
    token_order: str = "natural",
    temporal_weight: Float[Array, " B"] | None = None,
    frames_at_a_time: int = 0,
  ) -> BlockOutput:
    """Applies the block to the frames' tokens, with channels D.

    `skip` is the output of the matching block before the middle, `token_order`
    the order of the latent tokens' blocks; for the rest see `DiT.__call__`.
    """
    by_frames = functools.partial(token_layout.by_frames, frames_at_a_time)
    if self.kind.has_skip:
      x = by_frames(self.fuse_skip, x, skip)
    # Tokens are one array or two, and norms and sums treat each token alike.
    each = jax.tree.map
    store = lambda x: remat.product(head_layout.row_major(x))
    add = lambda x, y: each(lambda a, b: store(a + b), x, y)
    x = by_frames(
      lambda x: add(x, self.spatial_attention(each(self.norm_spatial, x))), x
    )
    x = by_frames(
      lambda x, context: add(
        x, self.cross_attention(each(self.norm_cross, x), context)
      ),
      x,
      context,
    )
    if temporal_mode != "none":
      update = self.temporal_attention(
        self.norm_temporal(frame_tokens.latents(x)),
        mode=temporal_mode,
        token_order=token_order,
      )
      if temporal_weight is not None:
        weight = temporal_weight.astype(update.dtype)
        update = update * weight[:, None, None, None]
      x = each(remat.product, frame_tokens.add_to_latents(x, update))
    if not self.kind.is_moe:
      x = by_frames(lambda x: add(x, self.mlp(each(self.norm_mlp, x))), x)
      return BlockOutput(x, None, None)

    def add_experts(x: Tokens) -> BlockOutput:
      # Experts take tokens of any frame, so all in one array.
      normed = frame_tokens.in_one(each(self.norm_mlp, x))
      y, aux_loss, load = self.moe(normed)
      return BlockOutput(add(x, frame_tokens.like(x, y)), aux_loss, load)

    if frames_at_a_time:  # Sampling, which needs no figures.
      x = by_frames(lambda x: add_experts(x).x, x)
      return BlockOutput(x, jnp.zeros(()), jnp.zeros(self.moe.num_experts))
    return add_experts(x)
