"""All solvers: by hand, and their order on a flow whose answer is known."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.diffusion import samplers

MEAN, STD = 2.0, 0.3
# Errors at 8, 16, 32 and 64 intervals, computed apart from this code.
KNOWN_ERRORS = {
  "euler": (0.131, 0.068, 0.035, 0.018),
  "heun": (0.046, 0.011, 0.0026, 0.0006),
  "ab2": (0.039, 0.0095, 0.0022, 0.0005),
}
ORDERS = {"euler": 1, "heun": 2, "ab2": 2}


def gaussian_velocity(x, time):
  """E[x1 - x0 | x_t = x] where data are N(MEAN, STD^2)."""
  t = time[:, None]
  variance = t**2 * STD**2 + (1 - t) ** 2
  covariance = t * STD**2 - (1 - t)
  return MEAN + covariance / variance * (x - t * MEAN)


def error(name, times):
  noise = jnp.linspace(-2, 2, 9)[None]
  calls = samplers.calls_of(name, times)
  x = samplers.integrate(gaussian_velocity, noise, calls)
  return float(jnp.abs(x - (MEAN + STD * noise)).max())


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_errors_on_a_gaussian(name):
  errors = [error(name, np.linspace(0, 1, n + 1)) for n in (8, 16, 32, 64)]
  # Known to two digits.
  np.testing.assert_allclose(errors, KNOWN_ERRORS[name], rtol=0.05, atol=6e-5)
  order = math.log2(errors[1] / errors[3]) / 2
  assert order > ORDERS[name] - 0.1


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_order_holds_with_uneven_times(name):
  coarse, fine = (
    error(name, samplers.euler_times(n + 1, shift=0.5)) for n in (32, 64)
  )
  assert math.log2(coarse / fine) > ORDERS[name] - 0.2


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_constant_velocities_are_exact(name):
  calls = samplers.calls_of(name, samplers.euler_times(6, shift=3.0))
  x = samplers.integrate(lambda x, t: 0 * x + 2.0, jnp.ones((1, 3)), calls)
  np.testing.assert_allclose(x, 3.0, rtol=1e-6)


def test_adams_bashforth_by_hand():
  """Steps of 0.2 and 0.8: r is 4."""
  calls = samplers.calls_of("ab2", [0.0, 0.2, 1.0])
  np.testing.assert_allclose(calls.times, [0.0, 0.2])
  np.testing.assert_allclose(
    calls.state, [[0.2, 0.0], [0.8 * 3, -0.8 * 2]], rtol=1e-6
  )
  # Exact for a velocity that is linear in time, but for the first step.
  x = samplers.integrate(lambda x, t: t[:, None], jnp.zeros((1, 1)), calls)
  np.testing.assert_allclose(x, 0.2 * 0 + 2.4 * 0.2 - 1.6 * 0, rtol=1e-6)


def test_heun_by_hand():
  calls = samplers.calls_of("heun", [0.0, 0.5, 1.0])
  np.testing.assert_allclose(calls.times, [0.0, 0.5, 0.5])
  x = samplers.integrate(lambda x, t: x, jnp.ones((1, 1)), calls)
  # Trapezium, then Euler: 1 + 0.5 (1 + 1.5) / 2 = 1.625; times 1.5.
  np.testing.assert_allclose(x, 1.625 * 1.5, rtol=1e-6)
