"""Schedule, moving average and weight decay."""

import jax
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


def _kernels():
  rng = np.random.default_rng(0)
  shapes = {
    ("stages", "mlp", "fc1", "kernel"): (2, 4, 8),
    ("stages", "attention", "query", "kernel"): (2, 4, 2, 3),
    ("stages", "attention", "out", "kernel"): (2, 2, 3, 4),
    ("stages", "experts", "fc1", "kernel"): (2, 3, 4, 8),
    ("stages", "router", "kernel"): (2, 4, 3),
    ("stages", "mlp", "fc1", "bias"): (2, 8),
    ("embedding", "kernel"): (5, 4),
  }
  tree = {}
  for path, shape in shapes.items():
    place = tree
    for name in path[:-1]:
      place = place.setdefault(name, {})
    place[path[-1]] = jnp.array(rng.normal(size=shape), jnp.float32)
  return tree


def test_muon_orthogonalises_the_matrices_of_blocks_alone():
  grads = _kernels()
  tx = optimizer.make_optimizer(
    _config(use_muon=True, warmup_steps=0, weight_decay=0.0, max_grad_norm=1e9)
  )
  params = jax.tree.map(jnp.zeros_like, grads)
  updates, _ = tx.update(grads, tx.init(params), params)
  blocks = updates["stages"]

  def singular(matrices):
    return np.linalg.svd(np.asarray(matrices), compute_uv=False)

  for matrices in (
    blocks["mlp"]["fc1"]["kernel"],
    blocks["attention"]["query"]["kernel"].reshape(2, 4, 6),
    blocks["attention"]["out"]["kernel"].reshape(2, 6, 4),
    blocks["experts"]["fc1"]["kernel"].reshape(6, 4, 8),
  ):
    values = singular(matrices)
    # Five Newton-Schulz iterations bring all singular values near one size.
    assert values.max() / values.min() < 2.0
    # The root mean square is near AdamW's.
    rms = float(np.sqrt(np.mean(np.square(matrices))))
    assert 0.1 < rms < 0.3
  # The rest takes Adam's first step, the same size everywhere.
  for update, grad in (
    (blocks["router"]["kernel"], grads["stages"]["router"]["kernel"]),
    (blocks["mlp"]["fc1"]["bias"], grads["stages"]["mlp"]["fc1"]["bias"]),
    (updates["embedding"]["kernel"], grads["embedding"]["kernel"]),
  ):
    np.testing.assert_array_equal(np.sign(update), -np.sign(grad))
    assert np.ptp(np.abs(update)) < 1e-3
