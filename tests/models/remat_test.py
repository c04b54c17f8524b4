"""What is kept and what is computed again, read off traced programs."""

import jax
import jax.numpy as jnp
import pytest

from sculpt4d_jax.kernels.block_sparse_attention import residuals
from sculpt4d_jax.models import remat
from sculpt4d_jax.models import tpu_attention
from tests.models import programs


def _traced_gradient(name, num_tokens, num_keys):
  """The program of a layer: a product, attention, another product."""

  def layer(x, weight):
    query = remat.product(jnp.einsum("bqhk,kl->bqhl", x, weight))
    key = query[:, :num_keys]
    out = tpu_attention.attend(query, key, key, interpret=True)
    return jnp.einsum("bqhk,kl->bqhl", jnp.sin(out), weight)

  kept = jax.checkpoint(layer, policy=remat.policy(name))
  objective = lambda x, weight: kept(x, weight).astype(jnp.float32).sum()
  x = jnp.zeros((1, num_tokens, 1, 64), jnp.bfloat16)
  weight = jnp.zeros((64, 64), jnp.bfloat16)
  return jax.make_jaxpr(jax.grad(objective, 1))(x, weight).jaxpr


def _count(program, is_counted):
  return sum(map(bool, map(is_counted, programs.operations(program))))


def test_our_kernels_run_once_where_their_results_are_kept():
  runs = {
    name: _count(
      _traced_gradient(name, 1024, 1024),
      lambda operation: (
        "block_sparse_forward" in str(operation.params.get("name", ""))
        and operation.primitive.name == "pallas_call"
      ),
    )
    for name in ("full", "keep_attention", "keep_products")
  }
  assert runs == {"full": 2, "keep_attention": 1, "keep_products": 1}


def test_products_run_once_where_their_results_are_kept():
  products = {
    name: _count(
      _traced_gradient(name, 1024, 512),
      lambda operation: operation.primitive.name == "dot_general",
    )
    for name in ("full", "keep_attention", "keep_products")
  }
  # The first product of the two; what the second one makes nobody needs.
  assert products["keep_products"] == products["keep_attention"] - 1


def test_the_kernels_have_the_name_that_policies_keep():
  assert residuals.name(1) == remat.ATTENTION
  assert residuals.name(16) == remat.TEMPORAL


def test_an_unknown_policy_is_refused():
  remat.check("dots_saveable")
  with pytest.raises(ValueError, match="remat_policy='half'.*keep_attention"):
    remat.check("half")
