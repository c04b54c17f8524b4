import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.diffusion import guidance
from sculpt4d_jax.diffusion import paths
from sculpt4d_jax.diffusion import samplers


def test_times_by_hand():
  np.testing.assert_allclose(samplers.euler_times(3), [0, 0.5, 1])
  np.testing.assert_allclose(samplers.euler_times(3, shift=3.0), [0, 0.75, 1])
  np.testing.assert_allclose(
    samplers.euler_times(3, skip_zero_step=False), [0, 0.5, 1, 1]
  )


def test_times_may_start_later():
  np.testing.assert_allclose(samplers.euler_times(3, start=0.5), [0.5, 0.75, 1])
  with pytest.raises(ValueError, match="start"):
    samplers.euler_times(3, start=1.0)


def test_fifty_steps_are_forty_nine_of_equal_length():
  steps = np.diff(samplers.euler_times(50))
  assert len(steps) == 49
  np.testing.assert_allclose(steps, 1 / 49, atol=1e-6)


def test_true_velocity_leads_to_the_data_in_any_number_of_steps():
  noise, data = jax.random.normal(jax.random.key(0), (2, 3, 4, 5))
  velocity = lambda x, time: paths.velocity(noise, data)
  for num_steps in (2, 7):
    times = samplers.euler_times(num_steps)
    np.testing.assert_allclose(
      samplers.euler(velocity, noise, times), data, atol=1e-5
    )


def test_velocity_is_asked_at_the_start_of_each_step():
  velocity = lambda x, time: jnp.broadcast_to(time[:, None], x.shape)
  x = samplers.euler(velocity, jnp.zeros((2, 1)), jnp.array([0.0, 0.5, 1.0]))
  np.testing.assert_allclose(x, 0.25)  # 0.5 * 0 + 0.5 * 0.5


def test_error_falls_with_the_number_of_steps():
  velocity = lambda x, time: -x
  x = jnp.ones((1, 1))

  def error(n):
    end = samplers.euler(velocity, x, samplers.euler_times(n))
    return abs(float(end[0, 0]) - np.exp(-1))

  assert error(101) < error(11) / 8


def test_trajectory_starts_with_the_noise_and_ends_with_the_sample():
  velocity = lambda x, time: x
  noise = jnp.ones((2, 3))
  times = samplers.euler_times(5)
  states = samplers.euler(velocity, noise, times, return_trajectory=True)
  assert states.shape == (5, 2, 3)
  np.testing.assert_array_equal(states[0], noise)
  np.testing.assert_array_equal(
    states[-1], samplers.euler(velocity, noise, times)
  )


def test_state_keeps_the_dtype_of_the_noise():
  velocity = lambda x, time: x.astype(jnp.bfloat16)
  x = samplers.euler(velocity, jnp.ones((1, 2)), samplers.euler_times(4))
  assert x.dtype == jnp.float32


def test_bad_times_are_refused():
  with pytest.raises(ValueError, match="num_steps=1"):
    samplers.euler_times(1)
  with pytest.raises(ValueError, match="shift=0"):
    samplers.euler_times(5, shift=0)
  with pytest.raises(ValueError, match="times"):
    samplers.euler(lambda x, t: x, jnp.ones((1, 2)), jnp.array([0.0]))


def test_shift_lengthens_the_steps_near_the_noise():
  steps = lambda shift: np.diff(samplers.euler_times(5, shift=shift))
  np.testing.assert_allclose(steps(3.0), [0.5, 0.25, 0.15, 0.1], atol=1e-6)
  np.testing.assert_allclose(steps(1 / 3), [0.1, 0.15, 0.25, 0.5], atol=1e-6)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_single_calls_equal_the_complete_loop(name):
  calls = samplers.calls_of(name, samplers.euler_times(5))
  velocity = guidance.scheduled(
    lambda x, time: (-x, x),
    lambda x, time: -x,
    scale=2.0,
    interval=(0.2, 0.9),
    keep_difference=2,
  )
  advance = jax.jit(
    lambda state, number: samplers.advance(velocity, state, calls, number)
  )
  state = samplers.begin(velocity, jnp.ones((1, 2)), calls)
  for number in range(len(calls)):
    state = advance(state, number)
  assert advance._cache_size() == 1  # One program for all calls.
  complete = samplers.integrate(velocity, jnp.ones((1, 2)), calls)
  np.testing.assert_allclose(state.x, complete, rtol=1e-6)


def test_unknown_samplers_are_refused():
  with pytest.raises(ValueError, match="'unipc'"):
    samplers.calls_of("unipc", samplers.euler_times(4))
