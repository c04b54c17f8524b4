"""Frames whose data are known, in whole or in part, while others are sampled.

The wrappers act on a velocity function before guidance or after it:

  on_path   known frames are put back onto their straight path from noise to
            data at every call, so that the network sees all frames at one
            noise level; for weights trained with one time a clip
  clean     known frames are their data, at time 1, and each frame has its own
            time; for weights trained with such times
  blended   frames move partly towards their data and partly as the network
            says

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
  """Frames that are known or blended, and their data.

  Attributes:
    is_known: Marks of the known frames, bool [B, F].
    data: Data like the state [B, F, ...]; those of frames that are neither
      known nor blended have no effect.
    share: Share of the data in the velocity of blended frames, float [B, F] in
      [0, 1), 0 where nothing is blended; None blends no frame.
  """

  is_known: Array
  data: Array
  share: Array | None = None

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


def blended(known: KnownFrames, noise: Float[Array, "B F *shape"]) -> Wrapper:
  """Blends velocities with those of straight paths from noise to the data.

  A blended frame ends as its share of the data and, for the rest, what is
  sampled. As this holds at every call, the network sees the blend while it
  samples, and fits the frame's neighbours to it.
  """
  share = _over_frames(known.share, noise)
  direction = paths.velocity(noise, known.data)

  def wrapper(velocity: guidance.VelocityFunction) -> guidance.VelocityFunction:
    def run(x: Array, time: Array) -> Array:
      answer = velocity(x, time).astype(jnp.float32)
      return answer + share * (direction - answer)

    return run

  return wrapper


def _over_frames(
  of_frames: Bool[array_types.AnyArray, "B F"]
  | Float[array_types.AnyArray, "B F"],
  x: array_types.AnyArray,
) -> Array:
  return of_frames.reshape(of_frames.shape + (1,) * (x.ndim - 2))
