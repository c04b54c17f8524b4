"""Training times of single frames, for models that accept known frames.

Some clips of a batch have one time for all frames, as usual; some have a few
known frames, with times near 1 and left out of the loss; and some have an
independent time for every frame.

Times of known frames are slightly below 1, because the sampled frames that the
model receives later are not exactly data either.

Source: Chen et al., Diffusion Forcing, 2024.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax.diffusion import time_sampling
from sculpt4d_jax.errors import UserError

Array = array_types.Array
Bool = array_types.Bool
Float = array_types.Float
PRNGKey = array_types.PRNGKey


@dataclasses.dataclass(frozen=True)
class FrameTimesConfig:
  """Fractions of the clips; see the module's docstring.

  Attributes:
    known: Fraction of clips with 1 to F/2 known frames: in half of them the
      first frames, in half any frames.
    independent: Fraction of clips whose frames have independent times.
    clean_from: Smallest time of known frames, which is drawn from
      [clean_from, 1].
  """

  known: float = 0.0
  independent: float = 0.0
  clean_from: float = 0.9

  def __post_init__(self):
    shares = self.known, self.independent
    if min(shares) < 0 or sum(shares) > 1:
      raise UserError(
        f"frame_times.known={self.known} and .independent={self.independent}"
        " must be shares of the clips: not negative, at most 1 together."
      )
    if not 0 < self.clean_from <= 1:
      raise UserError(
        f"frame_times.clean_from={self.clean_from} must lie in (0, 1]."
      )

  @property
  def is_on(self) -> bool:
    """Whether any clip has times that differ between its frames."""
    return self.known + self.independent > 0


class FrameTimes(NamedTuple):
  """Times [B, F], and whether a frame counts in the loss, bool [B, F]."""

  time: Array
  is_learned: Array


def draw(
  key: PRNGKey,
  time: Float[Array, " B"],
  num_frames: int,
  config: FrameTimesConfig,
  sampler: time_sampling.TimeSampler = time_sampling.uniform,
) -> FrameTimes:
  """Draws the times of all frames.

  Args:
    key: Randomness.
    time: Time of each clip, for frames without their own.
    num_frames: F. A clip of one frame has no known frame.
    config: Fractions of clips.
    sampler: Distribution of the independent times.
  """
  num_clips = len(time)
  shape = num_clips, num_frames
  kind_key, count_key, order_key, clean_key, own_key = jax.random.split(key, 5)
  # One draw decides: [0, known) known frames, then independent, then one time.
  kind = jax.random.uniform(kind_key, (num_clips, 1))
  has_known = (kind < config.known) & (num_frames > 1)
  is_prefix = kind < config.known / 2
  count = jax.random.randint(
    count_key, (num_clips, 1), 1, max(num_frames // 2, 1) + 1
  )
  rank = jnp.broadcast_to(jnp.arange(num_frames), shape)
  # Ranks of random numbers: a random subset of `count` frames.
  order = jnp.argsort(jax.random.uniform(order_key, shape), -1)
  is_known = has_known & (jnp.where(is_prefix, rank, order) < count)
  own = sampler(own_key, num_clips * num_frames).reshape(shape)
  is_independent = (kind >= config.known) & (
    kind < config.known + config.independent
  )
  times = jnp.where(is_independent, own, time[:, None])
  near_data = jax.random.uniform(
    clean_key, shape, minval=config.clean_from, maxval=1.0
  )
  return FrameTimes(jnp.where(is_known, near_data, times), ~is_known)
