"""The time token of the DiT, with the clip's time and step length.

Models for few-step sampling also get the step's length; see
`diffusion/shortcuts.py`.
"""

import math
from typing import Any

from flax import nnx
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax.models import layers

AnyArray = array_types.AnyArray
Array = array_types.Array
Float = array_types.Float

# Steps shorter than 2^-this count as 0, the instantaneous velocity.
_MAX_HALVINGS = 7.0


def time_features(
  time: Float[AnyArray, " B"], width: int
) -> Float[Array, "B D"]:
  """Sines, then cosines, of time * 10000^(-2i / width).

  Time is in [0, 1]; it is not scaled by 1000.
  """
  half = width // 2
  exponents = jnp.arange(half, dtype=jnp.float32) / half
  frequencies = jnp.exp(-math.log(10000.0) * exponents)
  angles = time.astype(jnp.float32)[:, None] * frequencies
  return jnp.concatenate((jnp.sin(angles), jnp.cos(angles)), axis=-1)


class TimeEmbedding(nnx.Module):
  """The time token: an MLP on sines and cosines of time."""

  def __init__(self, width: int, **kwargs: Any):
    self.width = width
    self.mlp = layers.MLP(width, 4 * width, **kwargs)

  def __call__(self, time: Float[AnyArray, " B"]) -> Float[Array, "B D"]:
    """Embeds the flow time of each clip, 0 noise and 1 data."""
    return self.mlp(time_features(time, self.width))


class StepEmbedding(nnx.Module):
  """Addition to the time token for a step's length: an MLP on its logarithm.

  Its output is initialised to zero, so an untrained one has no effect.
  """

  def __init__(self, width: int, **kwargs: Any):
    self.width = width
    self.fc1 = layers.Linear(
      width, 4 * width, kernel_axes=("embed", "mlp"), **kwargs
    )
    self.fc2 = layers.Linear(
      4 * width,
      width,
      kernel_axes=("mlp", "embed"),
      kernel_init=layers.zeros,
      **kwargs,
    )

  def __call__(self, step: Float[Array, " B"]) -> Float[Array, "B D"]:
    """Embeds step lengths in [0, 1]; 0 is the instantaneous velocity."""
    halvings = -jnp.log2(jnp.maximum(step, 2.0**-_MAX_HALVINGS))
    features = time_features(halvings, self.width)
    return self.fc2(layers.gelu(self.fc1(features)))
