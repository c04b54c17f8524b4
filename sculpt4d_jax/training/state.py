"""What a training run carries from step to step."""

import functools
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from sculpt4d_jax import array_types

Array = array_types.Array


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("step", "params", "ema", "optimizer"),
    meta_fields=(),
)
@dataclasses.dataclass(frozen=True)
class TrainState:
  """State of a run; a plain tree of arrays.

  Attributes:
    step: Steps taken, int32 [].
    params: Parameters, float32.
    ema: Their moving average: what is evaluated, exported and sampled.
    optimizer: State of the gradient transformation.
  """

  step: Array
  params: Any
  ema: Any
  optimizer: Any


def create(params: Any, tx: optax.GradientTransformation) -> TrainState:
  """The state before the first step."""
  return TrainState(
      step=jnp.zeros((), jnp.int32),
      params=params,
      # A copy: the step donates its input, which must not hold a buffer twice.
      ema=jax.tree.map(jnp.copy, params),
      optimizer=tx.init(params),
  )
