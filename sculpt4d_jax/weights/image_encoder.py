"""Names of DINOv2 checkpoints, and where their arrays go in `ImageEncoder`.

Three namings are known and told apart by themselves: that of the transformers
library's version 4 (attention.query, ..., output.dense), which Hunyuan3D 2.1
stores; of its version 5 (q_proj, ..., o_proj); and that of the files that
torch.hub loads (blocks.0.attn.qkv), in which query, key and value are fused.
"""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np

from sculpt4d_jax.models import image_encoder
from sculpt4d_jax.weights import rules as weight_rules
from sculpt4d_jax.weights import transforms as weight_transforms
from sculpt4d_jax.weights.tensor_files import tensor_file

Naming = Literal["transformers4", "transformers5", "torch_hub"]
Rule = weight_rules.Rule

# Prefix of every name in the conditioner of Hunyuan3D 2.1.
CONDITIONER_PREFIX = "main_image_encoder.model."
# Learned for masked pretraining; no forward pass reads it.
IGNORE = (r".*embeddings\.mask_token", "mask_token")

_ATTENTION = {
  "transformers4": (
    "attention.attention.query",
    "attention.attention.key",
    "attention.attention.value",
    "attention.output.dense",
  ),
  "transformers5": (
    "attention.q_proj",
    "attention.k_proj",
    "attention.v_proj",
    "attention.o_proj",
  ),
}


def rules(
  num_layers: int, *, prefix: str = "", naming: Naming = "transformers4"
) -> list[Rule]:
  """The table for an encoder of `num_layers` blocks."""
  if naming == "torch_hub":
    return _torch_hub(num_layers, prefix)
  linear, flat = weight_rules.linear, weight_rules.flat
  embeddings = prefix + "embeddings."
  table = _outer_rules(
    embeddings + "cls_token",
    embeddings + "position_embeddings",
    embeddings + "patch_embeddings.projection",
    prefix + "layernorm",
  )
  source, target = prefix + "encoder.layer.{layer}.", "blocks."
  layer = _block_rules(source, "layer_scale{i}.lambda1")
  ours = ("query", "key", "value", "out")
  for name, theirs in zip(ours, _ATTENTION[naming], strict=True):
    path = f"{target}attention.{name}."
    num_in_axes = 2 if name == "out" else 1
    layer += [
      Rule(
        f"{source}{theirs}.weight",
        path + "kernel[{layer}]",
        linear(num_in_axes),
      ),
      Rule(f"{source}{theirs}.bias", path + "bias[{layer}]", flat()),
    ]
  return table + [
    rule.fill(layer=i) for i in range(num_layers) for rule in layer
  ]


def rules_for(
  config: image_encoder.ImageEncoderConfig, names: Iterable[str]
) -> list[Rule]:
  """The table in the naming that a checkpoint's names have."""
  names = list(names)
  has_prefix = any(name.startswith(CONDITIONER_PREFIX) for name in names)
  is_new = any(name.endswith("attention.q_proj.weight") for name in names)
  is_hub = any(name.endswith("attn.qkv.weight") for name in names)
  _refuse_variants(names)
  naming: Naming = "transformers5" if is_new else "transformers4"
  return rules(
    config.num_layers,
    prefix=CONDITIONER_PREFIX if has_prefix else "",
    naming="torch_hub" if is_hub else naming,
  )


def _refuse_variants(names: list[str]) -> None:
  """Says which DINOv2 this is not, in place of names that do not fit."""
  for name in names:
    if name.endswith(("register_tokens", "mlp.w12.weight")):
      raise tensor_file.CheckpointError(
        f"This is a DINOv2 with registers or SwiGLU layers ({name}), which the"
        " image encoder does not have; take one without, as dinov2_vitl14."
      )


def _outer_rules(
  class_token: str, positions: str, patches: str, norm: str
) -> list[Rule]:
  """What lies outside of the blocks, by its names in a checkpoint."""
  squeezed = weight_transforms.squeezed
  convolution = weight_transforms.convolution
  return [
    Rule(class_token, "class_token", squeezed()),
    Rule(positions, "positions", squeezed()),
    Rule(patches + ".weight", "patch_proj.kernel", convolution()),
    Rule(patches + ".bias", "patch_proj.bias"),
    Rule(norm + ".weight", "norm.scale"),
    Rule(norm + ".bias", "norm.bias"),
  ]


def _block_rules(source: str, scale: str) -> list[Rule]:
  """Norms, MLP and scales of a block, which all namings call much the same.

  Args:
    source: Prefix of a block's names, with `{layer}` for its number.
    scale: Name of the scale of residual branch `{i}`, 1 or 2.
  """
  layer = []
  for i in "12":
    norm, fc = f"norm{i}.", f"mlp.fc{i}."
    layer += [
      Rule(source + norm + "weight", f"blocks.{norm}scale[{{layer}}]"),
      Rule(source + norm + "bias", f"blocks.{norm}bias[{{layer}}]"),
      Rule(source + scale.format(i=i), f"blocks.scale{i}[{{layer}}]"),
      Rule(
        source + fc + "weight",
        f"blocks.{fc}kernel[{{layer}}]",
        weight_rules.linear(),
      ),
      Rule(source + fc + "bias", f"blocks.{fc}bias[{{layer}}]"),
    ]
  return layer


def _torch_hub(num_layers: int, prefix: str) -> list[Rule]:
  linear, flat = weight_rules.linear, weight_rules.flat
  fused = weight_transforms.stacked_heads
  table = _outer_rules(
    prefix + "cls_token",
    prefix + "pos_embed",
    prefix + "patch_embed.proj",
    prefix + "norm",
  )
  source, target = prefix + "blocks.{layer}.", "blocks."
  layer = _block_rules(source, "ls{i}.gamma")
  attention = target + "attention."
  for kind, ours in (("weight", "kernel"), ("bias", "bias")):
    targets = tuple(
      f"{attention}{name}.{ours}[{{layer}}]"
      for name in ("query", "key", "value")
    )
    layer.append(Rule(f"{source}attn.qkv.{kind}", targets, fused()))
  layer += [
    Rule(
      source + "attn.proj.weight", attention + "out.kernel[{layer}]", linear(2)
    ),
    Rule(source + "attn.proj.bias", attention + "out.bias[{layer}]", flat()),
  ]
  return table + [
    rule.fill(layer=i) for i in range(num_layers) for rule in layer
  ]


def convert(
  checkpoint: Mapping[str, Any],
  encoder: image_encoder.ImageEncoder,
  *,
  dtype: Any = np.float32,
) -> dict[str, np.ndarray]:
  """Parameters of `encoder` (which may be abstract) by path.

  Args:
    checkpoint: A DINOv2 state dict, or Hunyuan3D 2.1's conditioner, whose names
      have a prefix.
    encoder: Its sizes must be the checkpoint's.
    dtype: Dtype of the result.

  Raises:
    ValueError: Names or shapes do not fit; all differences are listed.
  """
  return weight_rules.convert(
    rules_for(encoder.config, checkpoint),
    checkpoint,
    weight_rules.param_shapes(encoder),
    ignore=IGNORE,
    dtype=dtype,
  )
