"""Blocks of a U, of which the backward pass keeps the inputs and nothing else.

    down      x[b + 1] = block(x[b])                  for b in 0 .. middle
    up        x[b + 1] = block(x[b], skip of b)       after the middle

The skip of the j-th block of the way up is the output of block middle - 1 - j,
which is the INPUT of block middle - j, and inputs are kept anyhow. So the U as a
whole costs one activation a block, where differentiating loops one by one would
keep every skip three times more: as an output, reversed, and as an input. On the
way back the gradient of a skip takes the place of the input of the block that
took it, which is not needed any more.

Everything else of a block is computed again. Blocks of the same kind run in one
loop, so that one block of each kind is compiled.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from sculpt4d_jax import array_types

Array = array_types.Array
# (params, x, skip or None, shared) -> (x, figures)
Apply = Callable[[Any, Array, Array | None, Any], tuple[Array, Any]]


class Stage(NamedTuple):
  """Consecutive blocks of one kind.

  Attributes:
    apply: One block.
    num_blocks: How many there are.
    has_skip: Whether they are on the way up.
  """

  apply: Apply
  num_blocks: int
  has_skip: bool


def run(
  stages: tuple[Stage, ...],
  params: tuple[Any, ...],
  x: Array,
  shared: Any,
) -> tuple[Array, tuple[Any, ...]]:
  """Applies all blocks.

  Args:
    stages: On the way down, the middle included; then on the way up.
    params: Parameters of every stage, stacked [L, ...].
    x: Input of the first block.
    shared: What every block sees: floating point arrays, or None.

  Returns:
    The last block's output, and the figures of every stage's blocks, stacked.
  """

  @jax.custom_vjp
  def u_shape(params, x, shared):
    x, figures, _ = _forward(stages, params, x, shared)
    return x, figures

  def forward(params, x, shared):
    x, figures, inputs = _forward(stages, params, x, shared)
    return (x, figures), (params, shared, inputs)

  def backward(residuals, cotangents):
    return _backward(stages, *residuals, *cotangents)

  u_shape.defvjp(forward, backward)
  return u_shape(params, x, shared)


def _forward(stages, params, x, shared):
  inputs, figures, num_taken = [], [], 0
  for stage, stack in zip(stages, params, strict=True):
    skips = _skips(stages, inputs) if stage.has_skip else None

    def step(x, block, stage=stage, skips=skips, num_taken=num_taken):
      params, index = block
      skip = _skip(skips, num_taken + index)
      y, figures = stage.apply(params, x, skip, shared)
      return y, (x, figures)

    x, (kept, figure) = lax.scan(step, x, (stack, jnp.arange(stage.num_blocks)))
    inputs.append(kept)
    figures.append(figure)
    num_taken += stage.num_blocks * stage.has_skip
  return x, tuple(figures), tuple(inputs)


def _backward(stages, params, shared, inputs, x_bar, figures_bar):
  skips = _skips(stages, inputs)
  shared_bar = jax.tree.map(jnp.zeros_like, shared)
  num_taken = sum(s.num_blocks for s in stages if s.has_skip)
  first = sum(s.num_blocks for s in stages)
  num_down = first - num_taken
  params_bar, skip_bars = [], []  # The last stage's first; the newest first.
  for stage, stack, kept, figure_bar in reversed(
    list(zip(stages, params, inputs, figures_bar, strict=True))
  ):
    first -= stage.num_blocks
    num_taken -= stage.num_blocks * stage.has_skip

    def step(
      carry,
      block,
      stage=stage,
      num_taken=num_taken,
      first=first,
      skip_bars=tuple(skip_bars),
    ):
      x_bar, shared_bar, kept = carry
      params, figure_bar, index = block
      x = lax.dynamic_index_in_dim(kept, index, keepdims=False)
      if stage.num_blocks == 1:
        # XLA inlines a loop of one turn, and would find the forward pass there
        # and keep all of its activations.
        x = lax.optimization_barrier(x)
      skip = None
      if stage.has_skip:
        skip = _skip(skips, num_taken + index)
      else:
        x_bar = _add_skip_bar(x_bar, skip_bars, num_down - 2 - first - index)
      _, vjp = jax.vjp(stage.apply, params, x, skip, shared)
      params_bar, x_bar, skip_bar, contribution = vjp((x_bar, figure_bar))
      shared_bar = jax.tree.map(jnp.add, shared_bar, contribution)
      if stage.has_skip:
        kept = lax.dynamic_update_index_in_dim(kept, skip_bar, index, 0)
      return (x_bar, shared_bar, kept), params_bar

    (x_bar, shared_bar, kept), bar = lax.scan(
      step,
      (x_bar, shared_bar, kept),
      (stack, figure_bar, jnp.arange(stage.num_blocks)),
      reverse=True,
    )
    params_bar.insert(0, bar)
    if stage.has_skip:
      skip_bars.insert(0, kept)
  return tuple(params_bar), x_bar, shared_bar


def _skips(stages, inputs):
  """Inputs of the blocks on the way down, the newest last."""
  down = [x for stage, x in zip(stages, inputs) if not stage.has_skip]
  return down[0] if len(down) == 1 else jnp.concatenate(down)


def _skip(skips, number):
  """The skip that is taken after `number` others."""
  if skips is None:
    return None
  return lax.dynamic_index_in_dim(
    skips, len(skips) - 1 - number, keepdims=False
  )


def _add_skip_bar(x_bar, skip_bars, number):
  """Adds the gradient of the skip that was taken after `number` others.

  Outputs of other numbers were no skips: that of the middle, and of one block
  more where there are more on the way down than up.
  """
  for stack in skip_bars:
    is_here = (number >= 0) & (number < len(stack))
    index = jnp.clip(number, 0, len(stack) - 1)
    bar = lax.dynamic_index_in_dim(stack, index, keepdims=False)
    x_bar = x_bar + jnp.where(is_here, bar, 0)
    number -= len(stack)
  return x_bar
