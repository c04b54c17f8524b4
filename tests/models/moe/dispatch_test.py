"""Rows sorted by expert."""

import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax.models.moe import dispatch


def test_a_plan_worked_by_hand():
  # Two choices a token; expert 3 is of another device.
  chosen = jnp.array([[2, 0], [0, 3], [2, 0], [7, 2]])
  plan = dispatch.plan(chosen, num_experts=3, block_size=2)
  # Expert 0 has rows 0..3 of which one is padding, expert 1 none, 2 has 4..7.
  np.testing.assert_array_equal(plan.rows_per_expert, [4, 0, 4])
  np.testing.assert_array_equal(plan.row, [[4, 0], [1, 8], [5, 2], [9, 6]])
  np.testing.assert_array_equal(plan.choice, [1, 2, 5, 8, 0, 4, 7, 8, 3, 6])


def test_the_order_is_that_of_a_stable_sort():
  chosen = jax.random.randint(jax.random.key(0), (40, 2), 0, 6)
  plan = dispatch.plan(chosen, num_experts=5, block_size=1)
  used = np.array(plan.choice)[: int((chosen < 5).sum())]
  order = np.argsort(np.array(chosen).reshape(-1), kind="stable")
  np.testing.assert_array_equal(used, order[: len(used)])


def test_dispatch_and_collect_are_each_others_transpose():
  chosen = jax.random.randint(jax.random.key(0), (12, 2), 0, 5)
  plan = dispatch.plan(chosen, num_experts=4, block_size=4)
  x = jax.random.normal(jax.random.key(1), (12, 3))
  y = jax.random.normal(jax.random.key(2), (len(plan.choice), 3))
  rows, vjp = jax.vjp(lambda x: dispatch.dispatch(x, plan), x)
  choices = dispatch.collect(y, plan)
  assert not np.array(choices)[np.array(chosen) == 4].any()
  # <dispatch(x), y> = <x, transpose(y)>, for choices of experts here.
  y = jnp.where(jnp.arange(len(y))[:, None] < plan.rows_per_expert.sum(), y, 0)
  np.testing.assert_allclose((rows * y).sum(), (x * vjp(y)[0]).sum(), rtol=1e-5)
  np.testing.assert_allclose(vjp(y)[0], choices.sum(1), atol=1e-6)
