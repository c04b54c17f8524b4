"""Integrates a velocity from noise (time 0) to data (time 1).

A sampler takes a velocity function (x [B, ...], time [B]) -> velocity and is
independent of the network. Guidance wraps that function; see `guidance.py`. To
add a sampler, write its solver in `solvers/` and add it to SAMPLERS.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax.diffusion import guidance
from sculpt4d_jax.diffusion import time_sampling
from sculpt4d_jax.diffusion.solvers import adams_bashforth
from sculpt4d_jax.diffusion.solvers import calls as calls_lib
from sculpt4d_jax.diffusion.solvers import euler as euler_lib
from sculpt4d_jax.diffusion.solvers import heun
from sculpt4d_jax.errors import UserError

Array = array_types.Array
Float = array_types.Float

# (x, time, form of the call, memory) -> velocity and the next call's memory.
_Ask = Callable[[Array, Array, Array | None, Any], tuple[Array, Any]]
# Time, weights of the state and of the point, and form of a call.
_Call = tuple[Array, Array, Array, Array | None]


class State(NamedTuple):
  """State between two calls.

  Attributes:
    x: The clips [B, ...].
    point: Place of the next call, if it is not `x`.
    last: Velocity of the previous call, float32, if the solver needs it.
    memory: Difference that guidance keeps, if any.
  """

  x: Array
  point: Array | None
  last: Array | None
  memory: Any


SAMPLERS: Mapping[str, calls_lib.Solver] = {
  "euler": euler_lib.solver,
  "ab2": adams_bashforth.solver,
  "heun": heun.solver,
}

# First time of the reference's scheduler if it is given no times: one of its
# thousand training steps.
SCHEDULER_START = 0.001


def euler_times(
  num_steps: int,
  *,
  shift: float = 1.0,
  skip_zero_step: bool = True,
  start: float = 0.0,
) -> np.ndarray:
  """Times of a sampler's intervals, increasing from 0 to 1.

  Hunyuan3D 2.1 spaces `num_steps` times evenly, both ends included, shifts them
  by t <- shift t / (1 + (shift - 1) t) and appends another 1: its last call of
  the model has a step of zero length and changes nothing.

  Args:
    num_steps: Number of calls of the model as the reference counts them, at
      least 2.
    shift: Positive factor. Above 1 it moves times towards the data, so that
      steps are long near the noise and short near the data: 3 makes four steps
      of .5, .25, .15, .1. Below 1 it does the reverse; 1/3 is what others call
      a shift of 3 towards the noise.
    skip_zero_step: Whether to leave out the appended 1 and its useless call.
    start: First time before the shift. 0 is pure noise, as in the released
      pipeline; SCHEDULER_START is the default of the reference's scheduler.

  Returns:
    [num_steps], or [num_steps + 1] with the last 1 twice; float32. The sampler
    takes as many steps as there are intervals.
  """
  if num_steps < 2:
    raise UserError(
      f"num_steps={num_steps} must be at least 2: the first and the last time"
      " are 0 and 1."
    )
  if shift <= 0:
    raise UserError(f"shift={shift} must be positive.")
  if not 0 <= start < 1:
    raise UserError(f"start={start} must be at least 0 and below 1.")
  # Rounded to float32 before the shift, as the reference does.
  times = np.linspace(start, 1.0, num_steps).astype(np.float32)
  times = time_sampling.shift_time(times, np.float32(shift))
  if not skip_zero_step:
    times = np.append(times, np.float32(1.0))
  return times.astype(np.float32)


def calls_of(name: str, times: np.ndarray) -> calls_lib.Calls:
  """The calls that a sampler makes for increasing times.

  Raises:
    ValueError: The sampler is unknown, or times are not one increasing list.
  """
  times = np.asarray(times, np.float32)
  if times.ndim != 1 or times.shape[0] < 2:
    raise UserError(
      f"times must be one list of at least two, got {times.shape}."
    )
  if name not in SAMPLERS:
    raise UserError(
      f"Unknown sampler {name!r}: choose one of {tuple(SAMPLERS)}."
    )
  return SAMPLERS[name](times)


def integrate(
  velocity: guidance.Velocity,
  noise: Float[Array, " B *shape"],
  calls: calls_lib.Calls,
  *,
  return_trajectory: bool = False,
) -> Float[Array, "..."]:
  """Integrates the velocity from noise to data.

  All calls are one `lax.scan`, so that the model is compiled once; a scheduled
  velocity is compiled once in each form that is used.

  Args:
    velocity: Velocity function; it may return another dtype than x has.
    noise: Initial state, at the first call's time. Its dtype is that of the
      state: float32 keeps many small steps exact even if the model computes in
      bfloat16.
    calls: Calls from `calls_of`.
    return_trajectory: Returns the noise and the state after each call,
      [calls + 1, B, ...], instead.

  Returns:
    x at the last time, like `noise`.
  """
  state = begin(velocity, noise, calls)
  state, states = _scan(
    velocity, state, calls, 0, len(calls), keeps_states=return_trajectory
  )
  if return_trajectory:
    return jnp.concatenate((noise[None], states))
  return state.x


def begin(
  velocity: guidance.Velocity,
  noise: Float[Array, " B *shape"],
  calls: calls_lib.Calls,
) -> State:
  """The state before the first call; see `integrate`."""
  memory = None
  if isinstance(velocity, guidance.ScheduledVelocity):
    memory = velocity.initial(noise)
  return State(
    noise,
    noise if calls.asks_elsewhere else None,
    jnp.zeros(noise.shape, jnp.float32) if calls.uses_memory else None,
    memory,
  )


def advance(
  velocity: guidance.Velocity,
  state: State,
  calls: calls_lib.Calls,
  number: Array | int,
) -> State:
  """Makes one call of `integrate`.

  Args:
    velocity: See `integrate`.
    state: From `begin`, or the call before.
    calls: All calls.
    number: Number of the call, from 0; it may be traced, so that one program
      serves all calls.
  """
  return _scan(velocity, state, calls, number, 1)[0]


def _scan(
  velocity: guidance.Velocity,
  state: State,
  calls: calls_lib.Calls,
  first: Array | int,
  count: int,
  keeps_states: bool = False,
) -> tuple[State, Array | None]:
  """Some calls in order; the last state, and x after every call if wanted."""
  ask, forms = _asked(velocity, calls.times)
  dtype = state.x.dtype

  def step(state: State, call: _Call) -> tuple[State, Array | None]:
    time, weights, point_weights, form = call
    start = state.x if state.point is None else state.point
    times = jnp.full(start.shape[:1], time)
    answer, memory = ask(start, times, form, state.memory)
    # Updates are computed in float32: small steps would vanish in bfloat16.
    answer = answer.astype(jnp.float32)

    def advanced(weights: Array) -> Array:
      change = weights[0] * answer
      if calls.uses_memory:
        change = change + weights[1] * state.last
      return (state.x.astype(jnp.float32) + change).astype(dtype)

    # Only solvers that evaluate elsewhere carry a second state.
    point = advanced(point_weights) if calls.asks_elsewhere else None
    last = answer if calls.uses_memory else None
    state = State(advanced(weights), point, last, memory)
    return state, state.x if keeps_states else None

  # One loop body serves all solvers; only their rows differ. For steps of
  # length h, with v the velocity and m that of the call before:
  #
  #   solver   call     evaluates at   state becomes        next point
  #   euler    each     x              x + h v              the state
  #   ab2      later    x              x + 3/2 h v - h/2 m  the state
  #   heun     first    x              x                    x + h v
  #            second   x + h v        x + h/2 v + h/2 m    the state
  table = (calls.times, calls.state, calls.point, forms)
  rows = jax.tree.map(
    lambda x: lax.dynamic_slice_in_dim(jnp.asarray(x), first, count), table
  )
  return lax.scan(step, state, rows)


def _asked(
  velocity: guidance.Velocity, times: np.ndarray
) -> tuple[_Ask, np.ndarray | None]:
  """A function (x, time, form, memory), and the form of each call."""
  if not isinstance(velocity, guidance.ScheduledVelocity):
    return lambda x, time, form, memory: (velocity(x, time), None), None
  # The schedule is known before compiling, so only forms in use are compiled.
  used, forms = np.unique(velocity.choose(times), return_inverse=True)
  variants = [velocity.variants[index] for index in used]
  if len(variants) == 1:
    return lambda x, time, form, memory: variants[0](x, time, memory), None

  def ask(x: Array, time: Array, form: Array, memory: Any) -> tuple[Array, Any]:
    return lax.switch(form, variants, x, time, memory)

  return ask, forms.astype(np.int32)


def euler(
  velocity: guidance.Velocity,
  noise: Float[Array, " B *shape"],
  times: np.ndarray,
  *,
  return_trajectory: bool = False,
) -> Float[Array, "..."]:
  """Integrates the velocity with x <- x + (t_next - t) velocity(x, t).

  See `integrate` for the arguments; times increase, as from `euler_times`.
  """
  return integrate(
    velocity,
    noise,
    calls_of("euler", times),
    return_trajectory=return_trajectory,
  )
