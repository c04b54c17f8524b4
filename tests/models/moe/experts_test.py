import functools
import math

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.models.moe import experts

T, D, M, E, K = 50, 6, 10, 4, 2


def random(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def expert_weights():
  return experts.Experts(E, D, M, rngs=nnx.Rngs(0)).weights()


def choices_by(logits, num_chosen=K):
  """Gates and chosen experts."""
  return jax.lax.top_k(jax.nn.softmax(logits), num_chosen)


WAYS = {
  "dense": dict(implementation="dense"),
  "ragged": dict(implementation="ragged"),
  "at_once": dict(implementation="blocked", max_gathered_weights=2**40),
  "one_by_one": dict(implementation="blocked", max_gathered_weights=0),
}


def token_by_token(x, gates, chosen, weights):
  """The definition, in float64 numpy."""
  kernel1, bias1, kernel2, bias2 = (np.float64(w) for w in weights)
  x, y = np.float64(x), np.zeros(x.shape)
  erf = np.vectorize(math.erf)
  for t in range(len(x)):
    for gate, e in zip(np.float64(gates[t]), chosen[t]):
      hidden = x[t] @ kernel1[e] + bias1[e]
      hidden = hidden * 0.5 * (1 + erf(hidden / np.sqrt(2)))
      y[t] += gate * (hidden @ kernel2[e] + bias2[e])
  return y


@pytest.mark.parametrize("way", WAYS)
def test_every_implementation_equals_the_definition(way):
  x, weights = random(0, T, D), expert_weights()
  gates, chosen = choices_by(random(1, T, E))
  y = experts.apply_experts(
    x, gates, chosen, weights, block_size=8, **WAYS[way]
  )
  expected = token_by_token(x, gates, chosen, weights)
  np.testing.assert_allclose(y, expected, atol=2e-6)


def objective(way, block_size, x, logits, weights):
  y = experts.apply_experts(
    x, *choices_by(logits), weights, block_size=block_size, **WAYS[way]
  )
  return jnp.sum(jnp.sin(y))


@pytest.mark.parametrize("way", ["ragged", "at_once", "one_by_one"])
@pytest.mark.parametrize("block_size", [1, 16])
def test_gradients_equal_those_of_dense(way, block_size):
  args = random(0, T, D), random(1, T, E), expert_weights()
  gradient = lambda way: jax.jit(
    jax.grad(functools.partial(objective, way, block_size), (0, 1, 2))
  )(*args)
  expected = jax.tree.leaves(gradient("dense"))
  for a, b in zip(jax.tree.leaves(gradient(way)), expected, strict=True):
    np.testing.assert_allclose(a, b, atol=5e-6)


@pytest.mark.parametrize("way", WAYS)
def test_all_tokens_may_choose_the_same_experts(way):
  x, weights = random(0, T, D), expert_weights()
  logits = jnp.broadcast_to(jnp.array([0.0, 5.0, 0.0, 4.0]), (T, E))
  gates, chosen = choices_by(logits)
  y = experts.apply_experts(
    x, gates, chosen, weights, block_size=8, **WAYS[way]
  )
  expected = token_by_token(x, gates, chosen, weights)
  np.testing.assert_allclose(y, expected, atol=2e-6)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("num_chosen", [1, 4])
def test_any_number_of_choices(way, num_chosen):
  x, weights = random(0, 9, D), expert_weights()
  gates, chosen = choices_by(random(1, 9, E), num_chosen)
  y = experts.apply_experts(
    x, gates, chosen, weights, block_size=4, **WAYS[way]
  )
  expected = token_by_token(x, gates, chosen, weights)
  np.testing.assert_allclose(y, expected, atol=2e-6)


def test_half_precision_stays_close():
  x, weights = random(0, T, D), expert_weights()
  gates, chosen = choices_by(random(1, T, E))
  halves = jax.tree.map(lambda w: w.astype(jnp.bfloat16), weights)
  for kwargs in WAYS.values():
    y = experts.apply_experts(
      x.astype(jnp.bfloat16), gates, chosen, halves, block_size=8, **kwargs
    )
    assert y.dtype == jnp.bfloat16
    expected = token_by_token(x, gates, chosen, weights)
    np.testing.assert_allclose(np.float32(y), expected, atol=0.03)


def test_unknown_implementation_is_refused():
  with pytest.raises(ValueError, match="capacity"):
    experts.apply_experts(
      random(0, 3, D),
      *choices_by(random(1, 3, E)),
      expert_weights(),
      implementation="capacity",
    )


@pytest.mark.parametrize(
  "platform, rows, expected",
  [
    ("cpu", 16_384, 128),
    ("gpu", 100, 128),
    ("gpu", 4096, 512),
    ("cuda", 16_384, 1024),
    ("gpu", 10**6, 1024),
  ],
)
def test_a_gpu_multiplies_large_blocks(monkeypatch, platform, rows, expected):
  sizes = []

  def blocked(x, gates, chosen, weights, block_size, max_gathered_weights):
    sizes.append(block_size)
    return x

  monkeypatch.setattr(experts, "_blocked", blocked)
  monkeypatch.setattr(
    experts.partitioning, "platform", lambda: (platform, "any")
  )
  tokens = rows * E // K
  x = jax.ShapeDtypeStruct((tokens, D), jnp.float32)
  gates = jax.ShapeDtypeStruct((tokens, K), jnp.float32)
  chosen = jax.ShapeDtypeStruct((tokens, K), jnp.int32)
  # A new function, as JAX keeps what it has traced.
  apply = lambda *args: experts.apply_experts(*args)
  jax.eval_shape(apply, x, gates, chosen, expert_weights())
  assert sizes == [expected]
