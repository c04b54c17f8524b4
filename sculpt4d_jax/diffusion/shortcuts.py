"""Velocities that depend on the step length, so that few steps suffice.

A shortcut velocity v(x, t, d) leads from x at time t to the state at t + d in
one step of length d; v(x, t, 0) is the velocity of the flow. Two half steps
must lead to the same state as one step,

    v(x, t, d) = (v(x, t, d/2) + v(x + d/2 v(x, t, d/2), t + d/2, d/2)) / 2,

which is what such a model is trained on; half of the shortest step is taken
with the velocity itself.

Source: Frans et al., One Step Diffusion via Shortcut Models, 2024.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from sculpt4d_jax import array_types

Array = array_types.Array
Float = array_types.Float
PRNGKey = array_types.PRNGKey

# (x [B, ...], time [B], step [B]) -> velocity like x.
ShortcutVelocity = Callable[[Array, Array, Array], Array]

# Steps are 1, 1/2, ... and 2^-this.
MAX_HALVINGS = 5


class Steps(NamedTuple):
  """Start times and lengths of steps, each [B]."""

  time: Array
  step: Array


def draw(key: PRNGKey, num_clips: int) -> Steps:
  """Draws steps: uniform over lengths, starting at a multiple of the length."""
  length_key, start_key = jax.random.split(key)
  halvings = jax.random.randint(length_key, (num_clips,), 0, MAX_HALVINGS + 1)
  count = 2**halvings
  start = jnp.floor(jax.random.uniform(start_key, (num_clips,)) * count)
  return Steps(start / count, 1.0 / count)


def target(
  velocity: ShortcutVelocity, x: Float[Array, " B *shape"], steps: Steps
) -> Float[Array, " B *shape"]:
  """Mean velocity of two half steps, without gradient."""
  half = steps.step / 2
  # The shortest half step is that of the flow itself.
  asked = jnp.where(half < 2.0**-MAX_HALVINGS, 0.0, half)
  first = velocity(x, steps.time, asked)
  length = half.reshape(half.shape + (1,) * (x.ndim - 1))
  second = velocity(x + length * first, steps.time + half, asked)
  return jax.lax.stop_gradient((first + second) / 2)
