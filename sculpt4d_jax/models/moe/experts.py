"""The experts of a mixture, and several ways to apply them to their tokens.

    y = sum over a token's choices of gate * MLP_expert(x)

No token is ever dropped. Every implementation computes exactly this sum:

  dense    every expert on every token: the specification, E / k times the work
  blocked  rows sorted by expert, each expert's padded to whole blocks, and one
           product for each block: the work follows the routed tokens
  ragged   rows sorted by expert and `jax.lax.ragged_dot`
  grouped  as blocked, with Pallas kernels for TPU and a part of the hidden
           units at a time: `grouped_mlp`

On a mesh tokens stay in place and every device gathers the experts, unless the
mesh has an `expert` axis: `moe/exchange.py` then moves tokens.
"""

from collections.abc import Callable
import functools
from typing import Any

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import eight_bits
from sculpt4d_jax.models import layers
from sculpt4d_jax.models.moe import dispatch
from sculpt4d_jax.models.moe import exchange

Array = array_types.Array
Float = array_types.Float
Int = array_types.Int

IMPLEMENTATIONS = ("dense", "blocked", "ragged", "grouped")
BLOCK_SIZE = 128
_MAX_BLOCK_SIZE = 1024
# Largest number of gathered weights for all blocks (256 MiB in float32); above
# it "blocked" processes the blocks one by one.
MAX_GATHERED_WEIGHTS = 2**26


ExpertWeights = exchange.ExpertWeights
# Blocks, the expert of each, and the weights of all experts.
_Residuals = tuple[Array, Array, ExpertWeights]


class ExpertLinear(nnx.Module):
  """One linear layer for each expert: kernel [E, in, out], bias [E, out]."""

  # Scales of kernels in eight bits, see `quantization.py`.
  kernel_scale = None

  def __init__(
    self,
    num_experts: int,
    in_features: int,
    out_features: int,
    *,
    kernel_axes: layers.Axes,
    rngs: nnx.Rngs,
    param_dtype: Any = jnp.float32,
  ):
    init = layers.fan_in_uniform(in_features)
    shape = (num_experts, in_features, out_features)
    self.kernel = nnx.Param(
      init(rngs.params(), shape, param_dtype), logical_axes=kernel_axes
    )
    self.bias = nnx.Param(
      init(rngs.params(), (num_experts, out_features), param_dtype),
      logical_axes=(kernel_axes[0], kernel_axes[2]),
    )

  def weights(self, dtype: Any) -> tuple[Array, Array]:
    """Kernels and biases in a compute dtype."""
    bias = self.bias[...].astype(dtype)
    if self.kernel_scale is None:
      return self.kernel[...].astype(dtype), bias
    scale = self.kernel_scale[...]
    return eight_bits.restore(self.kernel[...], scale, dtype), bias


class Experts(nnx.Module):
  """E plain MLPs, their parameters stacked."""

  def __init__(
    self,
    num_experts: int,
    width: int,
    hidden_width: int,
    *,
    rngs: nnx.Rngs,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    self.dtype = dtype
    kwargs = dict(rngs=rngs, param_dtype=param_dtype)
    self.fc1 = ExpertLinear(
      num_experts,
      width,
      hidden_width,
      kernel_axes=("expert", "embed", "mlp"),
      **kwargs,
    )
    self.fc2 = ExpertLinear(
      num_experts,
      hidden_width,
      width,
      kernel_axes=("expert", "mlp", "embed"),
      **kwargs,
    )

  def weights(self) -> ExpertWeights:
    """Parameters in the compute dtype."""
    return ExpertWeights(
      *self.fc1.weights(self.dtype), *self.fc2.weights(self.dtype)
    )

  def __call__(
    self,
    x: Float[Array, "*T D"],
    gates: Float[Array, "*T k"],
    chosen: Int[Array, "*T k"],
    *,
    implementation: str | None = None,
  ) -> Float[Array, "*T D"]:
    """Sum of the chosen experts' outputs; see `apply_experts`."""

    def apply(
      x: Array,
      gates: Array,
      chosen: Array,
      weights: ExpertWeights,
      gather: exchange.Gather,
    ) -> Array:
      flat = [y.reshape(-1, y.shape[-1]) for y in (x, gates, chosen)]
      out = apply_experts(
        *flat, weights, implementation=implementation, gather=gather
      )
      return out.reshape(x.shape)

    x = x.astype(self.dtype)
    if partitioning.current_mesh() is None:
      return apply(x, gates, chosen, self.weights(), _as_they_are)
    params = self.fc1.kernel, self.fc1.bias, self.fc2.kernel, self.fc2.bias
    axes = [p.get_metadata()["logical_axes"] for p in params]
    return exchange.on_mesh(
      apply, x, gates, chosen, self.weights(), ExpertWeights(*axes)
    )


def _as_they_are(weights: ExpertWeights) -> ExpertWeights:
  return weights


def apply_experts(
  x: Float[Array, "T D"],
  gates: Float[Array, "T k"],
  chosen: Int[Array, "T k"],
  weights: ExpertWeights,
  *,
  implementation: str | None = None,
  block_size: int | None = None,
  max_gathered_weights: int = MAX_GATHERED_WEIGHTS,
  gather: Callable[[ExpertWeights], ExpertWeights] = _as_they_are,
) -> Float[Array, "T D"]:
  """Sum of the chosen experts' outputs, weighted by their gates.

  Args:
    x: Tokens [T, D].
    gates: Weight of each choice, float32.
    chosen: The chosen experts, distinct for a token. E or more stands for no
      expert here and adds nothing.
    weights: Weights of the experts, in the dtype to compute in.
    implementation: One of IMPLEMENTATIONS; None takes "grouped" on TPU and
      "blocked" elsewhere.
    block_size: Rows of a block, for "blocked"; None takes `BLOCK_SIZE`, and more
      on a GPU if the experts have many rows.
    max_gathered_weights: "blocked" gathers each block's weights and multiplies
      all blocks at once where those are no more numbers than this, and scans
      over the blocks otherwise.
    gather: Function that gathers weights of any hidden units from their shards;
      "grouped" calls it for some hidden units at a time.

  Raises:
    ValueError: Unknown implementation.
  """
  if implementation is None:
    implementation = _fastest(x, weights)
  if implementation == "grouped":
    # Late, as it imports Pallas, which CPUs can spare.
    from sculpt4d_jax.models.moe import grouped_mlp

    return grouped_mlp.apply(x, gates, chosen, weights, gather)
  weights = gather(weights)
  if implementation == "dense":
    return _dense(x, gates, chosen, weights)
  if implementation == "ragged":
    return _ragged(x, gates, chosen, weights)
  if implementation == "blocked":
    if block_size is None:
      num_experts = weights.kernel1.shape[0]
      block_size = _block_size(chosen.size / num_experts)
    return _blocked(x, gates, chosen, weights, block_size, max_gathered_weights)
  raise UserError(
    f"Unknown implementation={implementation!r}: choose one of"
    f" {IMPLEMENTATIONS} or None."
  )


def _fastest(x: Array, weights: ExpertWeights) -> str:
  # Weights may be shards; the axis of hidden units is complete on every mesh.
  widths = x.shape[-1], weights.kernel1.shape[-1]
  # On a CPU and a GPU `ragged_dot` multiplies all rows by all experts, and holds
  # the results; the grouped kernels are for TPUs.
  if partitioning.platform()[0] != "tpu":
    return "blocked"
  from sculpt4d_jax.models.moe import grouped_matmul

  return "grouped" if grouped_matmul.serves(x.dtype, *widths) else "ragged"


def _block_size(rows_per_expert: float) -> int:
  """Rows of a block, of which padding is at most an eighth on a GPU.

  A GPU needs a thousand rows to be busy with one product; a CPU does not.
  """
  size = BLOCK_SIZE
  if partitioning.platform()[0] in ("gpu", "cuda"):
    while size < _MAX_BLOCK_SIZE and 16 * size <= rows_per_expert:
      size *= 2
  return size


def _mlp(x: Array, weights: ExpertWeights) -> Array:
  """One expert on rows x [..., D]; weights without their first axis."""
  hidden = layers.gelu(x @ weights.kernel1 + weights.bias1)
  return hidden @ weights.kernel2 + weights.bias2


def _dense(
  x: Array, gates: Array, chosen: Array, weights: ExpertWeights
) -> Array:
  num_experts = weights.kernel1.shape[0]
  is_chosen = jax.nn.one_hot(chosen, num_experts)  # [T, k, E]
  # Zero for experts that a token did not choose. One-hot of a choice of E or
  # more is zero as well.
  gates = jnp.einsum("tk,tke->et", gates, is_chosen)

  def add_expert(
    y: Array, expert: tuple[Array, ExpertWeights]
  ) -> tuple[Array, None]:
    gate, expert_weights = expert
    return y + gate[:, None] * _mlp(x, expert_weights), None

  # A scan, so that the hidden activations of one expert are held at a time.
  y = jnp.zeros(x.shape, jnp.float32)
  y, _ = lax.scan(add_expert, y, (gates, weights))
  return y.astype(x.dtype)


def _ragged(
  x: Array, gates: Array, chosen: Array, weights: ExpertWeights
) -> Array:
  num_experts = weights.kernel1.shape[0]
  # Groups of any size: no padding.
  plan = dispatch.plan(chosen, num_experts, block_size=1)
  sizes = plan.rows_per_expert.astype(jnp.int32)
  rows = dispatch.dispatch(x, plan)
  # Rows of no expert get any bias; `combine` drops them.
  expert = jnp.minimum(jnp.sort(chosen.reshape(-1)), num_experts - 1)
  hidden = lax.ragged_dot(rows, weights.kernel1, sizes) + weights.bias1[expert]
  hidden = layers.gelu(hidden)
  out = lax.ragged_dot(hidden, weights.kernel2, sizes) + weights.bias2[expert]
  return dispatch.combine(out, gates, plan)


def _blocked(
  x: Array,
  gates: Array,
  chosen: Array,
  weights: ExpertWeights,
  block_size: int,
  max_gathered_weights: int,
) -> Array:
  num_experts = weights.kernel1.shape[0]
  plan = dispatch.plan(chosen, num_experts, block_size)
  rows = dispatch.dispatch(x, plan)
  blocks = rows.reshape(-1, block_size, rows.shape[-1])
  # Blocks of four rows of the experts a, b and c, "-" for padding:
  #
  #   a a a a | a - - - | b b - - | c c c c | - - - -
  #      0         0         1         2         2
  #
  # Blocks after the last expert's are padding; any expert serves them.
  expert = jnp.searchsorted(
    jnp.cumsum(plan.rows_per_expert) // block_size,
    jnp.arange(blocks.shape[0]),
    side="right",
  )
  expert = jnp.minimum(expert, num_experts - 1)
  # Two matrices a block. At once is faster for small models, but repeats an
  # expert's weights for each of its blocks.
  gathered = blocks.shape[0] * 2 * weights.kernel1[0].size
  if gathered <= max_gathered_weights:
    out = _multiply_at_once(blocks, expert, weights)
  else:
    out = _multiply_one_by_one(blocks, expert, weights)
  return dispatch.combine(out.reshape(rows.shape), gates, plan)


def _multiply_at_once(
  blocks: Array, expert: Array, weights: ExpertWeights
) -> Array:
  """Multiplies all blocks at once, with the weights of every block gathered."""
  kernel1, bias1, kernel2, bias2 = (w[expert] for w in weights)
  gathered = ExpertWeights(kernel1, bias1[:, None], kernel2, bias2[:, None])
  return _mlp(blocks, gathered)


@jax.custom_vjp
def _multiply_one_by_one(
  blocks: Array, expert: Array, weights: ExpertWeights
) -> Array:
  """Multiplies block by block; only one block's activations are in memory.

  The same holds for the backward pass.
  """

  def multiply(_: None, block: tuple[Array, Array]) -> tuple[None, Array]:
    x, index = block
    return None, _mlp(x, _one_expert(weights, index))

  return lax.scan(multiply, None, (blocks, expert))[1]


def _one_expert(weights: ExpertWeights, index: Array) -> ExpertWeights:
  return jax.tree.map(functools.partial(_at, index=index), weights)


def _at(stack: Array, index: Array) -> Array:
  return lax.dynamic_index_in_dim(stack, index, keepdims=False)


def _one_by_one_forward(
  blocks: Array, expert: Array, weights: ExpertWeights
) -> tuple[Array, _Residuals]:
  out = _multiply_one_by_one(blocks, expert, weights)
  return out, (blocks, expert, weights)


def _one_by_one_backward(
  residuals: _Residuals, cotangent: Array
) -> tuple[Array, None, ExpertWeights]:
  # Differentiating the scan would add a full [E, D, M] for every block; here
  # each block adds to its expert's slice in place.
  blocks, expert, weights = residuals

  def step(
    gradients: ExpertWeights, block: tuple[Array, Array, Array]
  ) -> tuple[ExpertWeights, Array]:
    x, index, cotangent = block
    _, vjp = jax.vjp(_mlp, x, _one_expert(weights, index))
    x_gradient, contributions = vjp(cotangent)
    gradients = jax.tree.map(
      lambda total, part: total.at[index].add(part.astype(total.dtype)),
      gradients,
      contributions,
    )
    return gradients, x_gradient

  # Sums over many blocks, so float32 for any compute dtype.
  zeros = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), weights)
  gradients, x_gradients = lax.scan(step, zeros, (blocks, expert, cotangent))
  gradients = jax.tree.map(lambda g, w: g.astype(w.dtype), gradients, weights)
  return x_gradients, None, gradients


_multiply_one_by_one.defvjp(_one_by_one_forward, _one_by_one_backward)
