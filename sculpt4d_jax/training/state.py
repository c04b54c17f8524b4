"""State that a training run carries from step to step."""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import optax

from sculpt4d_jax import array_types

Array = array_types.Array


@functools.partial(
  jax.tree_util.register_dataclass,
  data_fields=("step", "params", "ema", "optimizer", "fixed"),
  meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class TrainState:
  """State of a run; a plain tree of arrays.

  Attributes:
    step: Number of steps taken, int32 [].
    params: Parameters that are trained, float32.
    ema: Their moving average, which is evaluated, exported and sampled.
    optimizer: State of the gradient transformation.
    fixed: Parameters that are not trained: they have no gradient, moments or
      average, and are not in checkpoints. Empty if everything is trained.
  """

  step: Array
  params: Any
  ema: Any
  optimizer: Any
  fixed: Any = dataclasses.field(default_factory=dict)


def create(
  params: Any,
  tx: optax.GradientTransformation,
  is_trained: Callable[[tuple[Any, ...], Any], bool] | None = None,
) -> TrainState:
  """The state before the first step.

  Args:
    params: All parameters.
    tx: The gradient transformation.
    is_trained: (path, parameter) -> whether it is trained, for parameters that
      are an `nnx.State`; None trains all.
  """
  fixed = {}
  if is_trained is not None:
    params, fixed = nnx.split_state(params, is_trained, ...)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    # A copy, because the step donates its input, in which no buffer may occur
    # twice.
    ema=jax.tree.map(jnp.copy, params),
    optimizer=tx.init(params),
    fixed=fixed,
  )


def join(params: Any, fixed: Any) -> Any:
  """Joins trained and fixed parameters."""
  return nnx.merge_state(params, fixed) if fixed else params
