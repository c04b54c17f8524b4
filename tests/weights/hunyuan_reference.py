"""Hunyuan3D 2.1's networks in NumPy, straight from its tensors.

An evaluation that shares nothing with this project's models and importer: it
reads tensors by their published names, in PyTorch's layout, cuts heads as the
original does, and computes in float32. A tensor is asked for when it is needed,
so that a checkpoint of any size can be evaluated block by block.
"""

from collections.abc import Callable

import numpy as np
from scipy import special

from tests.weights import hunyuan_checkpoints

Get = Callable[[str], np.ndarray]
DiTSizes = hunyuan_checkpoints.DiTSizes
VAESizes = hunyuan_checkpoints.VAESizes
ViTSizes = hunyuan_checkpoints.ViTSizes


def dit(get: Get, s: DiTSizes, x, time, context) -> np.ndarray:
  """Velocity [B, N, C] of latents [B, N, C], times [B], context [B, I, W]."""
  tokens = _linear(get, "x_embedder", x)
  tokens = np.concatenate([time_token(get, s, time), tokens], axis=1)
  skips = []
  for block in range(s.depth):
    if block > s.depth // 2:
      tokens = dit_skip(get, block, skips.pop(), tokens)
    tokens = dit_block(get, s, block, tokens, context)
    if block < s.depth // 2:
      skips.append(tokens)
  tokens = _norm(get, "final_layer.norm_final", tokens)[:, 1:]
  return _linear(get, "final_layer.linear", tokens)


def time_token(get: Get, s: DiTSizes, time) -> np.ndarray:
  half = s.width // 2
  frequencies = np.exp(
    -np.log(10000.0) * np.arange(half, dtype=np.float32) / half
  )
  angles = np.asarray(time, np.float32)[:, None] * frequencies
  angles = angles.astype(np.float32)
  e = np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)
  hidden = _gelu(_linear(get, "t_embedder.mlp.0", e))
  return _linear(get, "t_embedder.mlp.2", hidden)[:, None]


def dit_skip(get: Get, block: int, skip, x) -> np.ndarray:
  name = f"blocks.{block}."
  x = _linear(get, name + "skip_linear", np.concatenate([skip, x], axis=-1))
  return _norm(get, name + "skip_norm", x)


def dit_block(get: Get, s: DiTSizes, block: int, x, context) -> np.ndarray:
  """One block, its skip already taken in."""
  b = f"blocks.{block}."
  x = x + _self_attention(get, b + "attn1.", s, _norm(get, b + "norm1", x))
  x = x + _cross_attention(
    get, b + "attn2.", s, _norm(get, b + "norm2", x), context
  )
  y = _norm(get, b + "norm3", x)
  if s.depth - block > s.num_moe:
    return x + _mlp(get, b + "mlp.fc1", b + "mlp.fc2", y)
  return x + _moe(get, b + "moe.", s, y)


def _self_attention(get, name, s, x):
  parts = [_linear(get, f"{name}to_{p}", x, bias=False) for p in "qkv"]
  # The original joins the three and cuts the result into heads.
  joined = np.concatenate(parts, axis=-1)
  joined = joined.reshape(*x.shape[:2], s.heads, -1)
  q, k, v = np.split(joined, 3, axis=-1)
  return _attend(get, name, q, k, v)


def _cross_attention(get, name, s, x, context):
  q = _linear(get, name + "to_q", x, bias=False)
  q = q.reshape(*x.shape[:2], s.heads, -1)
  parts = [_linear(get, f"{name}to_{p}", context, bias=False) for p in "kv"]
  joined = np.concatenate(parts, axis=-1)
  joined = joined.reshape(*context.shape[:2], s.heads, -1)
  k, v = np.split(joined, 2, axis=-1)
  return _attend(get, name, q, k, v)


def _attend(get, name, q, k, v):
  q = _rms(q) * get(name + "q_norm.weight")
  k = _rms(k) * get(name + "k_norm.weight")
  return _linear(get, name + "out_proj", _attention(q, k, v))


def _moe(get, name, s, x):
  tokens = x.reshape(-1, x.shape[-1])
  scores = _softmax(tokens @ get(name + "gate.weight").T)
  chosen = np.argsort(-scores, axis=-1)[:, : s.top_k]
  y = _mlp(
    get,
    name + "shared_experts.net.0.proj",
    name + "shared_experts.net.2",
    tokens,
  )
  for expert in range(s.experts):
    rows = np.flatnonzero((chosen == expert).any(axis=1))
    if len(rows):
      e = f"{name}experts.{expert}.net."
      out = _mlp(get, e + "0.proj", e + "2", tokens[rows])
      y[rows] += scores[rows, expert, None] * out
  return y.reshape(x.shape)


def vae_encode(get: Get, s: VAESizes, data, queries):
  """Moments [B, N, 2C] of surface rows and query rows."""
  embed = lambda rows: _linear(
    get,
    "encoder.input_proj",
    np.concatenate([fourier(rows[..., :3], s.freqs), rows[..., 3:]], -1),
  )
  x = _vae_cross(get, "encoder.cross_attn.", s, embed(queries), embed(data))
  for layer in range(s.encoder_layers):
    x = _vae_self(get, f"encoder.self_attn.resblocks.{layer}.", s, x)
  x = _norm(get, "encoder.ln_post", x, 1e-5)
  return _linear(get, "pre_kl", x)


def vae_field(get: Get, s: VAESizes, latents, points):
  """Field [B, Q] at points of latents that are divided by scale_factor."""
  x = _linear(get, "post_kl", latents)
  for layer in range(s.decoder_layers):
    x = _vae_self(get, f"transformer.resblocks.{layer}.", s, x)
  q = _linear(get, "geo_decoder.query_proj", fourier(points, s.freqs))
  q = _vae_cross(get, "geo_decoder.cross_attn_decoder.", s, q, x)
  q = _norm(get, "geo_decoder.ln_post", q, 1e-5)
  return _linear(get, "geo_decoder.output_proj", q)[..., 0]


def fourier(x, freqs: int):
  angles = x[..., None] * np.float32(2.0) ** np.arange(freqs)
  angles = angles.reshape(*x.shape[:-1], -1).astype(np.float32)
  return np.concatenate([x, np.sin(angles), np.cos(angles)], axis=-1)


def _vae_self(get, name, s, x):
  y = _norm(get, name + "ln_1", x)
  y = _linear(get, name + "attn.c_qkv", y, bias=False)
  y = y.reshape(*x.shape[:2], s.heads, -1)
  x = x + _vae_attend(get, name, *np.split(y, 3, axis=-1))
  return x + _vae_mlp(get, name, _norm(get, name + "ln_2", x))


def _vae_cross(get, name, s, x, data):
  q = _linear(get, name + "attn.c_q", _norm(get, name + "ln_1", x), bias=False)
  q = q.reshape(*x.shape[:2], s.heads, -1)
  data = _norm(get, name + "ln_2", data)
  kv = _linear(get, name + "attn.c_kv", data, bias=False)
  kv = kv.reshape(*data.shape[:2], s.heads, -1)
  x = x + _vae_attend(get, name, q, *np.split(kv, 2, axis=-1))
  return x + _vae_mlp(get, name, _norm(get, name + "ln_3", x))


def _vae_attend(get, name, q, k, v):
  q = _norm(get, name + "attn.attention.q_norm", q)
  k = _norm(get, name + "attn.attention.k_norm", k)
  return _linear(get, name + "attn.c_proj", _attention(q, k, v))


def _vae_mlp(get, name, x):
  return _mlp(get, name + "mlp.c_fc", name + "mlp.c_proj", x)


def vit(get: Get, s: ViTSizes, pixels) -> np.ndarray:
  """Tokens [B, I, D] of normalised pixels [B, 3, S, S]."""
  n = s.image // s.patch
  patches = pixels.reshape(-1, 3, n, s.patch, n, s.patch)
  patches = patches.transpose(0, 2, 4, 1, 3, 5).reshape(len(pixels), n * n, -1)
  projection = "embeddings.patch_embeddings.projection."
  weight = get(projection + "weight").reshape(s.width, -1)
  x = patches @ weight.T + get(projection + "bias")
  token = np.broadcast_to(
    get("embeddings.cls_token"), (len(pixels), 1, s.width)
  )
  x = np.concatenate([token, x], 1) + get("embeddings.position_embeddings")
  for layer in range(s.layers):
    b = f"encoder.layer.{layer}."
    y = _norm(get, b + "norm1", x)
    q, k, v = (
      _linear(get, f"{b}attention.attention.{name}", y).reshape(
        *y.shape[:2], s.heads, -1
      )
      for name in ("query", "key", "value")
    )
    y = _linear(get, b + "attention.output.dense", _attention(q, k, v))
    x = x + get(b + "layer_scale1.lambda1") * y
    y = _mlp(get, b + "mlp.fc1", b + "mlp.fc2", _norm(get, b + "norm2", x))
    x = x + get(b + "layer_scale2.lambda1") * y
  return _norm(get, "layernorm", x)


def _linear(get, name, x, *, bias: bool = True):
  y = x @ get(name + ".weight").T
  return y + get(name + ".bias") if bias else y


def _mlp(get, first, second, x):
  return _linear(get, second, _gelu(_linear(get, first, x)))


def _gelu(x):
  return x * np.float32(0.5) * (1 + special.erf(x / np.float32(np.sqrt(2.0))))


def _norm(get, name, x, epsilon: float = 1e-6):
  mean = x.mean(-1, keepdims=True)
  variance = np.square(x - mean).mean(-1, keepdims=True)
  y = (x - mean) / np.sqrt(variance + np.float32(epsilon))
  return y * get(name + ".weight") + get(name + ".bias")


def _rms(x):
  square = np.square(x).mean(-1, keepdims=True)
  return x / np.sqrt(square + np.float32(1e-6))


def _softmax(x):
  e = np.exp(x - x.max(-1, keepdims=True))
  return e / e.sum(-1, keepdims=True)


def _attention(q, k, v):
  """[B, Q, H, K], [B, S, H, K] -> [B, Q, H * K]."""
  scores = np.einsum("bqhk,bshk->bhqs", q, k, optimize=True)
  weights = _softmax(scores / np.float32(np.sqrt(q.shape[-1])))
  out = np.einsum("bhqs,bshk->bqhk", weights, v, optimize=True)
  return out.reshape(*out.shape[:2], -1)
