"""One training step: loss, gradients, update, moving average, metrics."""

from collections.abc import Callable
from typing import Any

import jax
import optax

from sculpt4d_jax import array_types
from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import state as state_lib

Array = array_types.Array
Loss = Callable[[Any, Any, Array], tuple[Array, dict[str, Array]]]
Step = Callable[
    [state_lib.TrainState, Any, Array],
    tuple[state_lib.TrainState, dict[str, Array]],
]


def make_step(
    loss: Loss, config: optimizer_lib.OptimizerConfig
) -> tuple[Step, optax.GradientTransformation]:
  """Compiles a step.

  Args:
    loss: (params, batch, key) -> (loss, metrics).
    config: The optimizer.

  Returns:
    (state, batch, key) -> (state, metrics), which donates the state; and the
    gradient transformation, to create the state with. The key is folded with
    the step inside, so that one key serves a whole run.
  """
  tx = optimizer_lib.make_optimizer(config)
  schedule = optimizer_lib.learning_rate_schedule(config)

  def step(state, batch, key):
    key = jax.random.fold_in(key, state.step)
    (value, metrics), grads = jax.value_and_grad(loss, has_aux=True)(
        state.params, batch, key
    )
    updates, opt_state = tx.update(grads, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    ema = optimizer_lib.update_ema(
        state.ema, params, state.step, config.ema_decay
    )
    metrics = metrics | {
        "loss": value,
        "grad_norm": optax.tree.norm(grads),
        "param_norm": optax.tree.norm(params),
        "learning_rate": schedule(state.step),
    }
    return state_lib.TrainState(state.step + 1, params, ema, opt_state), metrics

  return jax.jit(step, donate_argnums=0), tx
