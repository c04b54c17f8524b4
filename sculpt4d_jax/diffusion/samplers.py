"""Integrates a velocity from noise (time 0) to data (time 1).

A sampler takes a velocity function (x [B, ...], time [B]) -> velocity and knows
no network. Guidance wraps that function; see `guidance.py`.
"""

from jax import lax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax.diffusion import guidance
from sculpt4d_jax.diffusion import time_sampling

Array = array_types.Array
Float = array_types.Float


# First time of the reference's scheduler where it is given no times: one of
# its thousand training steps.
SCHEDULER_START = 0.001


def euler_times(
  num_steps: int,
  *,
  shift: float = 1.0,
  skip_zero_step: bool = True,
  start: float = 0.0,
) -> np.ndarray:
  """Times of an Euler sampler, growing from 0 to 1.

  Hunyuan3D 2.1 spaces `num_steps` times evenly, both ends included, shifts them
  by t <- shift t / (1 + (shift - 1) t) and appends another 1: its last call of
  the model has a step of zero length and changes nothing.

  Args:
    num_steps: Calls of the model in the reference's count, at least 2.
    shift: Positive; above 1 steps are longer near the data.
    skip_zero_step: Leaves the appended 1 and its useless call out.
    start: First time before the shift. 0 is pure noise, and what the released
      pipeline asks for; SCHEDULER_START is what the reference's scheduler does
      by itself.

  Returns:
    [num_steps], or [num_steps + 1] with the last 1 twice; float32. The sampler
    takes as many steps as there are intervals.
  """
  if num_steps < 2:
    raise ValueError(
      f"num_steps={num_steps} must be at least 2: the first and the last time"
      " are 0 and 1."
    )
  if shift <= 0:
    raise ValueError(f"shift={shift} must be positive.")
  if not 0 <= start < 1:
    raise ValueError(f"start={start} must be at least 0 and below 1.")
  # Rounded to float32 before the shift, as the reference does.
  times = np.linspace(start, 1.0, num_steps).astype(np.float32)
  times = time_sampling.shift_time(times, np.float32(shift))
  if not skip_zero_step:
    times = np.append(times, np.float32(1.0))
  return times.astype(np.float32)


def euler(
  velocity: guidance.VelocityFunction,
  noise: Float[Array, " B *shape"],
  times: Float[Array, " steps+1"],
  *,
  return_trajectory: bool = False,
) -> Float[Array, "..."]:
  """Follows the velocity with x <- x + (t_next - t) velocity(x, t).

  All steps are one `lax.scan`, so that the model is compiled once.

  Args:
    velocity: Velocity function; it may return another dtype than x has.
    noise: Where to start, at times[0]. Its dtype is that of the state: float32
      keeps many small steps exact even if the model computes in bfloat16.
    times: Growing times, such as `euler_times`.
    return_trajectory: Returns all states [steps + 1, B, ...] instead.

  Returns:
    x at times[-1], like `noise`.
  """
  times = jnp.asarray(times, jnp.float32)
  if times.ndim != 1 or times.shape[0] < 2:
    raise ValueError(
      f"times must be one list of at least two, came {times.shape}."
    )

  def step(x, interval):
    start, end = interval
    time = jnp.full(x.shape[:1], start)
    change = (end - start) * velocity(x, time).astype(jnp.float32)
    x = (x.astype(jnp.float32) + change).astype(noise.dtype)
    return x, x if return_trajectory else None

  x, states = lax.scan(step, noise, (times[:-1], times[1:]))
  if return_trajectory:
    return jnp.concatenate((noise[None], states))
  return x
