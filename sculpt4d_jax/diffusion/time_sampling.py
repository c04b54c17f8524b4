"""Draws training times, one for each clip, in [0, 1] (0 noise, 1 data)."""

from collections.abc import Callable
import math

import jax
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError

Array = array_types.Array
Float = array_types.Float
PRNGKey = array_types.PRNGKey

TimeSampler = Callable[[PRNGKey, int], Array]

NAMES = ("uniform", "logit_normal", "towards_noise")


def uniform(key: PRNGKey, batch_size: int) -> Float[Array, " B"]:
  """Uniform on [0, 1), as in the training of Hunyuan3D 2.1."""
  return jax.random.uniform(key, (batch_size,))


def towards_noise(key: PRNGKey, batch_size: int) -> Float[Array, " B"]:
  """Squares of uniform times: a quarter of them below 1/16.

  For a sampler of few calls, whose first one decides pose and outline.
  """
  return jnp.square(uniform(key, batch_size))


def logit_normal(
  key: PRNGKey,
  batch_size: int,
  *,
  mean: float = 0.0,
  std: float = 1.0,
  shift: float = 1.0,
) -> Float[Array, " B"]:
  """The sigmoid of a normal variable, shifted: an option of Hunyuan3D 2.1.

  With a = sqrt(shift), t becomes a t / (1 + (a - 1) t): a shift above 1 draws
  more times near the data.

  Args:
    key: Randomness.
    batch_size: B.
    mean: Mean of the normal variable.
    std: Standard deviation of the normal variable, positive.
    shift: Positive; 1 changes nothing.

  Source: Esser et al., Scaling Rectified Flow Transformers, 2024, section 3.1.
  """
  time = jax.nn.sigmoid(mean + std * jax.random.normal(key, (batch_size,)))
  return shift_time(time, math.sqrt(shift))


def shift_time(time: Array, factor: float) -> Array:
  """Computes factor t / (1 + (factor - 1) t), which keeps 0 and 1.

  A factor above 1 moves times towards the data.
  """
  return factor * time / (1 + (factor - 1) * time)


def get(
  name: str,
  *,
  logit_mean: float = 0.0,
  logit_std: float = 1.0,
  shift: float = 1.0,
) -> TimeSampler:
  """The sampler with a name: one of `NAMES`.

  Raises:
    ValueError: Unknown name, or settings out of range.
  """
  if not (logit_std > 0 and shift > 0):
    raise UserError(
      f"logit_std={logit_std} and shift={shift} must be positive."
    )
  plain = {"uniform": uniform, "towards_noise": towards_noise}.get(name)
  if plain is not None:
    if shift != 1:
      raise UserError(
        f"shift={shift} belongs to 'logit_normal'; {name} times have none."
      )
    return plain
  if name == "logit_normal":

    def sample(key: PRNGKey, batch_size: int) -> Array:
      return logit_normal(
        key, batch_size, mean=logit_mean, std=logit_std, shift=shift
      )

    return sample
  raise UserError(f"Unknown time sampling {name!r}: choose {', '.join(NAMES)}.")
