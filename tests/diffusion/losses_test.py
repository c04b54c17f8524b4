import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.diffusion import losses


def test_squared_error_by_hand():
  prediction = jnp.array([[[1.0, 2.0]], [[3.0, 4.0]]])
  target = jnp.array([[[0.0, 0.0]], [[3.0, 6.0]]])
  per_clip = losses.squared_error_per_clip(prediction, target)
  np.testing.assert_allclose(per_clip, [2.5, 2.0])
  np.testing.assert_allclose(losses.squared_error(prediction, target), 2.25)


def test_half_precision_is_averaged_in_float32():
  prediction = jnp.ones((1, 4096), jnp.bfloat16)
  loss = losses.squared_error(prediction, jnp.zeros_like(prediction))
  assert loss.dtype == jnp.float32
  np.testing.assert_allclose(loss, 1.0)


@pytest.mark.wrong_shapes
def test_shapes_must_agree():
  with pytest.raises(ValueError, match="shapes must be equal"):
    losses.squared_error(jnp.zeros((2, 3)), jnp.zeros((2, 1)))


def test_errors_of_frames_average_to_the_clip():
  normal = np.random.default_rng(0).normal(size=(2, 2, 3, 4, 5))
  prediction, target = jnp.asarray(normal, jnp.float32)
  frames = losses.squared_error_per_frame(prediction, target)
  assert frames.shape == (2, 3)
  np.testing.assert_allclose(
    frames.mean(1), losses.squared_error_per_clip(prediction, target), rtol=1e-5
  )
  np.testing.assert_allclose(
    frames[1, 2],
    np.square(prediction[1, 2] - target[1, 2]).mean(),
    rtol=1e-5,
  )


def test_pinball_by_hand():
  prediction, target = jnp.array([0.0, 2.0]), jnp.array([1.0, 1.0])
  np.testing.assert_allclose(
    losses.pinball(prediction, target, 0.75), [1.5, 0.5]
  )
  np.testing.assert_allclose(losses.pinball(prediction, target, 0.5), 1.0)


def test_pinball_is_least_at_its_quantile():
  targets = jnp.arange(101.0)
  guesses = jnp.arange(101.0)
  loss = lambda guess: losses.pinball(
    jnp.full_like(targets, guess), targets, 0.65
  ).mean()
  assert min(guesses, key=loss) == 65.0
