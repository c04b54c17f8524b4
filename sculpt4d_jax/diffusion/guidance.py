"""Classifier-free guidance on velocity functions."""

from collections.abc import Callable

import jax.numpy as jnp

from sculpt4d_jax import array_types

Array = array_types.Array
Float = array_types.Float

# (x [B, ...], time [B]) -> velocity like x.
VelocityFunction = Callable[[Array, Array], Array]


def combine(
  conditional: Float[Array, "*shape"],
  unconditional: Float[Array, "*shape"],
  scale: float | Array,
) -> Float[Array, "*shape"]:
  """Computes unconditional + scale * (conditional - unconditional)."""
  return unconditional + scale * (conditional - unconditional)


def in_one_batch(
  velocity: VelocityFunction, scale: float | Array
) -> VelocityFunction:
  """Guides a function of twice the batch: conditional, then unconditional.

  Args:
    velocity: Function of x [2B, ...] and time [2B] that knows the context: of
      the clips for the first half, the empty one for the second.
    scale: Guidance scale; 1 is the conditional velocity.
  """

  def guided(x: Array, time: Array) -> Array:
    both = velocity(jnp.concatenate((x, x)), jnp.concatenate((time, time)))
    conditional, unconditional = jnp.split(both, 2)
    return combine(conditional, unconditional, scale)

  return guided


def one_after_the_other(
  conditional: VelocityFunction,
  unconditional: VelocityFunction,
  scale: float | Array,
) -> VelocityFunction:
  """Guides with two functions: half the memory of one batch."""

  def guided(x: Array, time: Array) -> Array:
    return combine(conditional(x, time), unconditional(x, time), scale)

  return guided
