import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.models import rope


def test_angles_by_hand():
  # Head width 4, theta 100: frequencies 1 and 1/10, each twice, side by side.
  rotation = rope.frame_rotation(jnp.array([0.0, 2.0]), 4, theta=100.0)
  expected = np.cos([[0, 0, 0, 0], [2, 2, 0.2, 0.2]])
  np.testing.assert_allclose(rotation.cos, expected, atol=1e-7)


def test_head_of_128_has_64_frequencies_from_1_to_about_1e_minus_4():
  rotation = rope.frame_rotation(jnp.array([1.0]), 128)
  angles = np.arcsin(rotation.sin[0])
  np.testing.assert_array_equal(angles[0::2], angles[1::2])
  frequencies = 10000.0 ** -(np.arange(64) / 64)
  np.testing.assert_allclose(angles[0::2], frequencies, rtol=1e-5)


def test_pairs_of_neighbouring_channels_turn():
  # A quarter turn takes (1, 0) to (0, 1), in channels 0 and 1.
  rotation = rope.Rotation(jnp.zeros((1, 4)), jnp.ones((1, 4)))
  x = jnp.array([1.0, 0.0, 3.0, 5.0]).reshape(1, 1, 1, 1, 4)
  turned = rope.rotate(x, rotation).reshape(-1)
  np.testing.assert_array_equal(turned, [0, 1, -5, 3])


def test_scores_depend_on_the_distance_in_time_only():
  query, key = jax.random.normal(jax.random.key(0), (2, 16))

  def score(i, j):
    rotation = rope.frame_rotation(jnp.array([i, j]), 16)
    pair = jnp.stack((query, key)).reshape(1, 2, 1, 1, 16)
    turned = rope.rotate(pair, rotation)[0, :, 0, 0]
    return turned[0] @ turned[1]

  np.testing.assert_allclose(score(5, 2), score(13, 10), rtol=1e-5)
  assert abs(score(5, 2) - score(5, 4)) > 1e-3


def test_rotation_keeps_norms_and_dtype():
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 2, 8), jnp.bfloat16)
  rotation = rope.frame_rotation(jnp.arange(3), 8)
  turned = rope.rotate(x, rotation)
  assert turned.dtype == jnp.bfloat16
  norm = lambda y: np.linalg.norm(np.float32(y), axis=-1)
  np.testing.assert_allclose(norm(turned), norm(x), rtol=2e-2)


def test_half_precision_is_rotated_in_float32():
  x = jax.random.normal(jax.random.key(0), (1, 3, 4, 2, 8), jnp.bfloat16)
  rotation = rope.frame_rotation(jnp.arange(3), 8)
  exact = rope.rotate(x.astype(jnp.float32), rotation).astype(jnp.bfloat16)
  np.testing.assert_array_equal(rope.rotate(x, rotation), exact)


@pytest.mark.parametrize("by_product", [False, True])
def test_gradients_are_rotated_back(by_product):
  x, bar = jax.random.normal(jax.random.key(0), (2, 2, 3, 4, 2, 8))
  rotation = rope.frame_rotation(jnp.arange(3), 8)
  turn = lambda x: rope.rotate(x, rotation, by_product=by_product)
  (gradient,) = jax.vjp(turn, x)[1](turn(bar))
  np.testing.assert_allclose(gradient, bar, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_product_turns_as_exchanged_pairs_do(dtype):
  x = jax.random.normal(jax.random.key(0), (2, 3, 4, 2, 8), dtype)
  rotation = rope.frame_rotation(jnp.arange(3), 8)
  first, second = (
    rope.rotate(x, rotation, by_product=flag) for flag in (False, True)
  )
  np.testing.assert_array_equal(first, second)


def test_odd_heads_are_refused():
  with pytest.raises(ValueError, match="odd"):
    rope.frame_rotation(jnp.arange(2), 7)
