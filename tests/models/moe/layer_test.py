from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.models.moe import experts
from sculpt4d_jax.models.moe import layer as moe

D, M, E, K = 6, 10, 4, 2


def test_gates_are_the_raw_probabilities():
  router = moe.Router(2, 3, 2, rngs=nnx.Rngs(0))
  router.kernel[...] = jnp.log(jnp.array([[0.2, 0.5, 0.3], [0.6, 0.1, 0.3]]))
  routing = router(jnp.eye(2))
  np.testing.assert_array_equal(routing.chosen, [[1, 2], [0, 2]])
  np.testing.assert_allclose(routing.gates, [[0.5, 0.3], [0.6, 0.3]], rtol=1e-5)


def test_loss_and_load_by_hand():
  # Three tokens, one choice each: expert 0 twice, expert 1 once.
  probabilities = jnp.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]])
  gates, chosen = jax.lax.top_k(probabilities, 1)
  routing = moe.Routing(gates, chosen, probabilities)
  np.testing.assert_allclose(moe.expert_load(routing), [2 / 3, 1 / 3])
  # P = (0.6, 0.4), f = (4/3, 2/3).
  loss = moe.load_balancing_loss(routing, 0.01)
  np.testing.assert_allclose(loss, 0.01 * (0.8 + 0.8 / 3), rtol=1e-6)


def test_balanced_routing_costs_exactly_the_weight():
  probabilities = jnp.full((E, E), 1 / E)
  chosen = jnp.stack((jnp.arange(E), (jnp.arange(E) + 1) % E), axis=1)
  routing = moe.Routing(jnp.full((E, 2), 1 / E), chosen, probabilities)
  loss = moe.load_balancing_loss(routing, 0.01)
  np.testing.assert_allclose(loss, 0.01, rtol=1e-6)


def test_layer_adds_the_shared_expert():
  layer = moe.MoE(
    D,
    M,
    num_experts=E,
    num_chosen=K,
    aux_loss_weight=0.01,
    rngs=nnx.Rngs(0),
  )
  x = jax.random.normal(jax.random.key(0), (2, 5, D))
  tokens = x.reshape(-1, D)
  out = layer(x)
  routing = layer.router(tokens)
  routed = experts.apply_experts(
    tokens, routing.gates, routing.chosen, layer.experts.weights()
  )
  expected = routed.reshape(x.shape) + layer.shared_expert(x)
  np.testing.assert_allclose(out.y, expected, atol=1e-6)
  np.testing.assert_allclose(out.load.sum(), 1, rtol=1e-6)


def test_more_choices_than_experts_are_refused():
  with pytest.raises(ValueError, match="num_chosen=5"):
    moe.Router(D, E, 5, rngs=nnx.Rngs(0))
