"""The TPU kernels of grouped products, in the interpreter."""

import jax.numpy as jnp
import numpy as np

from sculpt4d_jax.models.moe import grouped_matmul


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
  return out


SIZES = (16, 0, 32, 8)  # The last 8 of 64 rows are of no group.


def _owners():
  return np.repeat(np.arange(5), [*SIZES, 8])


def test_products_with_an_empty_group_and_unused_blocks():
  rows, kernel, blocks = _case(SIZES, 8, 64)
  y = grouped_matmul.multiply(rows, kernel, blocks)
  expected = _expected(np.array(rows), np.array(kernel), SIZES)
  np.testing.assert_allclose(y, expected, atol=1e-4)
  back = grouped_matmul.multiply(y, kernel, blocks, transposed=True)
  turned = np.swapaxes(np.array(kernel), 1, 2)
  expected = _expected(np.array(y), turned, SIZES)
  np.testing.assert_allclose(back, expected, rtol=1e-4, atol=1e-3)


def test_products_add_a_bias_and_go_on_from_a_sum():
  rows, kernel, blocks = _case(SIZES, 8, 64)
  rng = np.random.default_rng(1)
  bias = rng.normal(size=(4, 256)).astype(np.float32)
  initial = rng.normal(size=(64, 256)).astype(np.float32)
  y = grouped_matmul.multiply(
    rows, kernel, blocks, bias=jnp.array(bias), initial=jnp.array(initial)
  )
  expected = initial + _expected(np.array(rows), np.array(kernel), SIZES)
  used = _owners() < 4
  expected[used] += bias[_owners()[used]]
  np.testing.assert_allclose(y[used], expected[used], atol=1e-4)
  # bfloat16 rows are added to a sum in float32.
  y = grouped_matmul.multiply(
    rows.astype(jnp.bfloat16),
    kernel.astype(jnp.bfloat16),
    blocks,
    initial=jnp.array(initial),
  )
  assert y.dtype == jnp.float32


def test_outer_products_are_summed_over_each_group():
  rows, kernel, blocks = _case(SIZES, 8, 64)
  others = jnp.array(
    np.random.default_rng(1).normal(size=(64, 256)), jnp.float32
  )
  sums = grouped_matmul.outer(rows, others, blocks)
  for group in range(4):
    is_in = _owners() == group
    np.testing.assert_allclose(
      sums[group], rows[is_in].T @ others[is_in], atol=1e-4
    )
  assert kernel.shape == sums.shape


def test_lanes_that_are_whole_are_served():
  assert grouped_matmul.serves(jnp.bfloat16, 2048, 8192)
  assert not grouped_matmul.serves(jnp.bfloat16, 2048, 96)
  assert not grouped_matmul.serves(jnp.float16, 2048, 8192)
