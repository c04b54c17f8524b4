"""Tokens to rows sorted by expert, and back.

Every choice (token, slot) gets a separate row; the rows of an expert are
contiguous, padded to whole blocks with rows of zeros. Both directions are
gathers, in the backward pass too.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sculpt4d_jax import array_types

Array = array_types.Array
Float = array_types.Float
Int = array_types.Int


class Plan(NamedTuple):
  """A one-to-one map of choices (token, slot) to rows sorted by expert.

  Attributes:
    row: Row of each choice, [T, k].
    choice: Choice of each row, token * k + slot; T * k where the row is
      padding, [R].
    rows_per_expert: Number of rows of each expert with padding, [E].
  """

  row: Array
  choice: Array
  rows_per_expert: Array


def plan(chosen: Int[Array, "T k"], num_experts: int, block_size: int) -> Plan:
  """Sorts choices by expert, each expert padded to whole blocks.

  Choices of one expert keep their order. Choices of no expert, E and above, are
  last.
  """
  # Three tokens with two choices each, experts a, b, c, and blocks of two rows:
  #
  #   choice   0  1 | 2  3 | 4  5             token * 2 + slot
  #   expert   b  a | a  c | b  a
  #
  #   row      0  1   2  3 | 4  5 | 6  7
  #   expert   a  a   a  - | b  b | c  -      "-" for padding
  #   choice   1  2   5  - | 0  4 | 3  -
  num_choices = chosen.size
  flat = jnp.minimum(chosen.reshape(-1), num_experts)
  # A choice's row is its place among the choices of its expert: a running
  # count for each expert is less work than a sort, and far less to compile.
  is_of = flat == jnp.arange(num_experts + 1)[:, None]  # [E + 1, T * k]
  counts = jnp.cumsum(is_of, axis=1, dtype=jnp.int32)
  sizes = counts[:, -1]
  padded = -(-sizes // block_size) * block_size
  first = jnp.cumsum(padded) - padded
  row = jnp.where(is_of, first[:, None] + counts - 1, 0).sum(0)
  # However the choices fall, the padding is at most block_size - 1 an expert.
  num_rows = (num_choices + num_experts * (block_size - 1)) // block_size
  choice = jnp.full((num_rows * block_size,), num_choices, row.dtype)
  choice = choice.at[row].set(
    jnp.arange(num_choices, dtype=row.dtype), unique_indices=True
  )
  return Plan(row.reshape(chosen.shape), choice, padded[:num_experts])


# The next two functions are each other's transpose. As the map is one-to-one,
# both are gathers; JAX's own transposes would be scatter-adds, slow on every
# platform.


@jax.custom_vjp
def dispatch(x: Float[Array, "T D"], plan: Plan) -> Float[Array, "R D"]:
  """Tokens to rows; padding rows are zero."""
  tokens = plan.choice // plan.row.shape[1]
  return x.at[tokens].get(mode="fill", fill_value=0)


@jax.custom_vjp
def collect(rows: Float[Array, "R D"], plan: Plan) -> Float[Array, "T k D"]:
  """Rows to the choices; zero for choices of no expert."""
  return jnp.where(_is_of_expert(plan), rows[plan.row], 0)


def _is_of_expert(plan: Plan) -> Array:
  """Whether a choice has an expert here, [T, k, 1]."""
  return (plan.row < plan.rows_per_expert.sum())[..., None]


def _dispatch_backward(plan: Plan, cotangent: Array) -> tuple[Array, None]:
  return collect(cotangent, plan).sum(axis=1), None


def _collect_backward(plan: Plan, cotangent: Array) -> tuple[Array, None]:
  choices = jnp.where(_is_of_expert(plan), cotangent, 0)
  choices = choices.reshape(-1, cotangent.shape[-1])
  return choices.at[plan.choice].get(mode="fill", fill_value=0), None


dispatch.defvjp(lambda x, plan: (dispatch(x, plan), plan), _dispatch_backward)
collect.defvjp(lambda x, plan: (collect(x, plan), plan), _collect_backward)


def combine(
  rows: Float[Array, "R D"], gates: Float[Array, "T k"], plan: Plan
) -> Float[Array, "T D"]:
  """Sum of every token's rows, weighted by its gates."""
  outputs = collect(rows, plan)
  y = jnp.einsum("tkd,tk->td", outputs.astype(jnp.float32), gates)
  return y.astype(rows.dtype)
