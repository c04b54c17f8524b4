"""Means of metrics over steps and over micro-batches."""

import jax.numpy as jnp
import numpy as np

from sculpt4d_jax.training import metrics

Mean = metrics.WeightedMean


def test_micro_batches_are_joined_by_their_weights():
  """Two micro-batches with 1 and 3 clips of a kind: 2 and 6 in sum."""
  joined = metrics.join(
    {
      "loss": jnp.array([1.0, 3.0]),
      "late": Mean(jnp.array([2.0, 6.0]), jnp.array([1.0, 3.0])),
    }
  )
  assert joined["loss"] == 2.0
  assert metrics.mean([metrics.to_host(joined)["late"]]) == 2.0


def test_steps_without_clips_of_a_kind_do_not_count():
  values = [Mean(6.0, 2.0), Mean(0.0, 0.0), Mean(2.0, 2.0)]
  assert metrics.mean(values) == 2.0
  assert np.isnan(metrics.mean([Mean(0.0, 0.0)]))
  assert metrics.mean([1.0, 2.0]) == 1.5


def test_a_stopwatch_adds_up_until_it_is_reset():
  watch = metrics.Stopwatch()
  seconds = []
  for _ in range(2):
    with watch:
      pass
    seconds.append(watch.seconds)
  assert 0 <= seconds[0] <= seconds[1]
  watch.reset()
  assert watch.seconds == 0
