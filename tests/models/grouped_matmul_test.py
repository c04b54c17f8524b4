"""The TPU kernels of grouped products, in the interpreter."""

import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax.models import experts
from sculpt4d_jax.models import grouped_matmul


def _case(sizes, block_size, num_rows):
  rng = np.random.default_rng(0)
  rows = rng.normal(size=(num_rows, 128)).astype(np.float32)
  kernel = rng.normal(size=(len(sizes), 128, 256)).astype(np.float32)
  blocks = grouped_matmul.blocks_of(jnp.array(sizes), num_rows, block_size)
  return jnp.array(rows), jnp.array(kernel), blocks


def _expected(rows, kernel, sizes):
  out, start = np.zeros((len(rows), kernel.shape[2]), np.float32), 0
  for size, matrix in zip(sizes, kernel):
    out[start : start + size] = rows[start : start + size] @ matrix
    start += size
  return jnp.array(out)


def test_products_and_gradients_with_an_empty_group_and_unused_blocks():
  sizes = [16, 0, 32, 8]  # The last 8 of 64 rows are of no group.
  rows, kernel, blocks = _case(sizes, 8, 64)
  weight = jnp.array(
      np.random.default_rng(1).normal(size=(64, 256)), jnp.float32
  )

  def ours(rows, kernel):
    return (grouped_matmul.multiply(rows, kernel, blocks) * weight).sum()

  def plain(rows, kernel):
    owner = np.repeat([0, 2, 3, 4], [16, 32, 8, 8])
    matrices = jnp.concatenate([kernel, jnp.zeros_like(kernel[:1])])[owner]
    return (jnp.einsum("rd,rdm->rm", rows, matrices) * weight).sum()

  np.testing.assert_allclose(
      grouped_matmul.multiply(rows, kernel, blocks),
      _expected(np.array(rows), np.array(kernel), sizes), atol=1e-4,
  )
  for a, b in zip(
      jax.grad(ours, (0, 1))(rows, kernel), jax.grad(plain, (0, 1))(rows, kernel)
  ):
    np.testing.assert_allclose(a, b, atol=1e-4)


def test_experts_on_the_kernels_equal_the_dense_evaluation():
  keys = jax.random.split(jax.random.key(0), 7)
  normal = lambda key, *shape: 0.1 * jax.random.normal(key, shape)
  weights = experts.ExpertWeights(
      normal(keys[0], 4, 128, 256), normal(keys[1], 4, 256),
      normal(keys[2], 4, 256, 128), normal(keys[3], 4, 128),
  )
  x = normal(keys[4], 40, 128)
  gates = jax.random.uniform(keys[5], (40, 2))
  # Expert 2 is never chosen; 4 is an expert of another device.
  chosen = jnp.stack([jnp.arange(40) % 2, jnp.where(jnp.arange(40) < 9, 4, 3)], 1)

  def loss(implementation):
    def run(x, gates, weights):
      y = experts.apply_experts(
          x, gates, chosen, weights, implementation=implementation
      )
      return (y * jnp.cos(jnp.arange(128.0))).sum(), y

    return jax.value_and_grad(run, (0, 1, 2), has_aux=True)(x, gates, weights)

  expected, others = loss("dense"), ("grouped", "blocked", "ragged")
  for implementation in others:
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(
            a, b, atol=2e-5, err_msg=implementation
        ),
        loss(implementation), expected,
    )
