"""The straight path between noise and data.

Time t runs from 0, noise x0 ~ N(0, 1), to 1, data x1:

    x_t = t x1 + (1 - t) x0        velocity = dx_t / dt = x1 - x0

This direction is used in the whole package; schedules increase from 0 to 1.
Many other libraries use the opposite direction.

Source: Hunyuan3D 2.1, flow matching; Liu et al., Flow Straight and Fast, 2022.
"""

import jax

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError

Array = array_types.Array
Float = array_types.Float


def interpolate(
  noise: Float[Array, " B *shape"],
  data: Float[Array, " B *shape"],
  time: Float[Array, " B"] | Float[Array, "B F"],
) -> Float[Array, " B *shape"]:
  """x_t at the time of each clip, or of each of its frames."""
  t = _expand(time, data.shape)
  return t * data + (1 - t) * noise


def cool(
  key: Array,
  noise: Float[Array, " B *shape"],
  lowest: float,
  highest: float = 1.0,
) -> Float[Array, " B *shape"]:
  """Scales the noise of each clip by a temperature, drawn uniformly.

  For sampling with less noise than was drawn from. At 1 nothing is drawn.

  Args:
    key: Randomness.
    noise: Noise of clips.
    lowest: Lowest temperature, 0 to 1.
    highest: Highest temperature, up to 1.
  """
  if lowest == 1:
    return noise
  shape = noise.shape[:1] + (1,) * (noise.ndim - 1)
  return noise * jax.random.uniform(key, shape, minval=lowest, maxval=highest)


def velocity(
  noise: Float[Array, "*shape"], data: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
  """The velocity of the path, the same at all times."""
  return data - noise


def data_at(
  x: Float[Array, " B *shape"],
  velocity: Float[Array, " B *shape"],
  time: Float[Array, " B"] | Float[Array, "B F"],
) -> Float[Array, " B *shape"]:
  """The data that x_t and its velocity lead to on a straight path."""
  return x + (1 - _expand(time, x.shape)) * velocity


def _expand(time: Array, shape: tuple[int, ...]) -> Array:
  if time.ndim not in (1, 2) or time.shape != shape[: time.ndim]:
    raise UserError(
      "time must be [B], one number a clip, or [B, F], one a frame, of data"
      f" {shape}; got {time.shape}."
    )
  return time.reshape(time.shape + (1,) * (len(shape) - time.ndim))
