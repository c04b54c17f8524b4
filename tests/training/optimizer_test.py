"""Schedule, moving average and weight decay."""

import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.training import optimizer


def _config(**changes):
  fields = dict(learning_rate=1.0, num_steps=100, warmup_steps=10)
  return optimizer.OptimizerConfig(**(fields | changes))


def test_rate_warms_up_stays_and_decays():
  schedule = optimizer.learning_rate_schedule(
    _config(decay_fraction=0.4, final_fraction=0.1)
  )
  rates = [float(schedule(step)) for step in (0, 5, 10, 59, 80, 100)]
  # The decay takes the last 40 steps: half of the way is at 80.
  np.testing.assert_allclose(rates, [0, 0.5, 1, 1, 0.55, 0.1], atol=0.01)


def test_decay_over_the_whole_run_starts_after_the_warm_up():
  schedule = optimizer.learning_rate_schedule(_config(final_fraction=0.0))
  np.testing.assert_allclose(
    [float(schedule(s)) for s in (10, 55, 100)], [1, 0.5, 0], atol=1e-6
  )


def test_average_warms_up():
  # Step 0: min(0.999, 1 / 10); step 90: 91 / 100.
  for step, expected in ((0, 0.9), (90, 0.09), (10**6, 0.001)):
    ema = optimizer.update_ema(
      jnp.zeros(()), jnp.ones(()), jnp.array(step), 0.999
    )
    np.testing.assert_allclose(ema, expected, rtol=1e-4)


def test_only_kernels_decay():
  params = {"fc": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
  tx = optimizer.make_optimizer(_config(weight_decay=0.5, warmup_steps=0))
  grads = {"fc": {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}}
  updates, _ = tx.update(grads, tx.init(params), params)
  np.testing.assert_allclose(updates["fc"]["kernel"], -0.5)
  np.testing.assert_allclose(updates["fc"]["bias"], 0.0)


def test_impossible_settings_are_refused():
  with pytest.raises(ValueError, match="decay_fraction"):
    _config(decay_fraction=0.0)
  with pytest.raises(ValueError, match="num_steps"):
    _config(num_steps=0)
