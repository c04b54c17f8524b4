"""Frames whose data are known while the others are sampled.

Both wrappers act on a velocity function before guidance or after it:

  on_path   known frames are put back onto their straight path from noise to
            data at every call, so that the network sees all frames at one
            noise level; for weights trained with one time a clip
  clean     known frames are their data, at time 1, and each frame has its own
            time; for weights trained with such times

Sources: Lugmayr et al., RePaint, 2022 (replacement); Chen et al., Diffusion
Forcing, 2024 (a time for each frame).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax.diffusion import guidance
from sculpt4d_jax.diffusion import paths

Array = array_types.Array
Bool = array_types.Bool
Float = array_types.Float

Wrapper = Callable[[guidance.VelocityFunction], guidance.VelocityFunction]


class KnownFrames(NamedTuple):
  """Which frames are known, bool [B, F], and data like the state [B, F, ...].

  Data of frames that are not known have no effect.
  """

  is_known: Array
  data: Array

  def put(self, x: Array) -> Array:
    """The state with known frames replaced by their data."""
    return jnp.where(_over_frames(self.is_known, x), self.data, x)


def on_path(known: KnownFrames, noise: Float[Array, "B F *shape"]) -> Wrapper:
  """Puts known frames onto their path from their noise."""
  mask = _over_frames(known.is_known, noise)
  direction = paths.velocity(noise, known.data)

  def wrapper(velocity: guidance.VelocityFunction) -> guidance.VelocityFunction:
    def run(x: Array, time: Array) -> Array:
      path = paths.interpolate(noise, known.data, time)
      answer = velocity(jnp.where(mask, path, x), time)
      return jnp.where(mask, direction, answer.astype(jnp.float32))

    return run

  return wrapper


def clean(known: KnownFrames) -> Wrapper:
  """Shows known frames as they are, at time 1."""

  def wrapper(velocity: guidance.VelocityFunction) -> guidance.VelocityFunction:
    def run(x: Array, time: Array) -> Array:
      frame_time = jnp.where(known.is_known, 1.0, time[:, None])
      answer = velocity(known.put(x), frame_time)
      mask = _over_frames(known.is_known, answer)
      return jnp.where(mask, 0, answer)

    return run

  return wrapper


def _over_frames(
  is_known: Bool[array_types.AnyArray, "B F"], x: array_types.AnyArray
) -> Array:
  return is_known.reshape(is_known.shape + (1,) * (x.ndim - 2))
