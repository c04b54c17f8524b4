"""Infers sizes from a checkpoint's shapes and its config file.

A preset must match the checkpoint that is converted with it. Most sizes can be
inferred from shapes; `differences` lists the flags that correct them. Others
cannot: the heads of a network without q/k norm, experts per token, the latents'
scale. Released folders have them in a config file next to the weights, and
`check_config_file` compares the preset with it, as a wrong value would give
wrong results without an error.
"""

from collections.abc import Mapping
import json
import math
import pathlib
import re
from typing import Any

from sculpt4d_jax.weights.tensor_files import tensor_file

CheckpointError = tensor_file.CheckpointError

# Keys of a config.yaml -> our fields.
_YAML = {
  "dit": {
    "depth": "depth",
    "hidden_size": "width",
    "num_moe_layers": "num_moe_blocks",
    "num_experts": "num_experts",
    "moe_top_k": "num_experts_per_token",
  },
  "vae": {
    "scale_factor": "scale_factor",
    "num_freqs": "num_freqs",
    "num_encoder_layers": "num_encoder_layers",
    "num_decoder_layers": "num_decoder_layers",
  },
}
_JSON = {
  "image_encoder": {
    "hidden_size": "width",
    "num_attention_heads": "num_heads",
    "num_hidden_layers": "num_layers",
    "patch_size": "patch_size",
    "image_size": "image_size",
    "mlp_ratio": "mlp_ratio",
  },
}


def infer(part: str, tensors: Mapping[str, Any]) -> dict[str, Any]:
  """Fields of a part's configuration that its shapes determine.

  Args:
    part: "dit", "vae" or "image_encoder".
    tensors: Name -> object with a shape; fields of missing tensors are left
      out.
  """
  shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
  return {"dit": _dit, "vae": _vae, "image_encoder": _image_encoder}[part](
    shapes
  )


def differences(part: str, tensors: Mapping[str, Any], config: Any) -> str:
  """Message about sizes that differ from the preset's, or ""."""
  flags = [
    f"model.{part}.{field}={value}"
    for field, value in infer(part, tensors).items()
    if getattr(config, field) != value
  ]
  if not flags:
    return ""
  return (
    "  By its shapes the checkpoint is of another size than the preset; for"
    f" its own size set these fields of the preset:\n    {' '.join(flags)}\n"
  )


def check_config_file(part: str, file: pathlib.Path, config: Any) -> None:
  """Compares a preset with the config file next to a checkpoint, if any.

  Raises:
    CheckpointError: They differ; all different fields are listed.
  """
  found: dict[str, Any] = {}
  yaml, json_ = file.parent / "config.yaml", file.parent / "config.json"
  if part in _YAML and yaml.is_file():
    text = yaml.read_text(errors="replace")
    for key, field in _YAML[part].items():
      values = re.findall(rf"^\s*{key}\s*:\s*([-+.\w]+)", text, re.MULTILINE)
      # The file describes several networks: a key may be another one's too.
      if len(set(values)) == 1:
        found[field] = values[0]
  if part in _JSON and json_.is_file():
    try:
      content = json.loads(json_.read_text())
    except ValueError as error:
      raise CheckpointError(f"{json_} is no valid JSON: {error}.") from error
    for key, field in _JSON[part].items():
      if key in content:
        found[field] = content[key]
    if content.get("use_swiglu_ffn") or content.get("num_register_tokens"):
      raise CheckpointError(
        f"{json_} describes a DINOv2 with SwiGLU or registers, which the"
        " image encoder does not have; take one without, as large."
      )
  wrong = [
    f"{field} is {value} there and {getattr(config, field)} in the preset"
    for field, value in found.items()
    if not _is_equal(value, getattr(config, field))
  ]
  if wrong:
    raise CheckpointError(
      f"The config file next to {file} does not fit the preset:"
      f" {'; '.join(wrong)}. Set the preset's fields model.{part}.FIELD."
    )


def _is_equal(found: Any, ours: Any) -> bool:
  try:
    return math.isclose(float(found), float(ours), rel_tol=1e-6)
  except (TypeError, ValueError):
    return False


def _count(shapes: Mapping[str, tuple[int, ...]], pattern: str) -> int | None:
  """One more than the largest number that matches a pattern."""
  found = [re.match(pattern, name) for name in shapes]
  numbers = [int(match[1]) for match in found if match]
  return max(numbers) + 1 if numbers else None


def _known(**values: Any) -> dict[str, Any]:
  return {name: value for name, value in values.items() if value is not None}


def _axis(
  shapes: Mapping[str, tuple[int, ...]], name: str, axis: int
) -> int | None:
  shape = shapes.get(name)
  return shape[axis] if shape and len(shape) > axis else None


def _over(numerator: int | None, denominator: int | None) -> int | None:
  if not numerator or not denominator or numerator % denominator:
    return None
  return numerator // denominator


def _dit(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  width = _axis(shapes, "x_embedder.weight", 0)
  gates = [n for n in shapes if n.endswith(".moe.gate.weight")]
  hidden = [n for n in shapes if n.endswith(".mlp.fc1.weight")]
  hidden += [
    n for n in shapes if n.endswith(".shared_experts.net.0.proj.weight")
  ]
  return _known(
    depth=_count(shapes, r"blocks\.(\d+)\."),
    width=width,
    num_heads=_over(width, _axis(shapes, "blocks.0.attn1.q_norm.weight", 0)),
    latent_channels=_axis(shapes, "x_embedder.weight", 1),
    context_width=_axis(shapes, "blocks.0.attn2.to_k.weight", 1),
    mlp_ratio=_over(shapes[hidden[0]][0], width) if hidden else None,
    num_moe_blocks=len(gates),
    num_experts=shapes[gates[0]][0] if gates else None,
  )


def _vae(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  width = _axis(shapes, "post_kl.weight", 0)
  features = _axis(shapes, "geo_decoder.query_proj.weight", 1)
  rows = _axis(shapes, "encoder.input_proj.weight", 1)
  head = _axis(
    shapes, "transformer.resblocks.0.attn.attention.q_norm.weight", 0
  )
  mlp = _axis(shapes, "geo_decoder.cross_attn_decoder.mlp.c_fc.weight", 0)
  return _known(
    latent_channels=_axis(shapes, "post_kl.weight", 1),
    width=width,
    num_heads=_over(width, head),
    num_encoder_layers=_count(
      shapes, r"encoder\.self_attn\.resblocks\.(\d+)\."
    ),
    num_decoder_layers=_count(shapes, r"transformer\.resblocks\.(\d+)\."),
    num_freqs=(features // 3 - 1) // 2 if features else None,
    point_feats=rows - features if rows and features else None,
    field_mlp_ratio=_over(mlp, width),
    use_field_norm="geo_decoder.ln_post.weight" in shapes,
  )


def _image_encoder(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
  projection = "embeddings.patch_embeddings.projection.weight"
  positions, layer = "embeddings.position_embeddings", "encoder.layer"
  if "patch_embed.proj.weight" in shapes:  # The names of torch.hub.
    projection, positions = "patch_embed.proj.weight", "pos_embed"
    layer = "blocks"
  width, patch = _axis(shapes, projection, 0), _axis(shapes, projection, 2)
  tokens = _axis(shapes, positions, 1)
  hidden = _axis(shapes, f"{layer}.0.mlp.fc1.weight", 0)
  image = math.isqrt(tokens - 1) * patch if tokens and patch else None
  return _known(
    image_size=image,
    patch_size=patch,
    width=width,
    num_layers=_count(shapes, rf"{re.escape(layer)}\.(\d+)\."),
    mlp_ratio=_over(hidden, width),
  )
