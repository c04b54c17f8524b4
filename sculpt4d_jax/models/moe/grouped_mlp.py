"""Experts' MLPs on TPU in chunks of hidden units, to bound memory.

At the released size the hidden activations of the routed rows (two experts a
token, four times the width) are eight times as large as the tokens, and the
weights of all experts are larger still. The hidden units are therefore
processed in chunks ("parts"):

    rows of y = b2 + sum over parts p of gelu(rows . W1[:, p] + b1[p]) . W2[p]

              W1[:, p]            W2[p]
    rows ---> [hidden of p] ---> (+) ---> total, float32
               recomputed         ^
               in backward        +--- one part after the other (lax.scan)

The first part begins the sums, so that no zeros are written and read; the others
are a loop.

The backward pass recomputes the activations of a part; only the tokens and the
routing are stored for it. On a mesh the weights of one part are gathered at a
time, and the gradients of a part are reduced to their shards before the next.

The gradient of a gate is <cotangent of its token, output of its expert>. The
output is not stored and not needed: with a = gelu(...) and the cotangent of a
before the gate, a_bar = y_bar . W2^T, the same number is the sum of a_bar * a
over the hidden units, plus the term of b2.
"""

from collections.abc import Callable
import functools
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax.models import layers
from sculpt4d_jax.models.moe import dispatch
from sculpt4d_jax.models.moe import exchange
from sculpt4d_jax.models.moe import grouped_matmul

Array = array_types.Array
Float = array_types.Float
Int = array_types.Int
ExpertWeights = exchange.ExpertWeights
Gather = Callable[[ExpertWeights], ExpertWeights]
# Tokens, gates, choices, and the shards of the weights.
_Residuals = tuple[Array, Array, Array, ExpertWeights]

# Hidden units of a part: the largest width that the kernels contract at once.
PART_WIDTH = 2048


def apply(
  x: Float[Array, "T D"],
  gates: Float[Array, "T k"],
  chosen: Int[Array, "T k"],
  weights: ExpertWeights,
  gather: Gather,
  part_width: int | None = None,
) -> Float[Array, "T D"]:
  """Sum of the chosen experts' outputs, weighted by their gates.

  Args:
    x: Tokens [T, D].
    gates: Weight of each choice, float32.
    chosen: Chosen experts; E or more stands for no expert and adds nothing.
    weights: Shards of the weights on this device, split along D only.
    gather: Function that gathers the weights of any hidden units from their
      shards; None among the weights stays None.
    part_width: Number of hidden units of a part; all of them where it does not
      divide them. None is PART_WIDTH.
  """
  part_width = part_width or PART_WIDTH
  hidden_width = weights.kernel1.shape[2]
  # All iterations of the loop have one shape: there is no smaller last part.
  if hidden_width % part_width:
    part_width = hidden_width
  return _apply(x, gates, chosen, weights, gather, part_width)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _apply(
  x: Array,
  gates: Array,
  chosen: Array,
  weights: ExpertWeights,
  gather: Gather,
  part_width: int,
) -> Array:
  plan, blocks = _plan(chosen, len(weights.kernel1))
  rows = dispatch.dispatch(x, plan)
  bias2 = _gather_bias2(gather, weights.bias2)

  def add_part(total: Array | None, start: Array) -> tuple[Array, None]:
    part = gather(_part(weights, start, part_width))
    hidden = _hidden(rows, part, blocks)
    # Sums over parts are float32; the bias is added once.
    return grouped_matmul.multiply(
      layers.gelu(hidden),
      part.kernel2,
      blocks,
      bias=bias2 if total is None else None,
      initial=total,
      dtype=jnp.float32,
    ), None

  total, _ = _over_parts(add_part, None, _starts(weights, part_width))
  return dispatch.combine(total.astype(x.dtype), gates, plan)


def _forward(
  x: Array,
  gates: Array,
  chosen: Array,
  weights: ExpertWeights,
  gather: Gather,
  part_width: int,
) -> tuple[Array, _Residuals]:
  y = _apply(x, gates, chosen, weights, gather, part_width)
  return y, (x, gates, chosen, weights)


def _backward(
  gather: Gather, part_width: int, residuals: _Residuals, y_bar: Array
) -> tuple[Array, Array, None, ExpertWeights]:
  x, gates, chosen, weights = residuals
  plan, blocks = _plan(chosen, len(weights.kernel1))
  rows = dispatch.dispatch(x, plan)
  y_bar = dispatch.dispatch(y_bar.astype(x.dtype), plan)
  # Padding rows (choices out of range) get gate 0.
  gate = gates.reshape(-1).at[plan.choice].get(mode="fill", fill_value=0)
  gate = gate[:, None]  # [R, 1]

  def add_part(
    carry: tuple[Array | None, Array], start: Array
  ) -> tuple[tuple[Array, Array], ExpertWeights]:
    rows_bar, gate_bar = carry
    # The transpose of gathering sums a gradient into the shards, part by part.
    part, to_shards = jax.vjp(gather, _part(weights, start, part_width))
    activated, gelu_vjp = jax.vjp(layers.gelu, _hidden(rows, part, blocks))
    # Cotangent before the gate is applied: the gate's gradient needs it so.
    activated_bar = grouped_matmul.multiply(
      y_bar, part.kernel2, blocks, transposed=True
    )
    gate_bar += (activated_bar * activated.astype(jnp.float32)).sum(-1)
    (hidden_bar,) = gelu_vjp((activated_bar * gate).astype(x.dtype))
    rows_bar = grouped_matmul.multiply(
      hidden_bar,
      part.kernel1,
      blocks,
      transposed=True,
      initial=rows_bar,
      dtype=jnp.float32,
    )
    (weights_bar,) = to_shards(
      ExpertWeights(
        grouped_matmul.outer(rows, hidden_bar, blocks),
        _sum_of_experts(hidden_bar, blocks).astype(part.bias1.dtype),
        grouped_matmul.outer((activated * gate).astype(x.dtype), y_bar, blocks),
        None,
      )
    )
    return (rows_bar, gate_bar), weights_bar

  # In float32: every part adds to these sums.
  (rows_bar, gate_bar), parts = _over_parts(
    add_part,
    (None, jnp.zeros(len(rows), jnp.float32)),
    _starts(weights, part_width),
  )
  # The output's bias belongs to no hidden unit, so it is not in the loop.
  bias2, to_shards = jax.vjp(
    functools.partial(_gather_bias2, gather), weights.bias2
  )
  gate_bar += _times_bias(y_bar, bias2, blocks)
  (bias2_bar,) = to_shards(
    _sum_of_experts(y_bar * gate, blocks).astype(bias2.dtype)
  )
  weights_bar = ExpertWeights(
    _join(parts.kernel1, 2),
    _join(parts.bias1, 1),
    _join(parts.kernel2, 1),
    bias2_bar,
  )
  # A token's gradient is the sum over its choices.
  x_bar = dispatch.collect(rows_bar, plan).sum(1).astype(x.dtype)
  gates_bar = dispatch.collect(gate_bar[:, None], plan)[..., 0]
  return x_bar, gates_bar.astype(gates.dtype), None, weights_bar


_apply.defvjp(_forward, _backward)


def _plan(
  chosen: Array, num_experts: int
) -> tuple[dispatch.Plan, grouped_matmul.Blocks]:
  """Rows of every expert, padded to whole blocks of the grouped kernels."""
  block_size = grouped_matmul.block_rows(chosen.size, num_experts)
  plan = dispatch.plan(chosen, num_experts, block_size)
  return plan, grouped_matmul.blocks_of(
    plan.rows_per_expert, len(plan.choice), block_size
  )


def _gather_bias2(gather: Gather, bias2: Array) -> Array:
  return gather(ExpertWeights(None, None, None, bias2)).bias2


def _over_parts(
  add_part: Callable[[Any, Array], tuple[Any, Any]], carry: Any, starts: Array
) -> tuple[Any, Any]:
  """`lax.scan`, whose first step may find None in its carry."""
  carry, first = add_part(carry, starts[0])
  stack = lambda y, *others: jnp.concatenate([y[None], *others])
  if len(starts) == 1:
    return carry, jax.tree.map(stack, first)
  carry, others = lax.scan(add_part, carry, starts[1:])
  return carry, jax.tree.map(stack, first, others)


def _starts(weights: ExpertWeights, part_width: int) -> Array:
  return jnp.arange(0, weights.kernel1.shape[2], part_width)


def _part(weights: ExpertWeights, start: Any, width: int) -> ExpertWeights:
  """Weights of the hidden units from `start` on; bias2 has none."""
  cut = functools.partial(
    lax.dynamic_slice_in_dim, start_index=start, slice_size=width
  )
  return ExpertWeights(
    cut(weights.kernel1, axis=2),
    cut(weights.bias1, axis=1),
    cut(weights.kernel2, axis=1),
    None,
  )


def _join(parts: Array, axis: int) -> Array:
  """Concatenates parts [parts, E, ...] along an axis of [E, ...]."""
  parts = jnp.moveaxis(parts, 0, axis)
  shape = parts.shape
  return parts.reshape(*shape[:axis], -1, *shape[axis + 2 :])


def _hidden(
  rows: Array, part: ExpertWeights, blocks: grouped_matmul.Blocks
) -> Array:
  return grouped_matmul.multiply(rows, part.kernel1, blocks, bias=part.bias1)


def _times_bias(
  rows: Array, bias: Array, blocks: grouped_matmul.Blocks
) -> Array:
  """The product of every row with the bias of its expert, [R] in float32."""
  # With the biases of all experts, which are few: no bias is written for every
  # row, and the matrix units multiply.
  products = jnp.matmul(
    rows,
    bias.astype(rows.dtype).T,
    precision=lax.Precision.HIGHEST if rows.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )
  is_of = jax.nn.one_hot(blocks.expert, len(bias))  # [num_blocks, E]
  products = products.reshape(len(is_of), -1, len(bias))
  return (products * is_of[:, None]).sum(-1).reshape(-1)


def _sum_of_experts(rows: Array, blocks: grouped_matmul.Blocks) -> Array:
  """Sums every expert's rows, [E, D] in float32."""
  num_experts, num_blocks = len(blocks.has_rows), len(blocks.expert)
  is_of = jax.nn.one_hot(blocks.expert, num_experts, axis=0)
  is_of *= blocks.is_used  # [E, num_blocks]
  # A product with a 0/1 matrix instead of a scatter, which is slow on TPUs, and
  # of a sum over the rows of a block, which is slower than the matrix units.
  # It rounds nothing: products are numbers or zeros, and are added in float32.
  is_of = jnp.repeat(is_of, len(rows) // num_blocks, axis=1).astype(rows.dtype)
  return jnp.matmul(
    is_of,
    rows,
    precision=lax.Precision.HIGHEST if rows.dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )
