"""Checkpoints in Hunyuan3D 2.1's published layout, of any size, made up.

Names and shapes are written down here as the published files have them,
independently of the importer's tables. Values are random: weights such that
activations keep their size, everything else perturbed, so that nothing is
trivially zero or one.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import pathlib
import struct
import zipfile

import numpy as np

Shapes = dict[str, tuple[int, ...]]

_STORAGES = {"float16": "HalfStorage", "float32": "FloatStorage"}
_STORAGES["bfloat16"] = "BFloat16Storage"


@dataclasses.dataclass(frozen=True)
class DiTSizes:
  """Of a DiT; the defaults are the released ones."""

  depth: int = 21
  width: int = 2048
  heads: int = 16
  channels: int = 64
  context: int = 1024
  num_moe: int = 6
  experts: int = 8
  top_k: int = 2
  mlp_ratio: int = 4


@dataclasses.dataclass(frozen=True)
class VAESizes:
  """Of an autoencoder; the defaults are the released ones."""

  width: int = 1024
  heads: int = 16
  channels: int = 64
  encoder_layers: int = 8
  decoder_layers: int = 16
  freqs: int = 8
  point_feats: int = 4


@dataclasses.dataclass(frozen=True)
class ViTSizes:
  """Of a DINOv2; the defaults are the released ones."""

  width: int = 1024
  layers: int = 24
  heads: int = 16
  image: int = 518
  patch: int = 14
  mlp_ratio: int = 4


def dit_shapes(s: DiTSizes) -> Shapes:
  """Names of `model`."""
  shapes = _linear("x_embedder", s.channels, s.width)
  shapes |= _linear("t_embedder.mlp.0", s.width, 4 * s.width)
  shapes |= _linear("t_embedder.mlp.2", 4 * s.width, s.width)
  for block in range(s.depth):
    b = f"blocks.{block}."
    shapes |= _norm(b + "norm1", s.width)
    shapes |= _dit_attention(b + "attn1.", s, s.width)
    shapes |= _norm(b + "norm2", s.width)
    shapes |= _dit_attention(b + "attn2.", s, s.context)
    shapes |= _norm(b + "norm3", s.width)
    if block > s.depth // 2:
      shapes |= _norm(b + "skip_norm", s.width)
      shapes |= _linear(b + "skip_linear", 2 * s.width, s.width)
    hidden = s.mlp_ratio * s.width
    if s.depth - block > s.num_moe:
      shapes |= _linear(b + "mlp.fc1", s.width, hidden)
      shapes |= _linear(b + "mlp.fc2", hidden, s.width)
      continue
    for expert in range(s.experts):
      e = f"{b}moe.experts.{expert}.net."
      shapes |= _linear(e + "0.proj", s.width, hidden)
      shapes |= _linear(e + "2", hidden, s.width)
    shapes[b + "moe.gate.weight"] = (s.experts, s.width)
    shapes |= _linear(b + "moe.shared_experts.net.0.proj", s.width, hidden)
    shapes |= _linear(b + "moe.shared_experts.net.2", hidden, s.width)
  shapes |= _norm("final_layer.norm_final", s.width)
  return shapes | _linear("final_layer.linear", s.width, s.channels)


def vae_shapes(s: VAESizes) -> Shapes:
  """Names of `vae`."""
  features = 3 * (1 + 2 * s.freqs)
  shapes = _linear("encoder.input_proj", features + s.point_feats, s.width)
  shapes |= _vae_cross("encoder.cross_attn.", s)
  for layer in range(s.encoder_layers):
    shapes |= _vae_self(f"encoder.self_attn.resblocks.{layer}.", s)
  shapes |= _norm("encoder.ln_post", s.width)
  shapes |= _linear("pre_kl", s.width, 2 * s.channels)
  shapes |= _linear("post_kl", s.channels, s.width)
  for layer in range(s.decoder_layers):
    shapes |= _vae_self(f"transformer.resblocks.{layer}.", s)
  shapes |= _linear("geo_decoder.query_proj", features, s.width)
  shapes |= _vae_cross("geo_decoder.cross_attn_decoder.", s)
  shapes |= _norm("geo_decoder.ln_post", s.width)
  return shapes | _linear("geo_decoder.output_proj", s.width, 1)


def vit_shapes(s: ViTSizes) -> Shapes:
  """Names of a DINOv2, without the conditioner's prefix."""
  tokens = 1 + (s.image // s.patch) ** 2
  shapes = {
    "embeddings.cls_token": (1, 1, s.width),
    "embeddings.mask_token": (1, s.width),
    "embeddings.position_embeddings": (1, tokens, s.width),
    "embeddings.patch_embeddings.projection.weight": (
      s.width,
      3,
      s.patch,
      s.patch,
    ),
    "embeddings.patch_embeddings.projection.bias": (s.width,),
  }
  for layer in range(s.layers):
    b = f"encoder.layer.{layer}."
    shapes |= _norm(b + "norm1", s.width)
    for name in ("query", "key", "value"):
      shapes |= _linear(f"{b}attention.attention.{name}", s.width, s.width)
    shapes |= _linear(b + "attention.output.dense", s.width, s.width)
    shapes[b + "layer_scale1.lambda1"] = (s.width,)
    shapes |= _norm(b + "norm2", s.width)
    shapes |= _linear(b + "mlp.fc1", s.width, s.mlp_ratio * s.width)
    shapes |= _linear(b + "mlp.fc2", s.mlp_ratio * s.width, s.width)
    shapes[b + "layer_scale2.lambda1"] = (s.width,)
  return shapes | _norm("layernorm", s.width)


def whole(dit: DiTSizes, vae: VAESizes, vit: ViTSizes) -> Shapes:
  """The file that holds all three networks, its nesting as dots."""
  parts = {
    "model.": dit_shapes(dit),
    "vae.": vae_shapes(vae),
    "conditioner.main_image_encoder.model.": vit_shapes(vit),
  }
  return {
    prefix + name: shape
    for prefix, shapes in parts.items()
    for name, shape in shapes.items()
  }


def values(
  shapes: Shapes, seed: int = 0, dtype: str = "float16"
) -> Iterator[tuple[str, np.ndarray]]:
  """Random values, tensor by tensor."""
  rng = np.random.default_rng(seed)
  for name, shape in shapes.items():
    yield name, _value(name, shape, rng).astype(dtype)


def state(
  shapes: Shapes, seed: int = 0, dtype: str = "float16"
) -> dict[str, np.ndarray]:
  """All random values at once."""
  return dict(values(shapes, seed, dtype))


def write_torch(
  path: pathlib.Path,
  shapes: Shapes,
  tensors: Iterable[tuple[str, np.ndarray]],
  *,
  dtype: str = "float16",
  nested: Iterable[str] = ("model", "vae", "conditioner"),
) -> None:
  """Writes what torch.save would, one tensor in memory at a time.

  Args:
    path: The file.
    shapes: Shapes of all tensors, in order.
    tensors: The tensors, in the same order.
    dtype: Dtype of all tensors.
    nested: First words of names that are separate dictionaries.
  """
  tree: dict = {}
  for number, (name, shape) in enumerate(shapes.items()):
    part, _, rest = name.partition(".")
    place, key = (tree, name)
    if part in nested:
      place, key = tree.setdefault(part, {}), rest
    place[key] = (number, shape)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    archive.writestr("archive/data.pkl", pickle(tree, dtype))
    archive.writestr("archive/byteorder", b"little")
    for number, (_, tensor) in enumerate(tensors):
      entry = f"archive/data/{number}"
      with archive.open(entry, "w", force_zip64=True) as file:
        flat = np.ascontiguousarray(tensor).reshape(-1)
        file.write(flat.view(np.uint8).data)
    archive.writestr("archive/version", b"3\n")


def pickle(tree: Mapping, dtype: str) -> bytes:
  """The pickle of nested dictionaries; leaves are (storage number, shape)."""
  return b"\x80\x02" + _pickled(tree, dtype) + b"."


def _pickled(value, dtype) -> bytes:
  if isinstance(value, Mapping):
    items = b"".join(
      _text(key) + _pickled(item, dtype) for key, item in value.items()
    )
    return b"}(" + items + b"u"
  number, shape = value
  count = int(np.prod(shape))
  strides = [int(np.prod(shape[i + 1 :])) for i in range(len(shape))]
  storage = _text("storage") + f"ctorch\n{_STORAGES[dtype]}\n".encode()
  storage += _text(str(number)) + _text("cpu") + _integer(count)
  hooks = b"ccollections\nOrderedDict\n)R"
  return (
    b"ctorch._utils\n_rebuild_tensor_v2\n"
    + b"(("
    + storage
    + b"tQ"
    + _integer(0)
    + _integers(shape)
    + _integers(strides)
    + b"\x89"
    + hooks
    + b"tR"
  )


def _text(text: str) -> bytes:
  return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _integer(value: int) -> bytes:
  return b"J" + struct.pack("<i", value)


def _integers(values_) -> bytes:
  return b"(" + b"".join(map(_integer, values_)) + b"t"


def _value(name, shape, rng) -> np.ndarray:
  noise = rng.standard_normal(shape, np.float32)
  is_norm = "norm" in name or ".ln_" in name
  if name.endswith("weight") and not is_norm:
    fan_in = int(np.prod(shape[1:]))
    return noise / np.float32(np.sqrt(fan_in))
  if name.endswith("weight") or "lambda1" in name:
    return 1 + np.float32(0.1) * noise
  return np.float32(0.1) * noise


def _linear(name: str, inputs: int, outputs: int) -> Shapes:
  return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def _norm(name: str, width: int) -> Shapes:
  return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def _dit_attention(name: str, s: DiTSizes, context: int) -> Shapes:
  head = s.width // s.heads
  return {
    f"{name}to_q.weight": (s.width, s.width),
    f"{name}to_k.weight": (s.width, context),
    f"{name}to_v.weight": (s.width, context),
    f"{name}q_norm.weight": (head,),
    f"{name}k_norm.weight": (head,),
  } | _linear(f"{name}out_proj", s.width, s.width)


def _vae_attention_and_mlp(name: str, s: VAESizes) -> Shapes:
  head = s.width // s.heads
  return (
    _linear(name + "attn.c_proj", s.width, s.width)
    | _norm(name + "attn.attention.q_norm", head)
    | _norm(name + "attn.attention.k_norm", head)
    | _linear(name + "mlp.c_fc", s.width, 4 * s.width)
    | _linear(name + "mlp.c_proj", 4 * s.width, s.width)
    | _norm(name + "ln_1", s.width)
    | _norm(name + "ln_2", s.width)
  )


def _vae_self(name: str, s: VAESizes) -> Shapes:
  own = {name + "attn.c_qkv.weight": (3 * s.width, s.width)}
  return own | _vae_attention_and_mlp(name, s)


def _vae_cross(name: str, s: VAESizes) -> Shapes:
  own = {
    name + "attn.c_q.weight": (s.width, s.width),
    name + "attn.c_kv.weight": (2 * s.width, s.width),
  }
  own |= _vae_attention_and_mlp(name, s)
  return own | _norm(name + "ln_3", s.width)
