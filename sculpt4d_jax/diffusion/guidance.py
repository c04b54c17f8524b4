"""Classifier-free guidance on velocity functions.

Guidance calls a network twice, with and without its context. Two ways to save
calls depend on the time: outside an interval only the conditional velocity is
used, and the difference that guidance adds can be reused for a few calls.
`scheduled` makes such a velocity.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Any

from jax import lax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError

Array = array_types.Array
Float = array_types.Float

# (x [B, ...], time [B]) -> velocity like x.
VelocityFunction = Callable[[Array, Array], Array]
# (x [B, ...], time [B]) -> conditional and unconditional velocity.
PairFunction = Callable[[Array, Array], tuple[Array, Array]]
# (x, time, memory) -> velocity and the next call's memory.
_Variant = Callable[[Array, Array, Any], tuple[Array, Any]]

EVERYWHERE = (0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class ScheduledVelocity:
  """A velocity with different forms at different calls of a sampler.

  Attributes:
    variants: The forms; only those that are used are compiled, each once.
    choose: Times of all calls [calls] -> the form of each, int [calls].
    initial: Noise -> memory of the first call; None if there is no memory.
  """

  variants: Sequence[_Variant]
  choose: Callable[[np.ndarray], np.ndarray]
  initial: Callable[[Array], Any] = lambda noise: None

  def wrap(
    self, wrapper: Callable[[VelocityFunction], VelocityFunction]
  ) -> "ScheduledVelocity":
    """Applies a wrapper of velocity functions to every form.

    Args:
      wrapper: Makes a velocity function that calls the given one once.
    """

    def wrapped(variant: _Variant) -> _Variant:
      def run(x: Array, time: Array, memory: Any) -> tuple[Array, Any]:
        kept = []

        def plain(x: Array, time: Array) -> Array:
          velocity, after = variant(x, time, memory)
          kept.append(after)
          return velocity

        return wrapper(plain)(x, time), kept[-1]

      return run

    variants = tuple(wrapped(variant) for variant in self.variants)
    return dataclasses.replace(self, variants=variants)


Velocity = VelocityFunction | ScheduledVelocity


def wrap(
  velocity: Velocity, wrapper: Callable[[VelocityFunction], VelocityFunction]
) -> Velocity:
  """Applies a wrapper to a velocity of either kind."""
  if isinstance(velocity, ScheduledVelocity):
    return velocity.wrap(wrapper)
  return wrapper(velocity)


def combine(
  conditional: Float[Array, "*shape"],
  unconditional: Float[Array, "*shape"],
  scale: float | Array,
) -> Float[Array, "*shape"]:
  """Computes unconditional + scale * (conditional - unconditional)."""
  return unconditional + scale * (conditional - unconditional)


def pair_in_one_batch(velocity: VelocityFunction) -> PairFunction:
  """Both velocities in one call with twice the batch.

  Args:
    velocity: Function of x [2B, ...] and time [2B] that knows the context: of
      the clips for the first half, the empty one for the second.
  """

  def pair(x: Array, time: Array) -> tuple[Array, Array]:
    both = velocity(jnp.concatenate((x, x)), jnp.concatenate((time, time)))
    return tuple(jnp.split(both, 2))

  return pair


def pair_in_turns(
  conditional: VelocityFunction, unconditional: VelocityFunction
) -> PairFunction:
  """Both velocities in two calls, with half the memory of one batch."""

  def pair(x: Array, time: Array) -> tuple[Array, Array]:
    first = conditional(x, time)
    # Without an order, a compiler may begin the second call during the first.
    x, first = lax.optimization_barrier((x, first))
    return first, unconditional(x, time)

  return pair


def guided(pair: PairFunction, scale: float | Array) -> VelocityFunction:
  """Applies guidance at every call; scale 1 is the conditional velocity."""
  return lambda x, time: combine(*pair(x, time), scale)


def scheduled(
  pair: PairFunction,
  conditional: VelocityFunction,
  scale: float,
  *,
  interval: tuple[float, float] = EVERYWHERE,
  keep_difference: int = 1,
) -> Velocity:
  """Applies guidance at some calls only.

  Args:
    pair: Conditional and unconditional velocity.
    conditional: The conditional velocity alone.
    scale: Guidance scale.
    interval: First time that is guided and first later time that is not; 0 is
      noise and 1 is data. Calls outside cost half.
    keep_difference: Calls that a difference between both velocities serves; 1
      computes it at every call.

  Source: Kynkäänniemi et al., Applying Guidance in a Limited Interval Improves
  Sample and Distribution Quality in Diffusion Models, 2024.
  """
  check(interval, keep_difference)
  if tuple(interval) == EVERYWHERE and keep_difference == 1:
    return guided(pair, scale)
  remembers = keep_difference > 1

  def unguided(x: Array, time: Array, memory: Any) -> tuple[Array, Any]:
    return conditional(x, time), memory

  def fresh(x: Array, time: Array, memory: Any) -> tuple[Array, Any]:
    with_context, without = pair(x, time)
    velocity = combine(with_context, without, scale)
    return velocity, with_context - without if remembers else memory

  def kept(x: Array, time: Array, difference: Array) -> tuple[Array, Array]:
    velocity = conditional(x, time)
    # `combine` with velocity - difference for the unconditional one.
    return velocity + (scale - 1) * difference, difference

  def choose(times: np.ndarray) -> np.ndarray:
    inside = (times >= interval[0]) & (times < interval[1])
    # The first guided call is number 0 of the calls inside. Ten calls, of which
    # six are in the interval, with keep_difference = 3:
    #
    #   call    0  1  2  3  4  5  6  7  8  9
    #   form    0  0  1  2  2  1  2  2  0  0
    is_fresh = inside & ((np.cumsum(inside) - 1) % keep_difference == 0)
    return np.where(is_fresh, 1, np.where(inside, 2, 0))

  initial = jnp.zeros_like if remembers else lambda noise: None
  return ScheduledVelocity((unguided, fresh, kept), choose, initial)


def num_evaluations(
  times: np.ndarray,
  scale: float,
  interval: tuple[float, float] = EVERYWHERE,
  keep_difference: int = 1,
) -> int:
  """Evaluations of the network at calls of these times; a pair counts two."""
  if scale == 1.0:
    return len(times)
  inside = (times >= interval[0]) & (times < interval[1])
  return len(times) + -(-int(inside.sum()) // keep_difference)


def check(interval: tuple[float, float], keep_difference: int) -> None:
  """Raises ValueError where these settings of `scheduled` are out of range."""
  if len(interval) != 2 or not 0 <= interval[0] < interval[1] <= 1:
    raise UserError(
      f"guidance_interval={tuple(interval)} must be two growing times within 0"
      " (noise) and 1 (data), such as (0.2, 0.8)."
    )
  if keep_difference < 1:
    raise UserError(f"keep_difference={keep_difference} must be at least 1.")
