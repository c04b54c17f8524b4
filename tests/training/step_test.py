"""A step: parts of a batch, frozen groups, learning rates, meshes."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.models import layers
from sculpt4d_jax.models import lora
from sculpt4d_jax.training import checkpoints
from sculpt4d_jax.training import metrics
from sculpt4d_jax.training import optimizer
from sculpt4d_jax.training import parameter_groups
from sculpt4d_jax.training import state
from sculpt4d_jax.training import step


def _params():
  return {
    "temporal_attention": {"kernel": jnp.ones((3, 2))},
    "mlp": {"kernel": jnp.full((3, 2), 2.0)},
    "image_encoder": {"kernel": jnp.full((2,), 3.0)},
  }


def _draw(batch, key):
  return jax.random.normal(key, (len(batch), 3))


def _loss(params, batch, noise):
  batch = batch + noise
  y = batch @ (params["temporal_attention"]["kernel"] + params["mlp"]["kernel"])
  y = y * params["image_encoder"]["kernel"]
  late = batch[:, 0] > 0
  buckets = metrics.WeightedMean((y.sum(1) * late).sum(), late.sum())
  return (y**2).mean(), {"late": buckets, "mean": y.mean()}


def _run(**changes):
  fields = dict(learning_rate=0.1, num_steps=10, warmup_steps=0)
  config = optimizer.OptimizerConfig(**(fields | changes))
  run, tx = step.make_step(_loss, config, draw=_draw)
  batch = jax.random.normal(jax.random.key(3), (6, 3))
  return run(state.create(_params(), tx), batch, jax.random.key(0))


def test_a_batch_in_parts_is_the_batch():
  whole, parts = _run(), _run(accumulation_steps=3)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), whole, parts
  )


def test_parts_without_draws_are_refused():
  config = optimizer.OptimizerConfig(
    learning_rate=0.1, num_steps=1, accumulation_steps=2
  )
  with pytest.raises(ValueError, match="needs `draw`"):
    step.make_step(_loss, config)


def test_frozen_groups_stay_and_cost_no_moments():
  after, figures = _run(frozen=("base", "image_encoder"), weight_decay=0.5)
  before = _params()
  for name in ("mlp", "image_encoder"):
    np.testing.assert_array_equal(
      after.params[name]["kernel"], before[name]["kernel"]
    )
    assert figures[f"update_norm/{name}"] == 0
  assert figures["update_norm/temporal"] > 0
  sizes = [x.size for x in jax.tree.leaves(after.optimizer)]
  assert sum(size for size in sizes if size > 1) == 2 * 6  # Two moments.


def test_temporal_layers_have_a_rate_of_their_own():
  plain = _run(weight_decay=0.0)[0].params
  faster = _run(weight_decay=0.0, temporal_learning_rate=0.3)[0].params
  change = lambda params, name: (
    params[name]["kernel"] - _params()[name]["kernel"]
  )
  np.testing.assert_allclose(
    change(faster, "temporal_attention"),
    3 * change(plain, "temporal_attention"),
    rtol=1e-4,
  )
  np.testing.assert_allclose(change(faster, "mlp"), change(plain, "mlp"))


def test_means_over_some_clips_are_weighed_over_steps():
  values = [metrics.WeightedMean(6.0, 2.0), metrics.WeightedMean(0.0, 0.0)]
  assert metrics.mean(values) == 3.0
  assert np.isnan(metrics.mean(values[1:]))


def test_unknown_groups_are_refused():
  with pytest.raises(ValueError, match="Unknown groups .*'wings'"):
    parameter_groups.check_names(("temporal", "wings"))


class _Adapted(nnx.Module):
  def __init__(self):
    rngs = nnx.Rngs(0)
    self.fc1 = layers.Linear(3, 4, kernel_axes=("embed", "mlp"), rngs=rngs)
    self.fc2 = layers.Linear(4, 2, kernel_axes=("mlp", "embed"), rngs=rngs)
    config = lora.LoRAConfig(rank=2, modules=("fc1",))
    lora.attach(self, config, rngs=nnx.Rngs(1))

  def __call__(self, x):
    return self.fc2(jax.nn.relu(self.fc1(x)))


def test_what_is_fixed_has_no_gradient_moment_or_average(tmp_path):
  graphdef, params = nnx.split(_Adapted())

  def loss(params, batch, key):
    del key
    return (nnx.merge(graphdef, params)(batch) ** 2).mean(), {}

  config = optimizer.OptimizerConfig(
    learning_rate=0.1, num_steps=10, warmup_steps=0
  )
  run, tx = step.make_step(loss, config)
  before = state.create(params, tx, lambda path, _: lora.ADAPTER in path)
  batch = jax.random.normal(jax.random.key(3), (6, 3))
  fixed = jax.tree.map(np.asarray, before.fixed)
  b = np.asarray(before.params["fc1"]["adapter"]["b"][...])
  after, figures = run(before, batch, jax.random.key(0))
  jax.tree.map(np.testing.assert_array_equal, fixed, after.fixed)
  assert np.abs(np.asarray(after.params["fc1"]["adapter"]["b"][...]) - b).max()
  assert set(after.params) == {"fc1"} and np.isfinite(figures["grad_norm"])
  # A checkpoint holds what is trained; the rest is given again.
  store = checkpoints.Checkpoints(tmp_path)
  store.save(after)
  store.wait()
  restored = store.restore(after)
  assert not jax.tree.leaves(restored.fixed)
  jax.tree.map(np.testing.assert_array_equal, restored.params, after.params)
  store.close()
