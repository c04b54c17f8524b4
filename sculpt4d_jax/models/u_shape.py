"""A U of blocks that stores the blocks' inputs, and little else.

    down      x[b + 1] = block(x[b])                  for b in 0 .. middle
    up        x[b + 1] = block(x[b], skip of b)       after the middle

    block     0      1      2      3      4        five blocks, middle = 2
    input    x[0]   x[1]   x[2]   x[3]   x[4]
                     |      +-skip--^      ^
                     +--------skip---------+

The skip of the j-th block on the way up is the output of block middle - 1 - j.
That is the INPUT of block middle - j, and inputs are stored anyway. The whole U
thus stores one activation a block. Differentiating the loops separately would
store every skip three more times: as an output, reversed, and as an input. In
the backward pass the gradient of a skip overwrites the stored input of the
block that took it, which is no longer needed.

All other activations of a block are recomputed, but for those that a policy of
`jax.checkpoint` keeps. Blocks of one kind run in one loop, so each kind is
compiled once.
"""

from collections.abc import Callable
import functools
from typing import Any, NamedTuple

import jax
from jax import lax
import jax.numpy as jnp

from sculpt4d_jax import array_types

Array = array_types.Array
# What goes from block to block: an array, or a tree of them.
State = Any
# (params, x, skip or None, shared) -> (x, figures)
Apply = Callable[[Any, State, State | None, Any], tuple[State, Any]]
# What `jax.checkpoint` takes; None keeps nothing.
Policy = Callable[..., Any] | None
# A block's gradients from its inputs; its leaves are the kept activations.
_Pullback = jax.tree_util.Partial
# Parameters of all stages, shared inputs, inputs and pullbacks of every stage's
# blocks, stacked.
_Residuals = tuple[
  tuple[Any, ...], Any, tuple[State, ...], tuple[_Pullback, ...]
]
# The last block's output, and the figures of all stages.
_Output = tuple[State, tuple[Any, ...]]


class Stage(NamedTuple):
  """Consecutive blocks of one kind.

  Attributes:
    apply: Function of one block.
    num_blocks: Number of blocks.
    has_skip: Whether the blocks are on the way up and take a skip.
  """

  apply: Apply
  num_blocks: int
  has_skip: bool


def run(
  stages: tuple[Stage, ...],
  params: tuple[Any, ...],
  x: State,
  shared: Any,
  policy: Policy = None,
) -> tuple[State, tuple[Any, ...]]:
  """Applies all blocks.

  Args:
    stages: Stages on the way down including the middle, then on the way up.
    params: Parameters of every stage, stacked [L, ...].
    x: Input of the first block.
    shared: Inputs of every block: floating point arrays, or None.
    policy: Choice of activations kept for the backward pass, besides inputs.

  Returns:
    The last block's output, and the figures (auxiliary outputs) of every
    stage's blocks, stacked.
  """

  @jax.custom_vjp
  def u_shape(params: tuple[Any, ...], x: State, shared: Any) -> _Output:

    def apply(stage: Stage, *inputs: Any) -> tuple[State, tuple[Any, None]]:
      x, figures = stage.apply(*inputs)
      return x, (figures, None)

    x, figures, _, _ = _forward(stages, apply, params, x, shared)
    return x, figures

  def forward(
    params: tuple[Any, ...], x: State, shared: Any
  ) -> tuple[_Output, _Residuals]:
    apply = functools.partial(_apply_and_keep, policy)
    x, figures, inputs, pullbacks = _forward(stages, apply, params, x, shared)
    return (x, figures), (params, shared, inputs, pullbacks)

  def backward(
    residuals: _Residuals, cotangents: _Output
  ) -> tuple[tuple[Any, ...], State, Any]:
    return _backward(stages, *residuals, *cotangents)

  u_shape.defvjp(forward, backward)
  return u_shape(params, x, shared)


def _apply_and_keep(
  policy: Policy, stage: Stage, *inputs: Any
) -> tuple[State, tuple[Any, _Pullback]]:
  """Applies a block; also returns its gradients as a function of its inputs."""
  # Every loop keeps XLA from merging the recomputation with the forward pass.
  apply = jax.checkpoint(stage.apply, policy=policy, prevent_cse=False)
  (x, figures), vjp = jax.vjp(apply, *inputs)
  # Inputs among the residuals are stored elsewhere, or computed again.
  leaves, tree = jax.tree.flatten(vjp)
  numbers = {id(leaf): n for n, leaf in enumerate(jax.tree.leaves(inputs))}
  places = [numbers.get(id(leaf)) for leaf in leaves]

  def pull_back(kept: list[Array], inputs: Any, bars: Any) -> Any:
    kept, inputs = iter(kept), jax.tree.leaves(inputs)
    vjp = tree.unflatten(
      [next(kept) if place is None else inputs[place] for place in places]
    )
    return vjp(bars)

  kept = [leaf for leaf, place in zip(leaves, places) if place is None]
  return x, (figures, _Pullback(pull_back, kept))


def _forward(
  stages: tuple[Stage, ...],
  apply: Callable[..., tuple[State, tuple[Any, Any]]],
  params: tuple[Any, ...],
  x: State,
  shared: Any,
) -> tuple[State, tuple[Any, ...], tuple[State, ...], tuple[Any, ...]]:
  """Applies all blocks.

  Returns:
    The last output; of every stage's blocks, stacked: figures, inputs, and the
    last result of `apply`.
  """
  inputs, figures, pullbacks, num_taken = [], [], [], 0
  for stage, stack in zip(stages, params, strict=True):
    skips = _skips(stages, inputs) if stage.has_skip else None

    def step(
      x: State,
      block: tuple[Any, Array],
      stage: Stage = stage,
      skips: State | None = skips,
      num_taken: int = num_taken,
    ) -> tuple[State, tuple[State, Any]]:
      params, index = block
      skip = _skip(skips, num_taken + index)
      y, results = apply(stage, params, x, skip, shared)
      return y, (x, results)

    x, (kept, (figure, pullback)) = lax.scan(
      step, x, (stack, jnp.arange(stage.num_blocks))
    )
    inputs.append(kept)
    figures.append(figure)
    pullbacks.append(pullback)
    num_taken += stage.num_blocks * stage.has_skip
  return x, tuple(figures), tuple(inputs), tuple(pullbacks)


def _backward(
  stages: tuple[Stage, ...],
  params: tuple[Any, ...],
  shared: Any,
  inputs: tuple[State, ...],
  pullbacks: tuple[_Pullback, ...],
  x_bar: State,
  figures_bar: tuple[Any, ...],
) -> tuple[tuple[Any, ...], State, Any]:
  """Gradients of parameters, input and shared inputs, from the last block on.

  `first` counts the blocks before the current stage, `num_taken` the skips that
  earlier blocks take.
  """
  # Of the five blocks in the module's drawing, with s for the skip of block 3
  # (x[2]) and t for that of block 4 (x[1]):
  #
  #   inputs on the way up     x[3]   x[4]
  #   after block 4            x[3]   t_bar
  #   after block 3            s_bar  t_bar
  #   before block 1           adds s_bar to the gradient of its output x[2]
  #   before block 0           adds t_bar to the gradient of its output x[1]
  skips = _skips(stages, inputs)
  shared_bar = jax.tree.map(jnp.zeros_like, shared)
  num_taken = sum(s.num_blocks for s in stages if s.has_skip)
  first = sum(s.num_blocks for s in stages)
  num_down = first - num_taken
  # Both lists grow at the front: stages are visited from the last to the first.
  params_bar, skip_bars = [], []
  for stage, stack, kept, pullback, figure_bar in reversed(
    list(zip(stages, params, inputs, pullbacks, figures_bar, strict=True))
  ):
    first -= stage.num_blocks
    num_taken -= stage.num_blocks * stage.has_skip

    def step(
      carry: tuple[State, Any, State],
      block: tuple[Any, Any, _Pullback, Array],
      stage: Stage = stage,
      num_taken: int = num_taken,
      first: int = first,
      skip_bars: tuple[State, ...] = tuple(skip_bars),
    ) -> tuple[tuple[State, Any, State], Any]:
      x_bar, shared_bar, kept = carry
      params, figure_bar, pull_back, index = block
      x = _entry(kept, index)
      if stage.num_blocks == 1:
        # XLA inlines a loop of one iteration. It would then merge the
        # recomputation with the forward pass and keep all activations.
        x = lax.optimization_barrier(x)
      skip = None
      if stage.has_skip:
        skip = _skip(skips, num_taken + index)
      else:
        x_bar = _add_skip_bar(x_bar, skip_bars, num_down - 2 - first - index)
      params_bar, x_bar, skip_bar, contribution = pull_back(
        (params, x, skip, shared), (x_bar, figure_bar)
      )
      shared_bar = jax.tree.map(jnp.add, shared_bar, contribution)
      if stage.has_skip:
        # The input of this block is dead; its place stores the skip's gradient
        # until the block that produced the skip is reached.
        kept = jax.tree.map(
          lambda stack, bar: lax.dynamic_update_index_in_dim(
            stack, bar, index, 0
          ),
          kept,
          skip_bar,
        )
      return (x_bar, shared_bar, kept), params_bar

    (x_bar, shared_bar, kept), bar = lax.scan(
      step,
      (x_bar, shared_bar, kept),
      (stack, figure_bar, pullback, jnp.arange(stage.num_blocks)),
      reverse=True,
    )
    params_bar.insert(0, bar)
    if stage.has_skip:
      skip_bars.insert(0, kept)
  return tuple(params_bar), x_bar, shared_bar


def _skips(
  stages: tuple[Stage, ...], inputs: list[State] | tuple[State, ...]
) -> State:
  """Stacks the inputs of the blocks on the way down, the newest last."""
  down = [x for stage, x in zip(stages, inputs) if not stage.has_skip]
  if len(down) == 1:
    return down[0]
  return jax.tree.map(lambda *parts: jnp.concatenate(parts), *down)


def _entry(stacks: State, index: Array | int) -> State:
  """One entry of every stack."""
  return jax.tree.map(
    lambda stack: lax.dynamic_index_in_dim(stack, index, keepdims=False), stacks
  )


def _length(stacks: State) -> int:
  """Number of entries of the stacks."""
  return len(jax.tree.leaves(stacks)[0])


def _skip(skips: State | None, number: Array | int) -> State | None:
  """The skip that is taken after `number` others: last in, first out."""
  if skips is None:
    return None
  return _entry(skips, _length(skips) - 1 - number)


def _add_skip_bar(
  x_bar: State, skip_bars: tuple[State, ...], number: Array | int
) -> State:
  """Adds the gradient of the skip that was taken after `number` others.

  A number out of range adds nothing: the output of the middle block is no skip,
  and with an even number of blocks neither is that of the block before it.
  """
  for stack in skip_bars:
    length = _length(stack)
    is_here = (number >= 0) & (number < length)
    bar = _entry(stack, jnp.clip(number, 0, length - 1))
    x_bar = jax.tree.map(
      lambda x, y, is_here=is_here: x + jnp.where(is_here, y, 0), x_bar, bar
    )
    number -= length
  return x_bar
