"""The straight path between noise and data.

Time t runs from 0, noise x0 ~ N(0, 1), to 1, data x1:

    x_t = t x1 + (1 - t) x0        velocity = dx_t / dt = x1 - x0

This direction is used in the whole package; schedules increase from 0 to 1.
Many other libraries use the opposite direction.

Source: Hunyuan3D 2.1, flow matching; Liu et al., Flow Straight and Fast, 2022.
"""

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
