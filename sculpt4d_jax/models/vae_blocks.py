"""Blocks of the shape autoencoder: encoder, transformer and field decoder.

Pre-norm transformer blocks with a LayerNorm of queries and keys per head.
Linear maps of queries, keys and values have no bias; all others do.

Source: Hunyuan3D 2.1, shape autoencoder; Zhang et al., 3DShape2VecSet, 2023.
"""

from typing import Any

from flax import nnx
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax.models import attention
from sculpt4d_jax.models import layers

Array = array_types.Array
AnyArray = array_types.AnyArray
Float = array_types.Float


def fourier_features(
  x: Float[AnyArray, "*B 3"], num_freqs: int, include_pi: bool = False
) -> Float[Array, "*B G"]:
  """Coordinates, their sines, their cosines, at frequencies 1, 2, 4, ...

  Sines and cosines run over the coordinates first: x f_0, x f_1, ..., y f_0.

  Args:
    x: Positions; computed in float32 for any dtype.
    num_freqs: Number of frequencies.
    include_pi: Whether the frequencies are multiples of pi.
  """
  # At the highest frequency, bfloat16 would cause a phase error of 36 degrees.
  x = jnp.asarray(x, jnp.float32)
  frequencies = 2.0 ** jnp.arange(num_freqs, dtype=jnp.float32)
  if include_pi:
    frequencies = frequencies * jnp.pi
  angles = (x[..., None] * frequencies).reshape(*x.shape[:-1], -1)
  return jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)], axis=-1)


class SelfBlock(nnx.Module):
  """x + attention(norm x), then x + mlp(norm x)."""

  def __init__(
    self,
    width: int,
    num_heads: int,
    *,
    rngs: nnx.Rngs,
    mlp_ratio: int = 4,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    kwargs = dict(dtype=dtype, param_dtype=param_dtype)
    self.norm1 = layers.LayerNorm(width, **kwargs)
    self.attention = attention.SelfAttention(
      width, num_heads, qk_norm="layer", rngs=rngs, **kwargs
    )
    self.norm2 = layers.LayerNorm(width, **kwargs)
    self.mlp = layers.MLP(width, mlp_ratio * width, rngs=rngs, **kwargs)

  def __call__(self, x: Float[Array, "*B N D"]) -> Float[Array, "*B N D"]:
    """Applies attention and the MLP to the tokens of one set."""
    x = x + self.attention(self.norm1(x))
    return x + self.mlp(self.norm2(x))


class CrossBlock(nnx.Module):
  """x + attention(norm x, norm data), then x + mlp(norm x)."""

  def __init__(
    self,
    width: int,
    num_heads: int,
    *,
    rngs: nnx.Rngs,
    mlp_ratio: int = 4,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    kwargs = dict(dtype=dtype, param_dtype=param_dtype)
    self.norm1 = layers.LayerNorm(width, **kwargs)
    self.norm_data = layers.LayerNorm(width, **kwargs)
    self.attention = attention.CrossAttention(
      width, num_heads, qk_norm="layer", rngs=rngs, **kwargs
    )
    self.norm2 = layers.LayerNorm(width, **kwargs)
    self.mlp = layers.MLP(width, mlp_ratio * width, rngs=rngs, **kwargs)

  def encode_data(self, data: Float[Array, "*B S D"]) -> attention.KeyValues:
    """Keys and values of the data; computed once for any number of queries."""
    return self.attention.encode_context(self.norm_data(data))

  def __call__(
    self, x: Float[Array, "*B Q D"], data: attention.KeyValues
  ) -> Float[Array, "*B Q D"]:
    """Applies cross-attention and the MLP; `data` is from `encode_data`."""
    x = x + self.attention(self.norm1(x), data)
    return x + self.mlp(self.norm2(x))


class PointEncoder(nnx.Module):
  """Surface rows to one feature vector a query row.

  A row is (position, unit normal, label); label 1 marks a sharp edge. Its
  features are (Fourier features of the position, normal, label), and ONE linear
  map serves the query rows and all rows.
  """

  def __init__(
    self,
    width: int,
    num_heads: int,
    num_layers: int,
    *,
    num_freqs: int,
    include_pi: bool,
    point_feats: int,
    rngs: nnx.Rngs,
    scan_unroll: bool | int = 1,
    remat_policy: str | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    kwargs = dict(dtype=dtype, param_dtype=param_dtype)
    self.num_freqs = num_freqs
    self.include_pi = include_pi
    self.scan_unroll = scan_unroll
    self.remat_policy = remat_policy
    self.input_proj = layers.Linear(
      3 * (1 + 2 * num_freqs) + point_feats,
      width,
      kernel_axes=(None, "embed"),
      rngs=rngs,
      **kwargs,
    )
    self.cross_block = CrossBlock(width, num_heads, rngs=rngs, **kwargs)
    self.blocks = layers.stack_layers(
      lambda r: SelfBlock(width, num_heads, rngs=r, **kwargs),
      num_layers,
      rngs,
    )
    # The reference uses torch's default epsilon for these two norms.
    self.norm_post = layers.LayerNorm(width, epsilon=1e-5, **kwargs)

  def features(self, rows: Float[AnyArray, "*B P R"]) -> Float[Array, "*B P G"]:
    """Fourier features of the positions, followed by the other columns."""
    position = fourier_features(rows[..., :3], self.num_freqs, self.include_pi)
    rest = jnp.asarray(rows[..., 3:], jnp.float32)
    return jnp.concatenate([position, rest], axis=-1)

  def attend(
    self, surface: Float[AnyArray, "*B P R"], queries: Float[AnyArray, "*B N R"]
  ) -> Float[Array, "*B N D"]:
    """The first block: cross-attention from query rows to all rows."""
    data = self.input_proj(self.features(surface))
    x = self.input_proj(self.features(queries))
    return self.cross_block(x, self.cross_block.encode_data(data))

  def __call__(
    self, surface: Float[AnyArray, "*B P R"], queries: Float[AnyArray, "*B N R"]
  ) -> Float[Array, "*B N D"]:
    """Encodes the surface at the query rows, by all blocks."""
    x = self.attend(surface, queries)
    return self.norm_post(
      run_blocks(self.blocks, x, self.scan_unroll, self.remat_policy)
    )


class FieldDecoder(nnx.Module):
  """The field at points, each of which attends to the tokens independently."""

  def __init__(
    self,
    width: int,
    num_heads: int,
    *,
    num_freqs: int,
    include_pi: bool,
    mlp_ratio: int,
    use_norm_post: bool,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    kwargs = dict(dtype=dtype, param_dtype=param_dtype)
    self.num_freqs = num_freqs
    self.include_pi = include_pi
    self.query_proj = layers.Linear(
      3 * (1 + 2 * num_freqs),
      width,
      kernel_axes=(None, "embed"),
      rngs=rngs,
      **kwargs,
    )
    self.cross_block = CrossBlock(
      width, num_heads, mlp_ratio=mlp_ratio, rngs=rngs, **kwargs
    )
    self.norm_post = (
      layers.LayerNorm(width, epsilon=1e-5, **kwargs) if use_norm_post else None
    )
    # Float32, because marching cubes interpolates between these values.
    self.output_proj = layers.Linear(
      width,
      1,
      kernel_axes=("embed", None),
      rngs=rngs,
      dtype=jnp.float32,
      param_dtype=param_dtype,
    )

  def encode_tokens(
    self, tokens: Float[Array, "*B N D"]
  ) -> attention.KeyValues:
    """Keys and values of the tokens for all points."""
    return self.cross_block.encode_data(tokens)

  def embed(self, points: Float[AnyArray, "*B Q 3"]) -> Float[Array, "*B Q D"]:
    """Query tokens of points: a projection of their Fourier features."""
    return self.query_proj(
      fourier_features(points, self.num_freqs, self.include_pi)
    )

  def __call__(
    self, tokens: attention.KeyValues, points: Float[AnyArray, "*B Q 3"]
  ) -> Float[Array, "*B Q"]:
    """Field at points, float32; `tokens` are from `encode_tokens`."""
    x = self.cross_block(self.embed(points), tokens)
    if self.norm_post is not None:
      x = self.norm_post(x)
    return self.output_proj(x)[..., 0]


def run_blocks(
  blocks: SelfBlock,
  x: Float[Array, "*B N D"],
  unroll: bool | int,
  remat_policy: str | None,
) -> Float[Array, "*B N D"]:
  """Runs stacked self-attention blocks."""
  x, _ = layers.scan_layers(
    lambda block, x, _: (block(x), None),
    blocks,
    x,
    unroll=unroll,
    remat_policy=remat_policy,
  )
  return x
