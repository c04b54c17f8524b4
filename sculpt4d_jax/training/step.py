"""One training step: loss, gradients, update, moving average, metrics."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.training import metrics as metrics_lib
from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import parameter_groups
from sculpt4d_jax.training import state as state_lib

Array = array_types.Array
Loss = Callable[..., tuple[Array, dict[str, Array]]]
Draw = Callable[[Any, Array], Any]


class Progress(NamedTuple):
  """State of the run that a loss may use besides the parameters.

  Attributes:
    step: Number of steps taken, [].
    average: Moving average of the parameters, joined with the fixed ones.
  """

  step: Array
  average: Any


Step = Callable[
  [state_lib.TrainState, Any, Array],
  tuple[state_lib.TrainState, dict[str, Array]],
]


def make_step(
  loss: Loss,
  config: optimizer_lib.OptimizerConfig,
  state_shardings: Any = None,
  *,
  draw: Draw | None = None,
  sees_progress: bool = False,
) -> tuple[Step, optax.GradientTransformation]:
  """Compiles a step.

  Args:
    loss: (params, batch, draws) -> (loss, metrics).
    config: The optimizer.
    state_shardings: Shardings of the state, before and after the step; None
      leaves them to jax, which is right for one device.
    draw: (batch, key) -> the random numbers of a whole batch, a tree of arrays
      [B, ...]. Each micro-batch takes those of its clips, so that accumulation
      does not change them. None passes the key itself as `draws`, which needs
      accumulation_steps=1.
    sees_progress: Whether the loss takes a `Progress` as a fourth argument.

  Returns:
    (state, batch, key) -> (state, metrics), which donates the state; and the
    gradient transformation, to create the state with. The key is folded with
    the step, so that one key serves a whole run and a resumed run draws the
    same numbers.

  Raises:
    ValueError: Micro-batches without `draw`.
  """
  if draw is None and config.accumulation_steps > 1:
    raise ValueError("accumulation_steps > 1 needs `draw`.")
  tx = optimizer_lib.make_optimizer(config)
  schedule = optimizer_lib.learning_rate_schedule(config)

  def step(state: state_lib.TrainState, batch: Any, key: Array):
    def loss_of_trained(params: Any, batch: Any, draws: Any):
      # stop_gradient on frozen groups lets XLA drop their backward pass.
      params = optimizer_lib.hold_frozen(params, config.frozen)
      args = [state_lib.join(params, state.fixed), batch, draws]
      if sees_progress:
        average = state_lib.join(state.ema, state.fixed)
        args.append(Progress(state.step, average))
      return loss(*args)

    gradients = _accumulated(
      jax.value_and_grad(loss_of_trained, has_aux=True),
      config.accumulation_steps,
    )
    key = jax.random.fold_in(key, state.step)
    draws = key if draw is None else draw(batch, key)
    (value, metrics), grads = gradients(state.params, batch, draws)
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
    # Norms by group show which part of the network diverges; those of gradients
    # are taken before clipping.
    for name, tree in (("grad_norm", grads), ("update_norm", updates)):
      metrics |= {
        f"{name}/{g}": x for g, x in parameter_groups.norms(tree).items()
      }
    state = state_lib.TrainState(
      state.step + 1, params, ema, opt_state, state.fixed
    )
    return state, metrics

  if state_shardings is None:
    # Donated: the new state takes the memory of the old one.
    return jax.jit(step, donate_argnums=0), tx
  # Metrics are replicated, so that every process can read them.
  whole = jax.tree.leaves(state_shardings)[0]
  whole = partitioning.NamedSharding(whole.mesh, partitioning.Spec())
  return (
    jax.jit(
      step,
      in_shardings=(state_shardings, None, None),
      out_shardings=(state_shardings, whole),
      donate_argnums=0,
    ),
    tx,
  )


def _accumulated(gradients: Callable[..., Any], num_parts: int):
  """Averages gradients over micro-batches, one after the other.

  Losses that are means over clips average to that of the whole batch; the
  routers' balancing loss is computed within each micro-batch.
  """
  if num_parts == 1:
    return gradients

  def run(params: Any, batch: Any, draws: Any):
    def add(total: Any, part: tuple[Any, Any]):
      (value, metrics), grads = gradients(params, *part)
      total = jax.tree.map(jnp.add, total, (value, grads))
      return total, metrics

    # A scan holds the activations of one micro-batch at a time.
    zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
    parts = jax.tree.map(lambda x: _deal(x, num_parts), (batch, draws))
    total, metrics = jax.lax.scan(add, zeros, parts)
    value, grads = jax.tree.map(lambda x: x / num_parts, total)
    return (value, metrics_lib.join(metrics)), grads

  return run


def _deal(x: Array, num_parts: int) -> Array:
  """Splits [B, ...] into micro-batches [parts, B / parts, ...].

  Each device splits its own clips, so no data moves.
  """
  # Row r goes to micro-batch r mod parts: contiguous parts would each lie on
  # some of the devices only.
  x = x.reshape(x.shape[0] // num_parts, num_parts, *x.shape[1:])
  axes = (None, "batch", "frames")[: x.ndim]
  return partitioning.constrain(jnp.swapaxes(x, 0, 1), *axes)
