"""The GPU kernels' lists and tile mathematics, walked in plain JAX.

It tests lists and steps without a device: every function has the arguments and
results of its namesake in `kernels.py` and visits the same tiles in the same
order. It does not cover copies, barriers and registers.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from . import steps
from . import tiles as tiles_lib

# Folds step(state, first column) over a list of columns, from a state on.
_OverColumns = Callable[[Callable[[Any, jax.Array], Any], Any], Any]


def forward(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  lists: tiles_lib.TileLists,
  granule: int,
  exponent: float,
  tiles: tiles_lib.Tiles,
) -> tuple[jax.Array, jax.Array]:
  """See `kernels.forward`."""
  tile = tiles.forward

  def program(
    over_columns: _OverColumns,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    def step(state: steps.Softmax, first: jax.Array) -> steps.Softmax:
      operands = (_at(x, first, tile) for x in (key, value))
      # No turns to take: warpgroups do not share a tensor core here.
      return steps.forward(
        state, query, *operands, exponent, _product, lambda: None
      )

    state = steps.Softmax.start(*query.shape)
    state = over_columns(step, state)
    output, log_sum_exp = state.finish()
    return output.astype(query.dtype), log_sum_exp

  run = _programs(program, lists, granule, tile, num_own=1)
  # Heads are independent and share the lists.
  return jax.vmap(run)(query, key, value)


def query_bar(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  output_bar: jax.Array,
  log_sum_exp: jax.Array,
  offset: jax.Array,
  lists: tiles_lib.TileLists,
  granule: int,
  exponent: float,
  tiles: tiles_lib.Tiles,
) -> jax.Array:
  """See `kernels.query_bar`."""
  tile = tiles.query_bar

  def program(
    over_columns: _OverColumns,
    query: jax.Array,
    output_bar: jax.Array,
    log_sum_exp: jax.Array,
    offset: jax.Array,
    key: jax.Array,
    value: jax.Array,
  ) -> tuple[jax.Array]:
    def step(total: jax.Array, first: jax.Array) -> jax.Array:
      total = _Sum(total)
      operands = (_at(x, first, tile) for x in (key, value))
      steps.query_bar(
        total,
        query,
        output_bar,
        log_sum_exp,
        offset,
        *operands,
        exponent,
        _product,
        lambda: None,
      )
      return total.value

    total = jnp.zeros(query.shape, jnp.float32)
    total = over_columns(step, total)
    # exponent / log2(e) is the scale, which the steps leave out.
    return ((total * (exponent / steps.LOG2_E)).astype(query.dtype),)

  run = _programs(program, lists, granule, tile, num_own=4)
  args = (query, output_bar, log_sum_exp, offset, key, value)
  return jax.vmap(run)(*args)[0]


def key_value_bar(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  output_bar: jax.Array,
  log_sum_exp: jax.Array,
  offset: jax.Array,
  lists: tiles_lib.TileLists,
  granule: int,
  exponent: float,
  tiles: tiles_lib.Tiles,
) -> tuple[jax.Array, jax.Array]:
  """See `kernels.key_value_bar`."""
  tile = tiles.key_value_bar

  def program(
    over_columns: _OverColumns,
    key: jax.Array,
    value: jax.Array,
    *args: jax.Array,
  ) -> tuple[jax.Array, jax.Array]:
    def step(
      totals: tuple[jax.Array, jax.Array], first: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
      totals = [_Sum(total) for total in totals]
      operands = (_at(x, first, tile) for x in args)
      steps.key_value_bar(
        *totals, key, value, *operands, exponent, _product, lambda: None
      )
      return tuple(total.value for total in totals)

    zeros = jnp.zeros(key.shape, jnp.float32)
    key_bar, value_bar = over_columns(step, (zeros, zeros))
    # The scale; values have none.
    key_bar *= exponent / steps.LOG2_E
    return key_bar.astype(key.dtype), value_bar.astype(key.dtype)

  run = _programs(program, lists, granule, tile, num_own=2)
  return jax.vmap(run)(key, value, query, output_bar, log_sum_exp, offset)


def _at(x: jax.Array, first: jax.Array, tile: tiles_lib.AnyTile) -> steps.Ready:
  """The columns of a step."""
  return steps.Ready(_slice(x, first, tile.columns))


class _Sum:
  """A running sum inside one step."""

  def __init__(self, value: jax.Array):
    self.value = value

  def add(self, left: jax.Array, right: jax.Array) -> None:
    """Adds a matrix product."""
    self.value += _product(left, right)


def _product(
  left: jax.Array, right: jax.Array, transposed: bool = False
) -> jax.Array:
  # Exact products of 16-bit factors, summed in float32, as on a tensor core.
  return jnp.dot(
    left,
    right.T if transposed else right,
    precision="highest",
    preferred_element_type=jnp.float32,
  )


def _slice(x: jax.Array, first: jax.Array, size: int) -> jax.Array:
  return lax.dynamic_slice_in_dim(x, first, size)


def _programs(
  program: Callable[..., tuple[jax.Array, ...]],
  lists: tiles_lib.TileLists,
  granule: int,
  tile: tiles_lib.AnyTile,
  num_own: int,
) -> Callable[..., tuple[jax.Array, ...]]:
  """Runs all programs of one head; the first `num_own` arrays are tiled."""
  # A traced index does not index NumPy arrays.
  lists = tiles_lib.TileLists(*map(jnp.asarray, lists))
  schedule = tiles_lib.Schedule(lists, granule, tile)
  indices = jnp.arange(schedule.num_programs, dtype=jnp.int32)

  def run_one(
    arrays: tuple[jax.Array, ...], index: jax.Array
  ) -> tuple[jax.Array, ...]:
    def over_columns(step: Callable[[Any, jax.Array], Any], state: Any) -> Any:
      body = lambda i, state: step(state, schedule.first_column(index, i))
      # Inside `jax.shard_map` a loop's state must have the type of its result,
      # which depends on the arrays.
      state = jax.tree.map(lambda x: steps.varying_as(x, *arrays), state)
      return lax.fori_loop(0, schedule.num_steps(index), body, state)

    first = schedule.first_row(index)
    # The rest is passed whole: a program reads what its list names.
    own = [_slice(x, first, tile.rows) for x in arrays[:num_own]]
    return program(over_columns, *own, *arrays[num_own:])

  def run(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    # One after the other: lists differ in length, and `vmap` would run all
    # programs for as many steps as the longest.
    results = lax.map(functools.partial(run_one, arrays), indices)
    # Programs run longest list first; results return to the order of tokens.
    back = jnp.argsort(jax.vmap(schedule.first_row)(indices))
    return tuple(x[back].reshape(-1, *x.shape[2:]) for x in results)

  return run
