"""Tests the training of the view head on tokens made up for it."""

import numpy as np

from sculpt4d_jax.training import view_training


def _clips(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  """Tokens that hold the view among noise, of clips and mirror images."""
  rng = np.random.default_rng(seed)
  views = rng.normal(size=(count, 4)) * [0.15, 0.06, 0.06, 0.1]
  views = views.astype(np.float32)
  mirrored = views * [1, -1, 1, 1]
  tokens = 0.02 * rng.normal(size=(count, 2, 4, 8))
  for side, shown in enumerate((views, mirrored)):
    tokens[:, side, :, 0] += shown
  return tokens.astype(np.float32), views


def test_views_are_learned_and_mirrored():
  config = view_training.ViewTrainingConfig(
    num_steps=400, dropout=0.0, noise=0.0
  )
  head = view_training.train(*_clips(300, 0), config)
  tokens, views = _clips(100, 1)
  errors = view_training.errors(head, tokens[:, 0], views)
  assert (errors < 0.6 * views.std(0)).all(), errors
  mirrored = views * np.float32([1, -1, 1, 1])
  errors = view_training.errors(head, tokens[:, 1], mirrored)
  assert (errors < 0.6 * views.std(0)).all(), errors


def test_the_same_seed_gives_the_same_head():
  config = view_training.ViewTrainingConfig(num_steps=3)
  tokens, views = _clips(20, 0)
  first = view_training.train(tokens, views, config)
  second = view_training.train(tokens, views, config)
  shown = tokens[:, :1]
  np.testing.assert_array_equal(first(shown), second(shown))
