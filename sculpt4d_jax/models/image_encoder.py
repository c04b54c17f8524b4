"""Encodes images as context tokens, by DINOv2.

Every `ContextEncoder` can condition the diffusion model: a callable from images
in [-1, 1] to tokens, with their number and width. The encoder includes the
resizing, cropping and normalisation that it was trained with.

"No image" is a context of zeros (`unconditional_context`), not the encoding of
a blank image.

Source: Oquab et al., DINOv2, 2023; preprocessing as in Hunyuan3D 2.1.
"""

import dataclasses
import functools
from typing import Any, Protocol

import einops
from flax import nnx
import jax
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import attention
from sculpt4d_jax.models import layers

Array = array_types.Array
AnyArray = array_types.AnyArray
Float = array_types.Float


_WAVE_HEIGHT = 0.5  # About the size of an embedded patch.


class ContextEncoder(Protocol):
  """Interface of the diffusion model's condition encoder."""

  @property
  def num_tokens(self) -> int:
    """Tokens of an image, I."""

  @property
  def width(self) -> int:
    """Width of a token, D."""

  def __call__(
    self, images: Float[AnyArray, "*B height width 3"]
  ) -> Float[Array, "*B I D"]:
    """Encodes images with values in [-1, 1], of any size."""


def unconditional_context(
  encoder: ContextEncoder, *leading: int, dtype: Any = jnp.float32
) -> Float[Array, "*B I D"]:
  """The context that stands for "no image": zeros."""
  return jnp.zeros((*leading, encoder.num_tokens, encoder.width), dtype)


@dataclasses.dataclass(frozen=True)
class ImageEncoderConfig:
  """Sizes of a DINOv2 transformer; the defaults are those of L/14 at 518.

  Attributes:
    image_size: Pixels along a side, after resizing and cropping.
    patch_size: Pixels along a patch's side; divides the image size.
    stem_patch_size: Side of small patches, pixels. A patch is embedded in two
      levels, first its small patches, which keeps details narrower than a
      patch. Divides the patch size; 0 embeds patches in one step.
    width: Width of the transformer, D.
    num_layers: Number of blocks.
    num_heads: Attention heads, H; divides the width.
    mlp_ratio: Hidden width of the MLPs over the width.
    position_init: Initial embeddings of the patches' positions: "normal", small
      and random, or "sinusoidal", which tells an encoder that starts from
      nothing from the first step on which patches are neighbours.
    layer_scale_init: Initial factor of every residual branch.
    pixel_mean: Means of red, green, blue in [0, 1].
    pixel_std: Standard deviations of red, green, blue.
    dtype: Dtype of the computation; norms are float32.
    param_dtype: Dtype of the parameters.
    scan_unroll: Blocks an iteration of the scan over layers.
    remat_policy: Residuals stored for the backward pass, see
      `layers.scan_layers`.
  """

  image_size: int = 518
  patch_size: int = 14
  width: int = 1024
  num_layers: int = 24
  num_heads: int = 16
  mlp_ratio: int = 4
  layer_scale_init: float = 1.0
  pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
  pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  scan_unroll: bool | int = 1
  remat_policy: str | None = None
  stem_patch_size: int = 0
  position_init: str = "normal"

  def __post_init__(self):
    # Configs read from a file contain lists.
    object.__setattr__(self, "pixel_mean", tuple(self.pixel_mean))
    object.__setattr__(self, "pixel_std", tuple(self.pixel_std))
    for name in (
      "image_size",
      "patch_size",
      "width",
      "num_layers",
      "num_heads",
      "mlp_ratio",
    ):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
    if self.image_size % self.patch_size:
      raise UserError(
        f"image_size={self.image_size} is not a multiple of patch_size="
        f"{self.patch_size}; the nearest that are:"
        f" {self.image_size // self.patch_size * self.patch_size} and"
        f" {-(-self.image_size // self.patch_size) * self.patch_size}."
      )
    if self.position_init not in ("normal", "sinusoidal"):
      raise UserError(
        f"position_init={self.position_init!r} must be 'normal' or"
        " 'sinusoidal'."
      )
    if self.stem_patch_size < 0 or (
      self.stem_patch_size and self.patch_size % self.stem_patch_size
    ):
      raise UserError(
        f"stem_patch_size={self.stem_patch_size} must be 0 or divide"
        f" patch_size={self.patch_size}."
      )
    if self.width % self.num_heads:
      raise UserError(
        f"width={self.width} is not a multiple of num_heads="
        f"{self.num_heads}; change one of them."
      )
    if len(self.pixel_mean) != 3 or len(self.pixel_std) != 3:
      raise UserError(
        "pixel_mean and pixel_std need a number for red, green and blue;"
        f" got {self.pixel_mean} and {self.pixel_std}."
      )
    if min(self.pixel_std) <= 0:
      raise UserError(f"pixel_std={self.pixel_std} must be positive.")

  @property
  def patches_per_side(self) -> int:
    """Patches along one side of an image."""
    return self.image_size // self.patch_size

  @property
  def stem_width(self) -> int:
    """Channels of a small patch."""
    return max(self.width // 4, 1)

  @property
  def num_tokens(self) -> int:
    """The class token and the patches, I."""
    return 1 + self.patches_per_side**2


class ViTBlock(nnx.Module):
  """Pre-norm block with per-channel scales of the residual branches."""

  def __init__(self, config: ImageEncoderConfig, *, rngs: nnx.Rngs):
    c = config
    kwargs = dict(dtype=c.dtype, param_dtype=c.param_dtype)
    self.dtype = c.dtype

    def layer_scale():
      scale = jnp.full((c.width,), c.layer_scale_init, c.param_dtype)
      return nnx.Param(scale, logical_axes=("embed",))

    self.norm1 = layers.LayerNorm(c.width, **kwargs)
    self.attention = attention.SelfAttention(
      c.width,
      c.num_heads,
      qk_norm=None,
      use_qkv_bias=True,
      rngs=rngs,
      **kwargs,
    )
    self.scale1 = layer_scale()
    self.norm2 = layers.LayerNorm(c.width, **kwargs)
    self.mlp = layers.MLP(c.width, c.mlp_ratio * c.width, rngs=rngs, **kwargs)
    self.scale2 = layer_scale()

  def __call__(
    self, x: Float[Array, "*B I D"], num_tokens: int | None = None
  ) -> Float[Array, "*B I D"]:
    """Applies attention and the MLP to the tokens of one image.

    The first `num_tokens` count, the others are padding; None is all.
    """
    branch = self.attention(self.norm1(x), num_tokens)
    x = x + self.scale1[...].astype(self.dtype) * branch
    branch = self.mlp(self.norm2(x))
    return x + self.scale2[...].astype(self.dtype) * branch


class ImageEncoder(nnx.Module):
  """DINOv2 without registers; returns all tokens."""

  def __init__(self, config: ImageEncoderConfig, *, rngs: nnx.Rngs):
    self.config = config
    c = config
    kwargs = dict(dtype=c.dtype, param_dtype=c.param_dtype)
    # A patch is (row, column, colour); its embedding is a strided convolution.
    patch = (c.patch_size, c.patch_size, 3)
    if not c.stem_patch_size:
      self.stem = None
    else:
      small = (c.stem_patch_size, c.stem_patch_size, 3)
      self.stem = layers.Linear(
        small,
        c.stem_width,
        kernel_axes=(None, None, None, "embed"),
        rngs=rngs,
        **kwargs,
      )
      side = c.patch_size // c.stem_patch_size
      patch = (side, side, c.stem_width)
    self.patch_proj = layers.Linear(
      patch,
      c.width,
      kernel_axes=(None, None, None, "embed"),
      rngs=rngs,
      **kwargs,
    )
    normal = functools.partial(
      _truncated_normal, rngs=rngs, dtype=c.param_dtype
    )
    self.class_token = nnx.Param(normal((c.width,)), logical_axes=("embed",))
    positions = normal((c.num_tokens, c.width))
    if c.position_init == "sinusoidal":
      waves = _waves(c.patches_per_side, c.width).astype(c.param_dtype)
      positions = positions.at[1:].add(waves)
    self.positions = nnx.Param(positions, logical_axes=(None, "embed"))
    self.blocks = layers.stack_layers(
      lambda r: ViTBlock(c, rngs=r), c.num_layers, rngs
    )
    self.norm = layers.LayerNorm(c.width, **kwargs)

  @property
  def num_tokens(self) -> int:
    """Tokens of an image, I: the class token and the patches."""
    return self.config.num_tokens

  @property
  def width(self) -> int:
    """Width of a token, D."""
    return self.config.width

  def embed(
    self, pixels: Float[AnyArray, "*B S S 3"]
  ) -> Float[Array, "*B I D"]:
    """Normalised pixels to class token and patches, with positions."""
    c = self.config
    *leading, height, width, _ = pixels.shape
    if (height, width) != (c.image_size, c.image_size):
      raise UserError(
        f"pixels {pixels.shape} must be {c.image_size} x {c.image_size}; call"
        " the encoder itself on images of other sizes."
      )
    side = c.patch_size
    if self.stem is not None:
      small = einops.rearrange(
        pixels,
        "... (row y) (column x) c -> ... row column y x c",
        y=c.stem_patch_size,
        x=c.stem_patch_size,
      )
      pixels = layers.gelu(self.stem(small))
      side //= c.stem_patch_size
    patches = einops.rearrange(
      pixels,
      "... (row y) (column x) c -> ... (row column) y x c",
      y=side,
      x=side,
    )
    tokens = self.patch_proj(patches)  # [*B, I - 1, D]
    class_token = jnp.broadcast_to(
      self.class_token[...].astype(c.dtype), (*leading, 1, c.width)
    )
    tokens = jnp.concatenate([class_token, tokens], axis=-2)
    return tokens + partitioning.gather(self.positions, c.dtype)

  def __call__(
    self, images: Float[AnyArray, "*B height width 3"]
  ) -> Float[Array, "*B I D"]:
    """Encodes images with values in [-1, 1], of any size; see `to_pixels`."""
    c = self.config
    pixels = to_pixels(images, c.image_size, c.pixel_mean, c.pixel_std)
    x, _ = layers.scan_layers(
      lambda block, x, _: (block(x, c.num_tokens), None),
      self.blocks,
      attention.fill_set(self.embed(pixels)),
      unroll=c.scan_unroll,
      remat_policy=c.remat_policy,
    )
    return self.norm(x[..., : c.num_tokens, :])


def to_pixels(
  images: Float[AnyArray, "*B height width 3"],
  size: int,
  mean: tuple[float, float, float],
  std: tuple[float, float, float],
) -> Float[Array, "*B size size 3"]:
  """Resizes the shorter side, crops the centre, normalises the colours.

  Args:
    images: Values in [-1, 1].
    size: Side of the result; the resizing is bilinear and antialiased.
    mean: Subtracted from colours in [0, 1].
    std: Divides the difference.

  Raises:
    ValueError: No colour images.
  """
  if images.ndim < 3 or images.shape[-1] != 3:
    raise UserError(
      f"images must be [..., height, width, 3], got {images.shape}."
    )
  # In bfloat16, colours would have only 8 bits before resizing.
  x = (jnp.asarray(images, jnp.float32) + 1.0) / 2.0
  *leading, height, width, _ = x.shape
  # The longer side is rounded down, as in torchvision.
  if height <= width:
    resized = (size, int(size * width / height))
  else:
    resized = (int(size * height / width), size)
  x = jax.image.resize(
    x,
    (*leading, *resized, 3),
    "linear",
    antialias=True,
    precision=jax.lax.Precision.HIGHEST,
  )
  top, left = (int(round((r - size) / 2.0)) for r in resized)
  x = x[..., top : top + size, left : left + size, :]
  return (x - jnp.asarray(mean)) / jnp.asarray(std)


def _waves(side: int, width: int) -> Array:
  """Sines and cosines of the rows and columns of patches [side^2, width].

  The longest wave spans four pictures, the shortest two patches.
  """
  count = -(-width // 4)
  frequencies = jnp.pi / 2 * (2.0 * side) ** jnp.linspace(0.0, 1.0, count)
  angles = jnp.linspace(-1.0, 1.0, side)[:, None] * frequencies / 2
  waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
  shape = (side, side, waves.shape[-1])
  grid = jnp.concatenate(
    [
      jnp.broadcast_to(waves[:, None], shape),
      jnp.broadcast_to(waves[None], shape),
    ],
    axis=-1,
  )
  return _WAVE_HEIGHT * grid.reshape(side * side, -1)[:, :width]


def _truncated_normal(
  shape: tuple[int, ...], rngs: nnx.Rngs, dtype: Any
) -> Array:
  """Standard deviation 0.02, truncated at two standard deviations."""
  key = rngs.params()
  if key is None:  # Only the shape is wanted.
    return jnp.zeros(shape, dtype)
  sample = jax.random.truncated_normal(key, -2.0, 2.0, shape)
  return (0.02 * sample).astype(dtype)
