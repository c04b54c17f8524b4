"""Mixture of experts: the router, its losses, and the layer as a whole.

    y = sum over the chosen e of p_e * MLP_e(x)  +  MLP_shared(x)

p is the softmax of a bias-free gate; the k largest are chosen, and their
probabilities are not renormalised. The router decides where tokens go and
computes the balancing loss; `experts.py` moves and computes them.

Source: Hunyuan3D 2.1 (`MoEBlock`), after DeepSeekMoE, Dai et al., 2024.
"""

from typing import Any, NamedTuple

from flax import nnx
import jax
from jax import lax
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import layers
from sculpt4d_jax.models.moe import experts

Array = array_types.Array
Float = array_types.Float


class Routing(NamedTuple):
  """Routing of tokens.

  Attributes:
    gates: Weight of each choice, [..., k], float32.
    chosen: The chosen experts, [..., k].
    probabilities: Probabilities of all experts, [..., E], float32.
  """

  gates: Array
  chosen: Array
  probabilities: Array


class MoEOutput(NamedTuple):
  """Output [..., D], auxiliary loss [], and each expert's load [E]."""

  y: Array
  aux_loss: Array
  load: Array


class Router(nnx.Module):
  """Chooses `num_chosen` of `num_experts` experts for each token."""

  def __init__(
    self,
    width: int,
    num_experts: int,
    num_chosen: int,
    *,
    rngs: nnx.Rngs,
    param_dtype: Any = jnp.float32,
  ):
    if not 1 <= num_chosen <= num_experts:
      raise UserError(
        f"num_chosen={num_chosen} must be within 1 and"
        f" num_experts={num_experts}."
      )
    self.num_chosen = num_chosen
    init = layers.fan_in_uniform(width)
    self.kernel = nnx.Param(
      init(rngs.params(), (width, num_experts), param_dtype),
      logical_axes=("embed", None),
    )

  def __call__(self, x: Float[Array, "*T D"]) -> Routing:
    """Chooses experts for each token; computed in float32."""
    # float32, and no bfloat16 passes on a TPU: the choice depends on small
    # differences between scores.
    logits = jnp.dot(
      x.astype(jnp.float32),
      self.kernel[...].astype(jnp.float32),
      precision=lax.Precision.HIGHEST,
    )
    probabilities = jax.nn.softmax(logits, axis=-1)
    gates, chosen = lax.top_k(probabilities, self.num_chosen)
    return Routing(gates, chosen, probabilities)


def expert_load(routing: Routing) -> Float[Array, " E"]:
  """Fraction of all choices that fell on each expert; sums to 1."""
  num_experts = routing.probabilities.shape[-1]
  is_chosen = jax.nn.one_hot(routing.chosen, num_experts)
  return is_chosen.mean(axis=tuple(range(is_chosen.ndim - 1)))


def load_balancing_loss(routing: Routing, weight: float) -> Float[Array, ""]:
  """Computes weight * sum over e of P_e * f_e: `weight` at perfect balance.

  P_e is the mean probability of expert e, f_e its load times E; only P_e has a
  gradient. Unlike the reference, which adds the gradient during the backward
  pass, this is a value that the caller adds to the objective.
  """
  num_experts = routing.probabilities.shape[-1]
  load = lax.stop_gradient(expert_load(routing)) * num_experts
  leading = tuple(range(routing.probabilities.ndim - 1))
  return weight * jnp.sum(routing.probabilities.mean(axis=leading) * load)


class MoE(nnx.Module):
  """Router, experts and shared expert; see the module's docstring."""

  def __init__(
    self,
    width: int,
    hidden_width: int,
    *,
    num_experts: int,
    num_chosen: int,
    aux_loss_weight: float,
    rngs: nnx.Rngs,
    implementation: str | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    self.aux_loss_weight = aux_loss_weight
    self.num_experts = num_experts
    self.implementation = implementation
    self.dtype = dtype
    self.router = Router(
      width, num_experts, num_chosen, rngs=rngs, param_dtype=param_dtype
    )
    kwargs = dict(rngs=rngs, dtype=dtype, param_dtype=param_dtype)
    self.experts = experts.Experts(num_experts, width, hidden_width, **kwargs)
    self.shared_expert = layers.MLP(width, hidden_width, **kwargs)

  def __call__(self, x: Float[Array, "*T D"]) -> MoEOutput:
    """Sum of the routed and the shared experts' outputs, with figures."""
    routing = self.router(x)
    routed = self.experts(
      x,
      routing.gates,
      routing.chosen,
      implementation=self.implementation,
    )
    y = routed + self.shared_expert(x)
    aux_loss = load_balancing_loss(routing, self.aux_loss_weight)
    return MoEOutput(y, aux_loss, expert_load(routing))
