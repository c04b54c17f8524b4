"""Predicts from image tokens how the pictures of a clip were taken.

Objects stand upright and fill the cube, and pictures are cut around them, so
that neither the elevation of the camera nor the scale and the place of the
object in the picture are known. A few small networks, whose mean counts, read
them off the image encoder's tokens. The sampler needs them to compare shapes
with outlines; see `inference/outlines.py`.

  tokens, mean over frames [I, W] --> few features a token --> MLP --> view
"""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError

AnyArray = array_types.AnyArray
Array = array_types.Array
Float = array_types.Float

# Elevation in radians, the picture's centre, logarithm of its extent.
NUM_OUTPUTS = 4


@dataclasses.dataclass(frozen=True)
class ViewHeadConfig:
  """Sizes of the head.

  Attributes:
    num_tokens: Image tokens of a frame, I.
    token_width: Width of the tokens, W.
    token_features: Features that are kept of a token.
    width: Hidden width.
    num_members: Networks whose mean is the answer.
  """

  num_tokens: int
  token_width: int
  token_features: int = 16
  width: int = 128
  num_members: int = 3

  def __post_init__(self):
    for name, value in vars(self).items():
      if value < 1:
        raise UserError(f"{name}={value} must be at least 1.")


class ViewHead(nnx.Module):
  """Several small networks from image tokens to a view."""

  def __init__(self, config: ViewHeadConfig, *, rngs: nnx.Rngs):
    """Draws parameters.

    Args:
      config: Sizes.
      rngs: Random numbers.
    """
    self.config = config
    members, features = config.num_members, config.token_features
    hidden = config.num_tokens * features

    def drawn(*shape: int) -> nnx.Param:
      values = jax.random.normal(rngs.params(), (members, *shape))
      return nnx.Param(values / np.sqrt(shape[0]))

    self.token_kernel = drawn(config.token_width, features)
    self.hidden_kernel = drawn(hidden, config.width)
    self.hidden_bias = nnx.Param(jnp.zeros((members, config.width)))
    self.kernel = drawn(config.width, NUM_OUTPUTS)
    self.bias = nnx.Param(jnp.zeros((members, NUM_OUTPUTS)))
    # Measured on the training's clips.
    self.token_mean = nnx.Param(jnp.zeros(config.token_width))
    self.token_scale = nnx.Param(jnp.ones(config.token_width))
    self.view_mean = nnx.Param(jnp.zeros(NUM_OUTPUTS))
    self.view_scale = nnx.Param(jnp.ones(NUM_OUTPUTS))

  def members(
    self,
    tokens: Float[AnyArray, "B I W"],
    kept: Float[Array, "M B H"] | None = None,
  ) -> Float[Array, "M B 4"]:
    """Normalised answers of all networks.

    Args:
      tokens: Image tokens, the mean over frames.
      kept: Factors of the features, for dropout.
    """
    x = (tokens - self.token_mean[...]) / self.token_scale[...]
    x = jax.nn.gelu(jnp.einsum("biw,mwf->mbif", x, self.token_kernel[...]))
    x = x.reshape(*x.shape[:2], -1)
    if kept is not None:
      x = x * kept
    x = jnp.einsum("mbh,mhk->mbk", x, self.hidden_kernel[...])
    x = jax.nn.gelu(x + self.hidden_bias[...][:, None])
    x = jnp.einsum("mbk,mko->mbo", x, self.kernel[...])
    return x + self.bias[...][:, None]

  def __call__(self, tokens: Float[AnyArray, "B F I W"]) -> Float[Array, "B 4"]:
    """Elevation, centre (x, y) and log extent of each clip."""
    tokens = jnp.asarray(tokens, jnp.float32)
    x = self.members(tokens.mean(1)).mean(0)
    return x * self.view_scale[...] + self.view_mean[...]
