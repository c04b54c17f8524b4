"""Tests the head that predicts how pictures were taken."""

from flax import nnx
import numpy as np
import pytest

from sculpt4d_jax.models import view_head

_CONFIG = view_head.ViewHeadConfig(
  num_tokens=5, token_width=6, token_features=3, width=8, num_members=2
)


def _head(seed: int = 0) -> view_head.ViewHead:
  return view_head.ViewHead(_CONFIG, rngs=nnx.Rngs(seed))


def test_answers_for_the_mean_over_frames():
  tokens = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype("f4")
  head = _head()
  expected = head(tokens.mean(1, keepdims=True))
  np.testing.assert_allclose(head(tokens), expected, atol=1e-5)
  assert head(tokens).shape == (2, view_head.NUM_OUTPUTS)


def test_answers_are_scaled_and_shifted():
  head = _head()
  tokens = np.ones((1, 1, 5, 6), np.float32)
  plain = np.asarray(head(tokens))
  head.view_scale[...] = np.array([2.0, 1, 1, 1], np.float32)
  head.view_mean[...] = np.array([0, 0, 0, 0.5], np.float32)
  expected = plain * [2, 1, 1, 1] + [0, 0, 0, 0.5]
  np.testing.assert_allclose(head(tokens), expected, atol=1e-6)


def test_sizes_must_be_positive():
  with pytest.raises(ValueError, match="width=0"):
    view_head.ViewHeadConfig(num_tokens=1, token_width=1, width=0)
