"""The DiT's training step in typical PyTorch, for comparison.

An independent second implementation: image encoder, transformer with temporal
attention and experts, field head, loss, AdamW with clipping, moving average. It
uses the JAX step's parameters and random draws, so the losses must agree;
`benchmarks/training/__main__.py` times both. It is typical PyTorch code: eager,
`scaled_dot_product_attention` (with a dense boolean temporal mask, because
sparse masks are not supported), a loop over experts, fused AdamW, float32. With
`is_compiled`, `torch.compile` compiles the loss and the sampler's velocity.

Needs PyTorch: pip install torch, also in the extra test-torch.
"""

from collections.abc import Mapping, Sequence
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from sculpt4d_jax.models import attention
from sculpt4d_jax.models import dit_config
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.training import optimizer as optimizer_lib

Tensor = torch.Tensor


def convert(
  flat: Mapping[str, np.ndarray], config: dit_config.DiTConfig
) -> nn.ParameterDict:
  """Our parameters by dotted path, in PyTorch's layout.

  Stacks of layers become separate layers, kernels [in, out] become weights
  [out, in]; dots become slashes, because PyTorch forbids dots in names.
  """
  first = {str(i): stage.first_block for i, stage in enumerate(config.stages)}
  params = {}
  for name, value in flat.items():
    value = np.asarray(value, np.float32)
    parts = name.split(".")
    if parts[:2] == ["dit", "stages"]:
      for layer, one in enumerate(value):
        path = ["dit", str(first[parts[2]] + layer), *parts[3:]]
        params["/".join(path)] = _weight(path, one)
    elif parts[:2] == ["image_encoder", "blocks"]:
      for layer, one in enumerate(value):
        path = ["image_encoder", str(layer), *parts[2:]]
        params["/".join(path)] = _weight(path, one)
    else:
      params["/".join(parts)] = _weight(parts, value)
  return nn.ParameterDict(
    {name: nn.Parameter(torch.tensor(x)) for name, x in params.items()}
  )


def _weight(path: Sequence[str], value: np.ndarray) -> np.ndarray:
  kind, layer = path[-1], path[-2]
  if kind == "bias" and "experts" not in path:
    return value.reshape(-1)
  if kind != "kernel":
    return value
  if "experts" in path:
    return np.ascontiguousarray(value.swapaxes(1, 2))  # [E, out, in]
  if layer == "out":  # [H, K, D]
    value = value.reshape(-1, value.shape[-1])
  elif layer in ("patch_proj", "stem"):  # [y, x, colour, D]
    value = value.reshape(-1, value.shape[-1])
  else:
    value = value.reshape(len(value), -1)
  return np.ascontiguousarray(value.T)


class TrainingStep:
  """Parameters, optimizer and average; call it to take a step."""

  def __init__(
    self,
    params: nn.ParameterDict,
    config: dit_config.DiTConfig,
    encoder: image_encoder_lib.ImageEncoderConfig,
    optimizer: optimizer_lib.OptimizerConfig,
    *,
    num_frames: int,
    num_tokens: int,
    field_weight: float,
    field_band: float,
    field_heads: int,
    field_freqs: int,
    is_compiled: bool = False,
  ):
    self.params = params
    self.config = config
    self.encoder = encoder
    self.field_weight = field_weight
    self.field_band = field_band
    self.field_heads = field_heads
    self.field_freqs = field_freqs
    self._optimizer_config = optimizer
    self._schedule = optimizer_lib.learning_rate_schedule(optimizer)
    self._list = list(params.values())
    self._ema = [p.detach().clone() for p in self._list]
    decays = {
      name: p
      for name, p in params.items()
      if name.endswith("kernel") and p.ndim > 1
    }
    others = [p for name, p in params.items() if name not in decays]
    self._adamw = torch.optim.AdamW(
      [
        dict(params=list(decays.values()), weight_decay=optimizer.weight_decay),
        dict(params=others, weight_decay=0.0),
      ],
      betas=(optimizer.b1, optimizer.b2),
      eps=optimizer.epsilon,
      fused=True,
    )
    self._steps = 0
    if is_compiled:
      self.loss = torch.compile(self.loss)
      self._dit = torch.compile(self._dit)
    mask = attention.temporal_mask(
      num_frames,
      num_tokens,
      config.temporal_block_size,
      config.temporal_schedule,
      config.temporal_anchor_frames,
    )
    blocks = torch.tensor(np.asarray(mask.dense_blocks()))
    size = config.temporal_block_size
    self._mask = blocks.repeat_interleave(size, 0).repeat_interleave(size, 1)
    self._rotation = _rotation(
      num_frames, config.head_dim, config.temporal_rope_theta
    )

  def __call__(self, batch: Mapping[str, Tensor]) -> float:
    """Takes a step; returns its loss.

    Args:
      batch: `latents` [B, F, N, C], `images` uint8 [B, F, S, S, 3], `samples`
        [B, F, Q, 4], and the draws `noise`, `time`, `keep` (of the context) and
        `temporal_weight`.
    """
    config = self._optimizer_config
    for group in self._adamw.param_groups:
      group["lr"] = float(self._schedule(self._steps))
    self._adamw.zero_grad(set_to_none=True)
    loss = self.loss(batch)
    loss.backward()
    nn.utils.clip_grad_norm_(self._list, config.max_grad_norm)
    self._adamw.step()
    rate = min(config.ema_decay, (1 + self._steps) / (10 + self._steps))
    with torch.no_grad():
      torch._foreach_lerp_(self._ema, self._list, 1.0 - rate)
    self._steps += 1
    return float(loss.detach())

  @torch.no_grad()
  def sample(
    self, images: Tensor, noise: Tensor, num_steps: int, scale: float
  ) -> Tensor:
    """Euler's method, guided at every call with both branches in one batch.

    Args:
      images: Pictures, uint8 [F, S, S, 3].
      noise: Initial state [F, N, C].
      num_steps: Number of times, both ends included.
      scale: Scale of guidance; 1 needs no branch without the pictures.
    """
    context = self._encode(images[None].float() / 127.5 - 1.0)
    if scale != 1:
      context = torch.cat((context, torch.zeros_like(context)))
    ones = torch.ones(len(context))
    x = noise[None]
    for step in range(num_steps - 1):
      time = ones * (step / (num_steps - 1))
      velocity, *without = self._dit(
        x.expand(len(ones), -1, -1, -1), time, context, ones
      )[0].split(1)
      for other in without:
        velocity = other + scale * (velocity - other)
      x = x + velocity / (num_steps - 1)
    return x[0]

  def loss(self, batch: Mapping[str, Tensor]) -> Tensor:
    """Losses of flow matching, the routers' balance and the field head."""
    context = self._encode(batch["images"].float() / 127.5 - 1.0)
    time, noise, latents = batch["time"], batch["noise"], batch["latents"]
    t = time[:, None, None, None]
    velocity, balance = self._dit(
      t * latents + (1 - t) * noise,
      time,
      context * batch["keep"],
      batch["temporal_weight"],
    )
    loss = F.mse_loss(velocity, latents - noise) + balance
    if self.field_weight:
      field = self._field(context, batch["samples"][..., :3])
      target = (batch["samples"][..., 3] / self.field_band).clamp(-1.0, 1.0)
      loss = loss + self.field_weight * F.l1_loss(field, target)
    return loss

  def _linear(self, name: str, x: Tensor, bias: bool = True) -> Tensor:
    p = self.params
    return F.linear(x, p[f"{name}/kernel"], p[f"{name}/bias"] if bias else None)

  def _norm(self, name: str, x: Tensor, epsilon: float = 1e-6) -> Tensor:
    p = self.params
    return F.layer_norm(
      x, x.shape[-1:], p[f"{name}/scale"], p[f"{name}/bias"], epsilon
    )

  def _mlp(self, name: str, x: Tensor) -> Tensor:
    return self._linear(f"{name}/fc2", F.gelu(self._linear(f"{name}/fc1", x)))

  def _attend(
    self,
    name: str,
    heads: int,
    x: Tensor,
    data: Tensor,
    *,
    norm: str | None = None,
    bias: bool = False,
    mask: Tensor | None = None,
    rotation: tuple[Tensor, Tensor] | None = None,
  ) -> Tensor:
    """Attention of x [B, Q, D] to data [B, S, W]."""
    split = lambda y: y.unflatten(-1, (heads, -1)).transpose(1, 2)
    query, key, value = (
      split(self._linear(f"{name}/{part}", y, bias))
      for part, y in (("query", x), ("key", data), ("value", data))
    )
    if norm == "rms":
      query, key = (
        F.rms_norm(y, y.shape[-1:], self.params[f"{name}/{part}/scale"], 1e-6)
        for part, y in (("query_norm", query), ("key_norm", key))
      )
    elif norm == "layer":
      query = self._norm(f"{name}/query_norm", query)
      key = self._norm(f"{name}/key_norm", key)
    if rotation is not None:
      query, key = (_rotate(y, rotation) for y in (query, key))
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return self._linear(f"{name}/out", out.transpose(1, 2).flatten(2))

  def _encode(self, images: Tensor) -> Tensor:
    """Context tokens [B, F, I, D] of pictures of the encoder's size."""
    c = self.encoder
    mean, std = torch.tensor(c.pixel_mean), torch.tensor(c.pixel_std)
    pixels = ((images + 1.0) / 2.0 - mean) / std
    clips, frames = pixels.shape[:2]
    pixels, size = pixels.flatten(0, 1), c.patch_size
    if c.stem_patch_size:
      small = F.gelu(
        self._linear("image_encoder/stem", _cut(pixels, c.stem_patch_size))
      )
      pixels, size = small, size // c.stem_patch_size
    x = self._linear(
      "image_encoder/patch_proj", _cut(pixels, size).flatten(1, 2)
    )
    token = self.params["image_encoder/class_token"].expand(len(x), 1, -1)
    x = torch.cat((token, x), 1) + self.params["image_encoder/positions"]
    for layer in range(c.num_layers):
      b = f"image_encoder/{layer}"
      y = self._norm(f"{b}/norm1", x)
      y = self._attend(f"{b}/attention", c.num_heads, y, y, bias=True)
      x = x + self.params[f"{b}/scale1"] * y
      y = self._mlp(f"{b}/mlp", self._norm(f"{b}/norm2", x))
      x = x + self.params[f"{b}/scale2"] * y
    x = self._norm("image_encoder/norm", x)
    return x.unflatten(0, (clips, frames))

  def _field(self, context: Tensor, points: Tensor) -> Tensor:
    b = "field_head/cross_block"
    tokens, x = context.flatten(0, 1), points.flatten(0, 1)
    angles = (x[..., None] * 2.0 ** torch.arange(self.field_freqs)).flatten(-2)
    x = torch.cat((x, angles.sin(), angles.cos()), -1)
    x = self._linear("field_head/query_proj", x)
    x = x + self._attend(
      f"{b}/attention",
      self.field_heads,
      self._norm(f"{b}/norm1", x),
      self._norm(f"{b}/norm_data", tokens),
      norm="layer",
    )
    x = x + self._mlp(f"{b}/mlp", self._norm(f"{b}/norm2", x))
    x = self._norm("field_head/norm_post", x, 1e-5)
    return self._linear("field_head/output_proj", x)[..., 0].reshape(
      points.shape[:-1]
    )

  def _dit(
    self,
    latents: Tensor,
    time: Tensor,
    context: Tensor,
    temporal_weight: Tensor,
  ) -> tuple[Tensor, Tensor]:
    c = self.config
    clips, frames, tokens, _ = latents.shape
    x = self._linear("dit/latent_embedding", latents)
    if c.num_token_indices:
      x = x + self.params["dit/token_indices"]
    half = c.width // 2
    frequencies = torch.exp(-math.log(1e4) * torch.arange(half) / half)
    angles = time[:, None] * frequencies
    token = self._mlp(
      "dit/time_embedding/mlp", torch.cat((angles.sin(), angles.cos()), -1)
    )
    token = token[:, None, None].expand(-1, frames, -1, -1)
    x = torch.cat((token, x), 2).flatten(0, 1)  # [B * F, 1 + N, D]
    context = context.flatten(0, 1)
    skips, balance = [], 0.0
    for index, kind in enumerate(c.block_kinds):
      b = f"dit/{index}"
      if kind.has_skip:
        x = self._linear(f"{b}/skip_linear", torch.cat((skips.pop(), x), -1))
        x = self._norm(f"{b}/skip_norm", x)
      y = self._norm(f"{b}/norm_spatial", x)
      x = x + self._attend(
        f"{b}/spatial_attention", c.num_heads, y, y, norm="rms"
      )
      x = x + self._attend(
        f"{b}/cross_attention",
        c.num_heads,
        self._norm(f"{b}/norm_cross", x),
        context,
        norm="rms",
      )
      y = self._norm(f"{b}/norm_temporal", x[:, 1:])
      y = y.reshape(clips, frames * tokens, -1)
      y = self._attend(
        f"{b}/temporal_attention",
        c.num_heads,
        y,
        y,
        norm="rms",
        mask=self._mask,
        rotation=self._rotation,
      )
      y = y * temporal_weight[:, None, None]
      y = y.reshape(clips * frames, tokens, -1)
      x = x + F.pad(y, (0, 0, 1, 0))
      y = self._norm(f"{b}/norm_mlp", x)
      if kind.is_moe:
        y, aux_loss = self._experts(f"{b}/moe", y)
        balance = balance + aux_loss
      else:
        y = self._mlp(f"{b}/mlp", y)
      x = x + y
      if kind.pushes:
        skips.append(x)
    x = self._linear("dit/final_linear", self._norm("dit/final_norm", x)[:, 1:])
    return x.unflatten(0, (clips, frames)), balance

  def _experts(self, name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    c, p = self.config, self.params
    rows = x.flatten(0, 1)
    probabilities = F.linear(rows, p[f"{name}/router/kernel"]).softmax(-1)
    gates, chosen = probabilities.topk(c.num_experts_per_token)
    y = self._mlp(f"{name}/shared_expert", rows)
    weights = [
      p[f"{name}/experts/{fc}/{part}"]
      for fc in ("fc1", "fc2")
      for part in ("kernel", "bias")
    ]
    for expert in range(c.num_experts):
      row, slot = torch.where(chosen == expert)
      kernel1, bias1, kernel2, bias2 = (w[expert] for w in weights)
      hidden = F.gelu(F.linear(rows[row], kernel1, bias1))
      out = F.linear(hidden, kernel2, bias2) * gates[row, slot, None]
      y = y.index_add(0, row, out)
    load = torch.bincount(chosen.flatten(), minlength=c.num_experts)
    load = load.float() / chosen.numel() * c.num_experts
    balance = (probabilities.mean(0) * load).sum()
    return y.reshape(x.shape), c.router_aux_loss_weight * balance


def _cut(pixels: Tensor, size: int) -> Tensor:
  """Patches [B, rows, columns, size * size * colours] of [B, S, S, colours]."""
  side = pixels.shape[1] // size
  patches = pixels.unflatten(1, (side, size)).unflatten(3, (side, size))
  return patches.transpose(2, 3).flatten(3)


def _rotation(
  num_frames: int, head_dim: int, theta: float
) -> tuple[Tensor, Tensor]:
  exponents = torch.arange(0, head_dim, 2) / head_dim
  angles = torch.arange(num_frames)[:, None] * theta**-exponents
  angles = angles.repeat_interleave(2, -1)
  return angles.cos(), angles.sin()


def _rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
  """Rotates [B, H, F * N, K] by the frames' angles."""
  cos, sin = (y[:, None] for y in rotation)  # [F, 1, K]
  y = x.unflatten(2, (len(cos), -1))
  turned = torch.stack((-y[..., 1::2], y[..., ::2]), -1).flatten(-2)
  return (y * cos + turned * sin).flatten(2, 3)
