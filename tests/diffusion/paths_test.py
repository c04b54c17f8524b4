import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.diffusion import paths


def endpoints():
  return jax.random.normal(jax.random.key(0), (2, 3, 4, 5))


def test_time_runs_from_noise_to_data():
  noise, data = endpoints()
  time = jnp.array([0.0, 1.0, 0.25])
  x = paths.interpolate(noise, data, time)
  np.testing.assert_array_equal(x[0], noise[0])
  np.testing.assert_array_equal(x[1], data[1])
  np.testing.assert_allclose(x[2], 0.75 * noise[2] + 0.25 * data[2], rtol=1e-6)


def test_velocity_is_the_derivative_of_the_path():
  noise, data = endpoints()
  time = jnp.array([0.1, 0.5, 0.9])
  _, derivative = jax.jvp(
    lambda t: paths.interpolate(noise, data, t), (time,), (jnp.ones(3),)
  )
  np.testing.assert_allclose(derivative, paths.velocity(noise, data), rtol=1e-6)


@pytest.mark.wrong_shapes
def test_time_must_be_a_vector():
  noise, data = endpoints()
  with pytest.raises(ValueError, match="time must be"):
    paths.interpolate(noise, data, jnp.array(0.5))


def test_frames_may_have_their_own_times():
  noise, data = endpoints()
  time = jnp.array([[0.0, 1.0, 0.5, 0.25]] * 3)
  x = paths.interpolate(noise, data, time)
  np.testing.assert_array_equal(x[:, 0], noise[:, 0])
  np.testing.assert_array_equal(x[:, 1], data[:, 1])
  equal = paths.interpolate(noise, data, jnp.full((3, 4), 0.3))
  np.testing.assert_array_equal(
    equal, paths.interpolate(noise, data, jnp.full((3,), 0.3))
  )


@pytest.mark.parametrize(
  "time", [[0.2, 0.9], [[0.2, 0.9, 1.0], [0.0, 0.5, 0.3]]]
)
def test_the_velocity_leads_to_the_data_from_anywhere(time):
  noise, data = endpoints()[:, :2]
  noise, data = (jnp.stack([x] * 3, 1) for x in (noise, data))
  time = jnp.array(time)
  x = paths.interpolate(noise, data, time)
  found = paths.data_at(x, paths.velocity(noise, data), time)
  np.testing.assert_allclose(found, data, rtol=1e-5, atol=1e-6)


def test_cooled_noise_has_one_temperature_a_clip():
  noise = jnp.ones((500, 2, 3))
  cooled = paths.cool(jax.random.key(0), noise, 0.25)
  temperatures = np.asarray(cooled[:, 0, 0])
  np.testing.assert_array_equal(cooled, temperatures[:, None, None] * noise)
  # Uniform in [0.25, 1]: the mean of 500 scatters by 0.01 around 0.625.
  assert 0.25 <= temperatures.min() < 0.27 and 0.98 < temperatures.max() <= 1
  assert abs(temperatures.mean() - 0.625) < 0.04
  assert paths.cool(jax.random.key(0), noise, 1.0) is noise
