import jax
import numpy as np
import pytest

from sculpt4d_jax.diffusion import time_sampling


def test_uniform_times_fill_the_unit_interval():
  times = time_sampling.uniform(jax.random.key(0), 10_000)
  counts, _ = np.histogram(times, bins=10, range=(0, 1))
  assert counts.sum() == 10_000
  assert counts.min() > 900


def test_logit_normal_median_is_the_sigmoid_of_the_mean():
  times = time_sampling.logit_normal(
    jax.random.key(0), 10_000, mean=1.0, std=0.5
  )
  np.testing.assert_allclose(np.median(times), 1 / (1 + np.exp(-1)), atol=0.01)


def test_shift_uses_its_square_root():
  key = jax.random.key(0)
  plain = time_sampling.logit_normal(key, 5)
  shifted = time_sampling.logit_normal(key, 5, shift=9.0)
  np.testing.assert_allclose(shifted, 3 * plain / (1 + 2 * plain), rtol=1e-6)


def test_shift_keeps_the_ends():
  times = time_sampling.shift_time(np.array([0.0, 0.5, 1.0]), 3.0)
  np.testing.assert_allclose(times, [0, 0.75, 1])


def test_samplers_by_name():
  key = jax.random.key(0)
  named = time_sampling.get("logit_normal", logit_mean=0.5, shift=2.0)(key, 4)
  direct = time_sampling.logit_normal(key, 4, mean=0.5, shift=2.0)
  np.testing.assert_array_equal(named, direct)
  assert time_sampling.get("uniform") is time_sampling.uniform


def test_bad_settings_are_refused():
  with pytest.raises(ValueError, match="cosine"):
    time_sampling.get("cosine")
  with pytest.raises(ValueError, match="logit_std=0"):
    time_sampling.get("logit_normal", logit_std=0)
  with pytest.raises(ValueError, match="uniform times"):
    time_sampling.get("uniform", shift=2.0)


def test_times_towards_noise_are_squares():
  times = time_sampling.get("towards_noise")(jax.random.key(0), 20_000)
  assert times.min() >= 0 and times.max() < 1
  # P(t < x) = sqrt(x).
  for bound in (1 / 16, 1 / 4, 9 / 16):
    np.testing.assert_allclose((times < bound).mean(), bound**0.5, atol=0.012)
