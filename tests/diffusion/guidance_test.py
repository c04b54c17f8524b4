import jax.numpy as jnp
import numpy as np

from sculpt4d_jax.diffusion import guidance

X = jnp.array([[1.0, 2.0], [3.0, 4.0]])
TIME = jnp.array([0.25, 0.5])


def test_scale_extrapolates_from_the_unconditional_velocity():
  conditional, unconditional = jnp.array([3.0]), jnp.array([1.0])
  for scale, expected in ((0.0, 1.0), (1.0, 3.0), (5.0, 11.0)):
    combined = guidance.combine(conditional, unconditional, scale)
    np.testing.assert_allclose(combined, [expected])


def test_one_batch_equals_one_after_the_other():
  def both(x, time):
    contexts = jnp.array([1.0, 2.0, 0.0, 0.0])[:, None]
    return x * time[:, None] + contexts

  conditional = lambda x, time: x * time[:, None] + jnp.array([[1.0], [2.0]])
  unconditional = lambda x, time: x * time[:, None]
  np.testing.assert_allclose(
    guidance.in_one_batch(both, 5.0)(X, TIME),
    guidance.one_after_the_other(conditional, unconditional, 5.0)(X, TIME),
  )
