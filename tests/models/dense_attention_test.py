"""Attention without a mask equals the library's for all chunk sizes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.models import dense_attention


def random(seed, *shape):
  return jax.random.normal(jax.random.key(seed), shape)


def test_uniform_scores_average_the_values():
  value = random(0, 1, 5, 1, 4)
  out = dense_attention.dot_product_attention(
    jnp.zeros((1, 2, 1, 4)), random(1, 1, 5, 1, 4), value
  )
  expected = np.broadcast_to(value.mean(1, keepdims=True), out.shape)
  np.testing.assert_allclose(out, expected, atol=1e-6)


def test_agrees_with_the_library():
  query = random(0, 2, 7, 3, 8)
  key, value = random(1, 2, 2, 5, 3, 8)
  expected = jax.nn.dot_product_attention(query, key, value)
  out = dense_attention.dot_product_attention(query, key, value)
  np.testing.assert_allclose(out, expected, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunks_change_neither_output_nor_gradients(chunk):
  arrays = random(0, 2, 7, 3, 8), *random(1, 2, 2, 5, 3, 8)

  def objective(query, key, value, max_scores):
    out = dense_attention.dot_product_attention(
      query, key, value, implementation="xla", max_scores=max_scores
    )
    return jnp.sum(jnp.sin(out)), out

  differentiate = jax.grad(objective, argnums=(0, 1, 2), has_aux=True)
  whole = differentiate(*arrays, 2**20)
  chunked = differentiate(*arrays, chunk * 2 * 3 * 5)
  for a, b in zip(jax.tree.leaves(chunked), jax.tree.leaves(whole)):
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_unknown_implementation_is_refused():
  x = random(0, 1, 2, 1, 4)
  with pytest.raises(ValueError, match="flash"):
    dense_attention.dot_product_attention(x, x, x, implementation="flash")


# 6 heads of 7 x 5 scores: pairs of heads, single heads, parts of queries.
@pytest.mark.parametrize("size", [2 * 35 + 1, 35, 12, 1])
@pytest.mark.parametrize("recompute", [False, True])
def test_parts_on_cpus_change_nothing(monkeypatch, size, recompute):
  arrays = random(0, 2, 7, 3, 8), *random(1, 2, 2, 5, 3, 8)

  def results(*arrays):
    attend = lambda *xs: dense_attention.dot_product_attention(
      *xs, implementation="xla", max_scores=1 if recompute else 2**20
    )
    output, vjp = jax.vjp(attend, *arrays)
    return output, *vjp(jnp.sin(output))

  expected = results(*arrays)
  monkeypatch.setattr(dense_attention, "CPU_SCORES", size)
  actual = results(*arrays)
  for x, y in zip(actual, expected, strict=True):
    np.testing.assert_allclose(x, y, atol=2e-6)


def test_parts_of_half_precision_are_as_good_as_the_whole():
  query = random(0, 2, 1100, 2, 8).astype(jnp.bfloat16)
  attend = lambda x: dense_attention.dot_product_attention(x, x, x)
  out = jax.jit(attend)(query)
  assert out.dtype == jnp.bfloat16
  expected = jax.nn.dot_product_attention(*[query.astype(jnp.float32)] * 3)
  np.testing.assert_allclose(out, expected, atol=0.02)
