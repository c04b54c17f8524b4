"""The vector-set autoencoder, from a surface to a set of latents to a field.

  surface rows --PointEncoder--> features --moments_proj--> mean, log-variance
  latents z --latents_proj--> self-attention blocks --> tokens
  tokens, points --FieldDecoder--> field, positive inside, surface at 0

Every frame is a separate shape. Arrays may have any leading axes; [B, F] for
clips is usual. The caller makes sequences coherent: query rows correspond
between frames (`geometry/farthest_points.py`), and ONE noise is used for all
frames (`sequence_noise`).

The diffusion model uses `scale_factor * z`, whose variance is about 1.

Source: Hunyuan3D 2.1, shape autoencoder; Zhang et al., 3DShape2VecSet, 2023;
Sculpt4D, section "shared-noise VAE".
"""

from collections.abc import Sequence
import dataclasses
import functools
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import attention
from sculpt4d_jax.models import layers
from sculpt4d_jax.models import vae_blocks

Array = array_types.Array
AnyArray = array_types.AnyArray
Float = array_types.Float
PRNGKey = array_types.PRNGKey

_ANCHOR_EXTENT = 0.8  # Shapes keep a margin to the faces of the cube.
TOKEN_ORDERS = ("drawn", "spatial", "anchored")


@dataclasses.dataclass(frozen=True)
class ShapeVAEConfig:
  """Sizes of the autoencoder; the defaults are those of Hunyuan3D 2.1.

  Attributes:
    num_latents: Latent tokens of a shape, N.
    latent_channels: Channels of a latent, C.
    width: Width of the transformers, D.
    num_heads: Attention heads, H; divides the width.
    num_encoder_layers: Self-attention blocks after the first cross-attention.
    num_decoder_layers: Self-attention blocks before the field decoder.
    num_freqs: Frequencies of the positions' Fourier features.
    include_pi: Whether those frequencies are multiples of pi.
    point_feats: Columns of a surface row after the position.
    downsample_ratio: Surface rows read for each query.
    field_mlp_ratio: Hidden width of the field decoder's MLP over its width.
    use_field_norm: Whether the field decoder has a norm before its output.
    scale_factor: Diffusion latents are this times z.
    token_order: Order of a clip's latent tokens: "drawn" is the order of
      farthest-point sampling; "spatial" splits the points recursively along y,
      x and z, so that token i is in about the same region of every clip;
      "anchored" takes fixed points of the cube (`anchor_rows`) as queries
      instead of points of the surface, so that token i means the same in every
      clip.
    dtype: Dtype of the computation; norms and the field's last layer are
      float32.
    param_dtype: Dtype of the parameters.
    scan_unroll: Blocks an iteration of the scan over layers.
    remat_policy: Residuals stored for the backward pass, see
      `layers.scan_layers`.
  """

  num_latents: int = 4096
  latent_channels: int = 64
  width: int = 1024
  num_heads: int = 16
  num_encoder_layers: int = 8
  num_decoder_layers: int = 16
  num_freqs: int = 8
  include_pi: bool = False
  point_feats: int = 4
  downsample_ratio: int = 20
  field_mlp_ratio: int = 4
  use_field_norm: bool = True
  scale_factor: float = 1.0039506158752403
  dtype: Any = jnp.float32
  param_dtype: Any = jnp.float32
  scan_unroll: bool | int = 1
  remat_policy: str | None = None
  token_order: str = "drawn"

  def __post_init__(self):
    if self.token_order not in TOKEN_ORDERS:
      raise UserError(
        f"token_order={self.token_order!r}: choose one of {TOKEN_ORDERS}."
      )
    for name in (
      "num_latents",
      "latent_channels",
      "width",
      "num_heads",
      "num_encoder_layers",
      "num_decoder_layers",
      "num_freqs",
      "downsample_ratio",
      "field_mlp_ratio",
    ):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
    if self.point_feats < 0:
      raise UserError(f"point_feats={self.point_feats} must not be negative.")
    if self.width % self.num_heads:
      raise UserError(
        f"width={self.width} is not a multiple of num_heads="
        f"{self.num_heads}; change one of them."
      )
    if not (self.scale_factor > 0 and math.isfinite(self.scale_factor)):
      raise UserError(
        f"scale_factor={self.scale_factor} must be positive and finite."
      )

  @property
  def row_width(self) -> int:
    """Columns of a surface row: position, normal, label."""
    return 3 + self.point_feats


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("mean", "log_variance"),
  meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class Posterior:
  """A diagonal Gaussian over latents.

  Attributes:
    mean: Means, float32 [..., N, C].
    log_variance: Natural logarithms of the variances, in [-30, 20].
  """

  mean: Array
  log_variance: Array

  @classmethod
  def from_moments(cls, moments: Float[Array, "... N moments"]) -> "Posterior":
    """Splits [..., N, 2C] into means and log-variances, and clips these."""
    # In half precision, exp() of the log-variance is inaccurate for small
    # variances.
    mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return cls(mean, jnp.clip(log_variance, -30.0, 20.0))

  @property
  def std(self) -> Float[Array, "... N C"]:
    """Standard deviations."""
    return jnp.exp(0.5 * self.log_variance)

  def mode(self) -> Float[Array, "... N C"]:
    """The most likely latents, which are the means."""
    return self.mean

  def sample(
    self, noise: Float[AnyArray, "... N C"]
  ) -> Float[Array, "... N C"]:
    """Draws mean + std * noise; the noise broadcasts, see `sequence_noise`."""
    return self.mean + self.std * noise

  def kl(self, axes: Sequence[int] = (-2, -1)) -> Float[Array, "..."]:
    """Divergence from the standard normal: the MEAN over the given axes."""
    terms = (
      jnp.square(self.mean)
      + jnp.exp(self.log_variance)
      - 1.0
      - self.log_variance
    )
    return 0.5 * terms.mean(tuple(axes))


def anchor_rows(num_latents: int, row_width: int) -> Float[AnyArray, "N R"]:
  """Query rows that are no points of a surface: they are spread over the cube.

  Positions follow the R3 low-discrepancy sequence (Roberts, 2018) within
  [-0.8, 0.8]^3; normals and labels are 0.

  Args:
    num_latents: Rows, N.
    row_width: Columns, R.
  """
  golden = 1.2207440846057596  # The real root of x^4 = x + 1.
  steps = golden ** -np.arange(1.0, 4.0)
  unit = (0.5 + np.outer(np.arange(num_latents), steps)) % 1.0
  rows = np.zeros((num_latents, row_width), np.float32)
  rows[:, :3] = _ANCHOR_EXTENT * (2.0 * unit - 1.0)
  return rows


def sequence_noise(
  key: PRNGKey, num_clips: int, num_latents: int, latent_channels: int
) -> Float[Array, "B 1 N C"]:
  """One standard normal noise a clip, to broadcast over its frames."""
  shape = (num_clips, 1, num_latents, latent_channels)
  return jax.random.normal(key, shape, jnp.float32)


class ShapeVAE(nnx.Module):
  """Encoder, bottleneck, transformer and field decoder."""

  def __init__(self, config: ShapeVAEConfig, *, rngs: nnx.Rngs):
    self.config = config
    c = config
    kwargs = dict(rngs=rngs, dtype=c.dtype, param_dtype=c.param_dtype)
    fourier = dict(num_freqs=c.num_freqs, include_pi=c.include_pi)
    self.encoder = vae_blocks.PointEncoder(
      c.width,
      c.num_heads,
      c.num_encoder_layers,
      point_feats=c.point_feats,
      scan_unroll=c.scan_unroll,
      remat_policy=c.remat_policy,
      **fourier,
      **kwargs,
    )
    self.moments_proj = layers.Linear(
      c.width, 2 * c.latent_channels, kernel_axes=("embed", None), **kwargs
    )
    self.latents_proj = layers.Linear(
      c.latent_channels, c.width, kernel_axes=("latent", "embed"), **kwargs
    )
    self.blocks = layers.stack_layers(
      lambda r: vae_blocks.SelfBlock(
        c.width, c.num_heads, **(kwargs | dict(rngs=r))
      ),
      c.num_decoder_layers,
      rngs,
    )
    self.field_decoder = vae_blocks.FieldDecoder(
      c.width,
      c.num_heads,
      mlp_ratio=c.field_mlp_ratio,
      use_norm_post=c.use_field_norm,
      **fourier,
      **kwargs,
    )

  def encode(
    self,
    surface: Float[AnyArray, "... P R"],
    queries: Float[AnyArray, "... N R"],
  ) -> Posterior:
    """Reads a surface.

    Args:
      surface: Rows (position, unit normal, label 0 or 1), in [-1, 1]^3.
      queries: Rows selected among them by farthest-point sampling.

    Raises:
      ValueError: The columns or the leading axes do not fit.
    """
    row_width = self.config.row_width
    if (surface.shape[-1], queries.shape[-1]) != (row_width, row_width):
      raise UserError(
        f"surface {surface.shape} and queries {queries.shape} must have"
        f" {row_width} columns: position, normal, label."
      )
    if surface.shape[:-2] != queries.shape[:-2]:
      raise UserError(
        f"surface {surface.shape} and queries {queries.shape} must agree"
        " in all axes but the last two."
      )
    if self.config.token_order == "anchored":
      queries = jnp.broadcast_to(
        anchor_rows(queries.shape[-2], row_width), queries.shape
      )
    x = self.encoder(surface, queries)
    return Posterior.from_moments(self.moments_proj(x))

  def decode(self, latents: Float[Array, "... N C"]) -> Float[Array, "... N D"]:
    """Latents z (not the scaled ones of the diffusion model) to tokens."""
    if latents.shape[-1] != self.config.latent_channels:
      raise UserError(
        f"latents {latents.shape} must have"
        f" {self.config.latent_channels} channels."
      )
    return vae_blocks.run_blocks(
      self.blocks,
      self.latents_proj(latents),
      self.config.scan_unroll,
      self.config.remat_policy,
    )

  def field_keys_values(
    self, tokens: Float[Array, "... N D"]
  ) -> attention.KeyValues:
    """Keys and values of the tokens for field queries; once per frame."""
    return self.field_decoder.encode_tokens(tokens)

  def query_field(
    self,
    tokens: Float[Array, "... N D"] | attention.KeyValues,
    points: Float[AnyArray, "... Q 3"],
  ) -> Float[Array, "... Q"]:
    """The field at points: about -1..1, positive inside, surface at 0.

    Args:
      tokens: Tokens from `decode`, or their `field_keys_values`.
      points: Positions in [-1, 1]^3.
    """
    if points.shape[-1] != 3:
      raise UserError(f"points must be [..., Q, 3], got {points.shape}.")
    if not isinstance(tokens, attention.KeyValues):
      tokens = self.field_keys_values(tokens)
    return self.field_decoder(tokens, points)

  def encode_to_diffusion(
    self,
    surface: Float[AnyArray, "... P R"],
    queries: Float[AnyArray, "... N R"],
    noise: Float[AnyArray, "... N C"] | None = None,
  ) -> Float[Array, "... N C"]:
    """Latents for the diffusion model: samples with noise, means without."""
    posterior = self.encode(surface, queries)
    z = posterior.mode() if noise is None else posterior.sample(noise)
    return self.config.scale_factor * z

  def decode_from_diffusion(
    self, latents: Float[Array, "... N C"]
  ) -> Float[Array, "... N D"]:
    """Decodes the diffusion model's latents to tokens."""
    return self.decode(latents / self.config.scale_factor)
