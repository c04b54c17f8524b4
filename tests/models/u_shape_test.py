"""The U that keeps inputs, and what a policy names, against plain recursion."""

import functools

import jax
from jax import ad_checkpoint
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.models import u_shape
from tests.models import programs

_KEPT = jax.checkpoint_policies.save_only_these_names("kept")


def _down(weight, x, skip, shared):
  del skip
  hidden = ad_checkpoint.checkpoint_name(jnp.sin(x), "kept")
  return jnp.tanh(hidden * weight + shared), (x.mean(),)


def _up(weight, x, skip, shared):
  return jnp.sin(x + weight * skip) * shared, (skip.mean(),)


def _plainly(kinds, params, x, shared):
  """Blocks one after the other; as the U's, from its definition."""
  outputs, figures = [], []
  middle = sum(kind is _down for kind in kinds) - 1
  for block, kind in enumerate(kinds):
    skip = outputs[2 * middle - block] if kind is _up else None
    x, figure = kind(params[block], x, skip, shared)
    outputs.append(x)
    figures.append(figure[0])
  return x, jnp.stack(figures)


@pytest.mark.parametrize(
  "down,up",
  [
    ((3,), (2,)),
    ((1,), ()),
    ((2,), (1,)),
    ((3,), (1,)),  # One output that is no skip.
    ((2, 3), (1, 3)),  # Four stages, two of each way.
  ],
)
@pytest.mark.parametrize("policy", [None, _KEPT])
def test_outputs_figures_and_gradients_are_those_of_plain_recursion(
  down, up, policy
):
  kinds = [_down] * sum(down) + [_up] * sum(up)
  params = jax.random.normal(jax.random.key(0), (len(kinds),))
  x = jax.random.normal(jax.random.key(1), (4,))
  shared = jnp.float32(0.7)
  stages = tuple(
    [u_shape.Stage(_down, n, False) for n in down]
    + [u_shape.Stage(_up, n, True) for n in up]
  )
  ends = np.cumsum([stage.num_blocks for stage in stages])[:-1]

  def ours(params, x, shared):
    stacks = tuple(jnp.split(params, ends))
    x, figures = u_shape.run(stages, stacks, x, shared, policy)
    return x, jnp.concatenate([figure[0] for figure in figures])

  def loss(function):
    def run(*args):
      x, figures = function(*args)
      weights = jnp.arange(1.0, 1 + len(figures))
      return (x**2).sum() + (figures * weights).sum(), (x, figures)

    run = jax.value_and_grad(run, (0, 1, 2), has_aux=True)
    return jax.jit(run)(params, x, shared)

  plain = lambda *args: _plainly(kinds, *args)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
    loss(ours),
    loss(plain),
  )


@pytest.mark.parametrize("policy,times,stacks", [(None, 2, 2), (_KEPT, 1, 3)])
def test_what_a_policy_keeps_is_stored_and_not_computed_again(
  policy, times, stacks
):
  stages = (u_shape.Stage(_down, 3, False),)
  run = functools.partial(u_shape.run, stages, policy=policy)
  loss = lambda params, x: run((params,), x, jnp.float32(0.7))[0].sum()
  program = jax.make_jaxpr(jax.grad(loss, (0, 1)))(jnp.ones(3), jnp.ones(4))
  operations = list(programs.operations(program.jaxpr))
  assert sum(o.primitive.name == "sin" for o in operations) == times
  # The loop stacks the blocks' inputs and figures, and what is kept.
  forward = next(o for o in operations if o.primitive.name == "scan")
  assert len(forward.outvars) - forward.params["num_carry"] == stacks
