"""Names of Hunyuan3D 2.1's shape autoencoder, and where its arrays go.

Query, key and value (`c_qkv`), and key and value (`c_kv`), are stored as one
matrix whose rows run head by head; ours are apart.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.weights import rules as weight_rules

Rule = weight_rules.Rule


def rules(config: shape_vae.ShapeVAEConfig) -> list[Rule]:
  """The table for an autoencoder of these sizes."""
  table = [
    *_linear("encoder.input_proj", "encoder.input_proj"),
    *_cross_block("encoder.cross_attn", "encoder.cross_block"),
    *_self_blocks(
      "encoder.self_attn", "encoder.blocks", config.num_encoder_layers
    ),
    *_norm("encoder.ln_post", "encoder.norm_post"),
    *_linear("pre_kl", "moments_proj"),
    *_linear("post_kl", "latents_proj"),
    *_self_blocks("transformer", "blocks", config.num_decoder_layers),
    *_linear("geo_decoder.query_proj", "field_decoder.query_proj"),
    *_cross_block(
      "geo_decoder.cross_attn_decoder", "field_decoder.cross_block"
    ),
    *_linear("geo_decoder.output_proj", "field_decoder.output_proj"),
  ]
  if config.use_field_norm:
    table += _norm("geo_decoder.ln_post", "field_decoder.norm_post")
  return table


def convert(
  checkpoint: Mapping[str, Any],
  vae: shape_vae.ShapeVAE,
  *,
  dtype: Any = np.float32,
) -> dict[str, np.ndarray]:
  """Parameters of `vae` (which may be abstract) by path.

  Args:
    checkpoint: State dict of the autoencoder, encoder included.
    vae: Its sizes must be the checkpoint's.
    dtype: Dtype of the result.

  Raises:
    ValueError: Names or shapes do not fit; all differences are listed.
  """
  return weight_rules.convert(
    rules(vae.config),
    checkpoint,
    weight_rules.param_shapes(vae),
    dtype=dtype,
  )


def _linear(source: str, target: str, index: str = "") -> list[Rule]:
  return [
    Rule(
      f"{source}.weight",
      f"{target}.kernel{index}",
      weight_rules.linear(),
    ),
    Rule(f"{source}.bias", f"{target}.bias{index}"),
  ]


def _norm(source: str, target: str, index: str = "") -> list[Rule]:
  return [
    Rule(f"{source}.weight", f"{target}.scale{index}"),
    Rule(f"{source}.bias", f"{target}.bias{index}"),
  ]


def _mlp_and_out(source: str, target: str, index: str = "") -> list[Rule]:
  """Rules that self- and cross-attention blocks share."""
  return [
    *_norm(
      f"{source}.attn.attention.q_norm",
      f"{target}.attention.query_norm",
      index,
    ),
    *_norm(
      f"{source}.attn.attention.k_norm",
      f"{target}.attention.key_norm",
      index,
    ),
    Rule(
      f"{source}.attn.c_proj.weight",
      f"{target}.attention.out.kernel{index}",
      weight_rules.linear(num_in_axes=2),
    ),
    Rule(f"{source}.attn.c_proj.bias", f"{target}.attention.out.bias{index}"),
    *_linear(f"{source}.mlp.c_fc", f"{target}.mlp.fc1", index),
    *_linear(f"{source}.mlp.c_proj", f"{target}.mlp.fc2", index),
  ]


def _self_blocks(source: str, target: str, num_layers: int) -> list[Rule]:
  table = []
  for layer in range(num_layers):
    block, index = f"{source}.resblocks.{layer}", f"[{layer}]"
    table += [
      Rule(
        f"{block}.attn.c_qkv.weight",
        tuple(
          f"{target}.attention.{name}.kernel{index}"
          for name in ("query", "key", "value")
        ),
        weight_rules.interleaved_heads(),
      ),
      *_norm(f"{block}.ln_1", f"{target}.norm1", index),
      *_norm(f"{block}.ln_2", f"{target}.norm2", index),
      *_mlp_and_out(block, target, index),
    ]
  return table


def _cross_block(source: str, target: str) -> list[Rule]:
  return [
    Rule(
      f"{source}.attn.c_q.weight",
      f"{target}.attention.query.kernel",
      weight_rules.linear(),
    ),
    Rule(
      f"{source}.attn.c_kv.weight",
      (
        f"{target}.attention.key.kernel",
        f"{target}.attention.value.kernel",
      ),
      weight_rules.interleaved_heads(),
    ),
    *_norm(f"{source}.ln_1", f"{target}.norm1"),
    *_norm(f"{source}.ln_2", f"{target}.norm_data"),
    *_norm(f"{source}.ln_3", f"{target}.norm2"),
    *_mlp_and_out(source, target),
  ]
