"""The time token of the DiT: where on the path a clip is, and how far it goes.

A model whose sampling takes few steps is told the step's length too; see
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

# Steps shorter than 2^-this are taken for no step: the velocity itself.
_MAX_HALVINGS = 7.0


def time_features(
  time: Float[AnyArray, " B"], width: int
) -> Float[Array, "B D"]:
  """Sines, then cosines, of time * 10000^(-2i / width).

  Time runs from 0 to 1 and is not scaled to a thousand steps.
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
    return self.mlp(time_features(time, self.width))


class StepEmbedding(nnx.Module):
  """What a step's length adds to the time token: an MLP on its halvings.

  Its output starts at zero, so that an untrained one changes nothing.
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
    """Embeds step lengths in [0, 1]; 0 is the velocity itself."""
    halvings = -jnp.log2(jnp.maximum(step, 2.0**-_MAX_HALVINGS))
    features = time_features(halvings, self.width)
    return self.fc2(layers.gelu(self.fc1(features)))
