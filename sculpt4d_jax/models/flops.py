"""Floating point operations of the networks, part by part.

Only matrix products are counted, with two operations for a multiply-add. The
rest (norms, softmax, GELU) is below one per cent at the sizes of the released
model. Attention between T queries and S keys costs 4 T S D operations over all
heads, D the width; block-sparse attention costs the density of its mask times
that. Padding and recomputation by a backend are not counted.

Every function returns a dictionary from names of parts to integer numbers of
operations, in the order of execution.
"""

from collections.abc import Mapping

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import attention
from sculpt4d_jax.models import dit_config
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import shape_vae

Counts = dict[str, int]

# The part whose operations depend on the mask.
TEMPORAL_SCORES = "temporal attention: scores"


def linear(rows: int, in_features: int, out_features: int) -> int:
  """Operations of a linear layer."""
  return 2 * rows * in_features * out_features


def scores(num_queries: int, num_keys: int, width: int) -> int:
  """Scores and weighted sums of all heads, `width` in total."""
  return 4 * num_queries * num_keys * width


def mlp(rows: int, width: int, hidden_width: int) -> int:
  """Operations of two linear layers."""
  return 2 * linear(rows, width, hidden_width)


def add(*counts: Mapping[str, int]) -> Counts:
  """Sums dictionaries of parts."""
  total = {}
  for count in counts:
    for part, operations in count.items():
      total[part] = total.get(part, 0) + operations
  return total


def times(factor: int, counts: Mapping[str, int]) -> Counts:
  """Multiplies the operations of all parts."""
  return {part: factor * operations for part, operations in counts.items()}


def temporal_scores(
  config: dit_config.DiTConfig,
  num_frames: int,
  num_tokens: int,
  mode: str | None = None,
) -> int:
  """Scores of one layer of temporal attention, for one clip.

  Args:
    config: Configuration of the transformer.
    num_frames: F.
    num_tokens: Latent tokens N a frame.
    mode: Mode of temporal attention; overrides the configuration's.

  Raises:
    ValueError: The blocks do not divide the tokens; an unknown mode.
  """
  mode = config.temporal_mode if mode is None else mode
  tokens = num_frames * num_tokens
  if mode == "none":
    return 0
  if mode == "token":
    return scores(tokens, num_frames, config.width)
  if mode == "full":
    return scores(tokens, tokens, config.width)
  if mode != "sparse":
    raise UserError(
      f"Unknown temporal mode {mode!r}: choose one of"
      f" {attention.TEMPORAL_MODES}."
    )
  mask = attention.temporal_mask(
    num_frames,
    num_tokens,
    config.temporal_block_size,
    config.temporal_schedule,
    config.temporal_anchor_frames,
  )
  block = config.temporal_block_size
  return scores(block, block, config.width) * mask.num_pairs()


def dit_call(
  config: dit_config.DiTConfig,
  num_frames: int,
  num_tokens: int,
  num_context_tokens: int,
  mode: str | None = None,
) -> Counts:
  """One call of the transformer on one clip, with given keys of the context.

  Args:
    config: Configuration of the transformer.
    num_frames: F.
    num_tokens: Latent tokens N a frame.
    num_context_tokens: Context tokens I a frame.
    mode: Mode of temporal attention; overrides the configuration's.
  """
  mode = config.temporal_mode if mode is None else mode
  width, depth = config.width, config.depth
  latents = num_frames * num_tokens
  rows = num_frames * (num_tokens + 1)  # With the time token of each frame.
  project = linear(rows, width, width)
  hidden = config.mlp_ratio * width
  kinds = config.block_kinds
  num_moe = sum(kind.is_moe for kind in kinds)
  num_skips = sum(kind.has_skip for kind in kinds)
  has_temporal = mode != "none"
  return {
    "latent embedding": linear(latents, config.latent_channels, width),
    "time token": mlp(1, width, 4 * width),
    "skips": num_skips * linear(rows, 2 * width, width),
    "spatial attention: projections": depth * 4 * project,
    "spatial attention: scores": (
      depth * num_frames * scores(num_tokens + 1, num_tokens + 1, width)
    ),
    "cross-attention: projections": depth * 2 * project,
    "cross-attention: scores": depth * scores(rows, num_context_tokens, width),
    "temporal attention: projections": (
      has_temporal * depth * 4 * linear(latents, width, width)
    ),
    TEMPORAL_SCORES: (
      depth * temporal_scores(config, num_frames, num_tokens, mode)
    ),
    "MLP": (depth - num_moe) * mlp(rows, width, hidden),
    "MoE: router": num_moe * linear(rows, width, config.num_experts),
    "MoE: routed experts": (
      num_moe * config.num_experts_per_token * mlp(rows, width, hidden)
    ),
    "MoE: shared expert": num_moe * mlp(rows, width, hidden),
    "final layer": linear(latents, width, config.latent_channels),
  }


def dit_context(
  config: dit_config.DiTConfig, num_frames: int, num_context_tokens: int
) -> Counts:
  """Keys and values of the context for all blocks, once per clip."""
  rows = num_frames * num_context_tokens
  one = linear(rows, config.context_width, config.width)
  return {"cross-attention: keys and values": config.depth * 2 * one}


def image_encoder(
  config: image_encoder_lib.ImageEncoderConfig, num_images: int = 1
) -> Counts:
  """Images to context tokens, without resizing."""
  tokens, width = config.num_tokens, config.width
  patch = 3 * config.patch_size**2
  block = 4 * linear(tokens, width, width) + scores(tokens, tokens, width)
  block += mlp(tokens, width, config.mlp_ratio * width)
  if config.stem_patch_size:
    side = config.patch_size // config.stem_patch_size
    small = linear((tokens - 1) * side**2, 3 * config.stem_patch_size**2, 1)
    embed = small * config.stem_width
    embed += linear(tokens - 1, side**2 * config.stem_width, width)
  else:
    embed = linear(tokens - 1, patch, width)
  one = embed + config.num_layers * block
  return {"image encoder": num_images * one}


def vae_encoder(
  config: shape_vae.ShapeVAEConfig, num_shapes: int = 1
) -> Counts:
  """Surface rows to moments of the latents, without selection of rows."""
  queries, width = config.num_latents, config.width
  rows = queries * config.downsample_ratio
  features = 3 * (1 + 2 * config.num_freqs) + config.point_feats
  one = linear(queries + rows, features, width)
  one += 2 * linear(rows, width, width) + 2 * linear(queries, width, width)
  one += scores(queries, rows, width) + mlp(queries, width, 4 * width)
  block = 4 * linear(queries, width, width) + scores(queries, queries, width)
  block += mlp(queries, width, 4 * width)
  one += config.num_encoder_layers * block
  one += linear(queries, width, 2 * config.latent_channels)
  return {"VAE encoder": num_shapes * one}


def vae_decoder(
  config: shape_vae.ShapeVAEConfig, num_shapes: int = 1
) -> Counts:
  """Latents to tokens, and to their keys and values for field queries."""
  tokens, width = config.num_latents, config.width
  block = 4 * linear(tokens, width, width) + scores(tokens, tokens, width)
  block += mlp(tokens, width, 4 * width)
  one = linear(tokens, config.latent_channels, width)
  one += config.num_decoder_layers * block
  one += 2 * linear(tokens, width, width)
  return {"VAE decoder": num_shapes * one}


def field_queries(config: shape_vae.ShapeVAEConfig, num_points: int) -> Counts:
  """The field at points."""
  width = config.width
  features = 3 * (1 + 2 * config.num_freqs)
  one = linear(1, features, width) + 2 * linear(1, width, width)
  one += scores(1, config.num_latents, width)
  one += mlp(1, width, config.field_mlp_ratio * width) + linear(1, width, 1)
  return {"VAE field queries": num_points * one}
