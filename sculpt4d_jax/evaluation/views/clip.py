"""Picture embeddings of CLIP's vision transformer, in JAX.

The weights are a folder in Hugging Face's layout: config.json and
model.safetensors or pytorch_model.bin. Pictures are resized to the model's size
by PIL's bicubic filter, cropped in the middle and normalised, as
`CLIPImageProcessor` does.

Source: Radford et al., Learning Transferable Visual Models From Natural
Language Supervision, 2021.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import functools
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.weights.tensor_files import open_file

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
_ACTIVATIONS = {
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
}
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class ClipConfig:
  """Sizes of the vision transformer, by Hugging Face's names."""

  hidden_size: int = 768
  intermediate_size: int = 3072
  num_hidden_layers: int = 12
  num_attention_heads: int = 12
  image_size: int = 224
  patch_size: int = 32
  projection_dim: int = 512
  hidden_act: str = "quick_gelu"
  layer_norm_eps: float = 1e-5

  @classmethod
  def read(cls, path: pathlib.Path) -> "ClipConfig":
    """Reads a config.json of the complete model or of its vision part.

    Raises:
      ValueError: It is not JSON, or names an unknown activation.
    """
    try:
      document = json.loads(path.read_text())
    except ValueError as error:
      raise UserError(
        f"{path} is not a readable JSON file: {error}."
      ) from error
    values = {**document, **(document.get("vision_config") or {})}
    # The complete model's projection; the parts contain a default value.
    if "vision_config" in document and "projection_dim" in document:
      values["projection_dim"] = document["projection_dim"]
    names = {field.name for field in dataclasses.fields(cls)}
    config = cls(**{k: v for k, v in values.items() if k in names})
    if config.hidden_act not in _ACTIVATIONS:
      raise UserError(
        f"{path}: the activation {config.hidden_act!r} is unknown; expected"
        f" one of {', '.join(_ACTIVATIONS)}."
      )
    return config


class Clip:
  """The vision transformer with its weights."""

  def __init__(self, config: ClipConfig, tensors: Mapping[str, np.ndarray]):
    """Takes tensors by Hugging Face's names.

    Raises:
      ValueError: A tensor is missing.
    """
    self.config = config
    self._params = _params(config, tensors)

  @classmethod
  def load(cls, folder: pathlib.Path) -> "Clip":
    """Reads a folder without executing code in it.

    Raises:
      ValueError: A file is missing or damaged.
    """
    config = ClipConfig.read(folder / "config.json")
    tensors = {}
    for path in open_file.find_files(folder):
      file = open_file.open_file(path)
      for name in file.tensors:
        if name.startswith(("vision_model.", "visual_projection.")):
          tensors[name] = file.read(name)
    return cls(config, tensors)

  def __call__(self, pictures: np.ndarray) -> np.ndarray:
    """Unit embeddings [N, P] of pictures, uint8 [N, H, W, 3]."""
    batches = [
      _embed(
        self.config,
        self._params,
        preprocess(pictures[i : i + _BATCH], self.config.image_size),
      )
      for i in range(0, len(pictures), _BATCH)
    ]
    found = np.concatenate(batches).astype(np.float64)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def preprocess(pictures: np.ndarray, size: int) -> np.ndarray:
  """Pictures as input of the network, float32 [N, size, size, 3]."""
  results = []
  for picture in pictures:
    height, width = picture.shape[:2]
    short = min(height, width)
    shape = (int(size * width / short), int(size * height / short))
    image = Image.fromarray(picture).resize(shape, Image.Resampling.BICUBIC)
    left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
    results.append(np.asarray(image.crop((left, top, left + size, top + size))))
  values = np.stack(results).astype(np.float32) / 255.0
  return (values - np.array(_MEAN, np.float32)) / np.array(_STD, np.float32)


def _params(config: ClipConfig, tensors: Mapping[str, np.ndarray]):
  def take(name: str) -> np.ndarray:
    if name not in tensors:
      raise UserError(f"the CLIP weights lack {name}.")
    return np.asarray(tensors[name], np.float32)

  def linear(name: str, keys: Sequence[str] = ("weight", "bias")):
    return [take(f"{name}.{key}") for key in keys]

  root = "vision_model"
  layers = []
  for i in range(config.num_hidden_layers):
    layer = f"{root}.encoder.layers.{i}"
    layers.append(
      {
        "norm1": linear(f"{layer}.layer_norm1"),
        "norm2": linear(f"{layer}.layer_norm2"),
        "q": linear(f"{layer}.self_attn.q_proj"),
        "k": linear(f"{layer}.self_attn.k_proj"),
        "v": linear(f"{layer}.self_attn.v_proj"),
        "out": linear(f"{layer}.self_attn.out_proj"),
        "fc1": linear(f"{layer}.mlp.fc1"),
        "fc2": linear(f"{layer}.mlp.fc2"),
      }
    )
  return {
    "patch": take(f"{root}.embeddings.patch_embedding.weight"),
    "class": take(f"{root}.embeddings.class_embedding"),
    "position": take(f"{root}.embeddings.position_embedding.weight"),
    # Spelt like this in the published weights.
    "pre": linear(f"{root}.pre_layrnorm"),
    "post": linear(f"{root}.post_layernorm"),
    "projection": take("visual_projection.weight"),
    "layers": layers,
  }


@functools.partial(jax.jit, static_argnums=0)
def _embed(
  config: ClipConfig, params: Mapping[str, Any], pictures: jax.Array
) -> jax.Array:
  """Embeddings [N, P] of prepared pictures."""
  # An accelerator's default precision is too low for a metric.
  with jax.default_matmul_precision("highest"):
    return _forward(config, params, pictures)


def _forward(
  config: ClipConfig, params: Mapping[str, Any], pictures: jax.Array
) -> jax.Array:
  norm = functools.partial(_layer_norm, epsilon=config.layer_norm_eps)
  linear = lambda weights, x: x @ weights[0].T + weights[1]
  stride = (config.patch_size,) * 2
  x = jax.lax.conv_general_dilated(
    pictures,
    params["patch"],
    stride,
    "VALID",
    dimension_numbers=("NHWC", "OIHW", "NHWC"),
  )
  x = x.reshape(len(x), -1, config.hidden_size)  # [N, patches, D]
  first = jnp.broadcast_to(params["class"], (len(x), 1, config.hidden_size))
  x = jnp.concatenate([first, x], axis=1) + params["position"]
  x = norm(params["pre"], x)
  heads = config.num_attention_heads
  split = lambda y: y.reshape(*y.shape[:2], heads, -1)
  for layer in params["layers"]:
    y = norm(layer["norm1"], x)
    q, k, v = (split(linear(layer[name], y)) for name in "qkv")
    y = jax.nn.dot_product_attention(q, k, v)
    x = x + linear(layer["out"], y.reshape(x.shape))
    y = linear(layer["fc1"], norm(layer["norm2"], x))
    x = x + linear(layer["fc2"], _ACTIVATIONS[config.hidden_act](y))
  return norm(params["post"], x[:, 0]) @ params["projection"].T


def _layer_norm(
  weights: Sequence[jax.Array], x: jax.Array, epsilon: float
) -> jax.Array:
  mean = x.mean(-1, keepdims=True)
  variance = jnp.square(x - mean).mean(-1, keepdims=True)
  scaled = (x - mean) * jax.lax.rsqrt(variance + epsilon)
  return scaled * weights[0] + weights[1]
