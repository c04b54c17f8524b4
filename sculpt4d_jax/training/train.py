"""The training loop, for any task, on one device or many processes."""

from collections.abc import Mapping
import pathlib
from typing import Any, Protocol

from absl import logging
from flax import nnx
import jax
from jax.experimental import multihost_utils
import numpy as np
import tqdm

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.training import checkpoints as checkpoints_lib
from sculpt4d_jax.training import meter as meter_lib
from sculpt4d_jax.training import metrics as metrics_lib
from sculpt4d_jax.training import notice as notice_lib
from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import state as state_lib
from sculpt4d_jax.training import step as step_lib

Array = array_types.Array

# What a program's exit code is after it was told to stop.
_EXIT_AFTER_NOTICE = 143
# In what jax says when a process that it waits for has gone.
_SIGNS_OF_LOSS = (
    "gloo", "connection", "heartbeat", "barrier", "coordination",
    "unavailable", "deadline_exceeded", "preempted",
)


class Task(Protocol):
  """What is trained."""

  config: Any  # Has `batch_size`.
  warm_start: Mapping[str, nnx.State]  # Parts that start from given weights.

  def init_params(self) -> Any:
    """Fresh parameters; may be traced."""

  def check_mesh(self, mesh: partitioning.Mesh, accumulation_steps: int) -> None:
    """Raises ValueError where the mesh does not divide a step."""

  def batch(self, step: int, rows: np.ndarray | None = None) -> Any:
    """The batch of a step, or some of its clips; depends on the step alone."""

  def describe_batch(self, step: int) -> str:
    """What a step's batch holds, for a message."""

  def loss(self, params: Any, batch: Any, key: Array) -> tuple[Array, dict]:
    """Loss and metrics."""

  def evaluate(self, params: Any) -> dict[str, float]:
    """Held-out metrics."""


class LostProcessError(RuntimeError):
  """Another process of the run is gone; this one cannot go on without it."""


def train(
    task: Task,
    optimizer: optimizer_lib.OptimizerConfig,
    workdir: str | pathlib.Path,
    *,
    mesh: partitioning.MeshConfig = partitioning.MeshConfig(),
    seed: int = 0,
    log_every: int = 20,
    eval_every: int = 500,
    save_every: int = 250,
) -> Any:
  """Trains to the last step, going on from the newest checkpoint if any.

  Every process of a run calls this with the same arguments; `workdir` is a
  folder that all of them see. A batch depends on its step alone, so that the
  step in the checkpoint is the data's position too.

  Args:
    task: Model, data and loss.
    optimizer: Optimizer and number of steps.
    workdir: Folder of checkpoints, metrics and TensorBoard events.
    mesh: How the devices are used.
    seed: Of everything random in the loss.
    log_every: Steps between lines of training metrics.
    eval_every: Steps between evaluations.
    save_every: Steps between checkpoints.

  Returns:
    The moving average of the parameters, whole on the host.

  Raises:
    meter.NonFiniteLossError: The loss is not a number any more.
    LostProcessError: Another process of the run is gone.
    SystemExit: The machine is to be taken away; the state is saved.
    ValueError: The mesh does not fit the devices or the task.
  """
  workdir = pathlib.Path(workdir)
  device_mesh = partitioning.make_mesh(mesh)
  task.check_mesh(device_mesh, optimizer.accumulation_steps)
  with partitioning.use_mesh(device_mesh):
    shardings = state_shardings(task, optimizer, device_mesh)
    step_fn, tx = step_lib.make_step(task.loss, optimizer, shardings)
    checkpoints = checkpoints_lib.Checkpoints(workdir / "checkpoints")
    # A checkpoint comes before given weights, and those before fresh ones.
    state = checkpoints.restore_newest(
        abstract_state(task, tx), shardings, missing_ok=True
    )
    if state is None:
      state = _initial_state(task, tx, shardings)
    num_params = sum(x.size for x in jax.tree.leaves(state.params))
    logging.info("%s parameters on %s.", f"{num_params:,}", device_mesh)
    writer = metrics_lib.open_writer(workdir)
    can_save = True
    try:
      with notice_lib.Notice() as notice:
        state = _loop(
            task, step_fn, state, optimizer.num_steps, jax.random.key(seed),
            device_mesh, checkpoints, writer, notice, log_every, eval_every,
            save_every,
        )
      return _on_host(state.ema)
    except checkpoints_lib.CheckpointError:
      can_save = False
      raise
    except Exception as error:
      lost = _lost_process(error)
      if lost is None:
        raise
      can_save = False  # All have to take part.
      raise lost from error
    finally:
      writer.close()
      if can_save:
        checkpoints.close()


def abstract_state(task: Task, tx) -> state_lib.TrainState:
  """Shapes of a run's state."""
  return jax.eval_shape(lambda: state_lib.create(task.init_params(), tx))


def state_shardings(
    task: Task,
    optimizer: optimizer_lib.OptimizerConfig,
    mesh: partitioning.Mesh,
) -> state_lib.TrainState:
  """Where a run's state lies on a mesh."""
  tx = optimizer_lib.make_optimizer(optimizer)
  return partitioning.shardings(abstract_state(task, tx), mesh)


def _initial_state(task, tx, shardings):
  create = lambda: state_lib.create(task.init_params(), tx)
  state = jax.jit(create, out_shardings=shardings)()
  # Given weights take the place of fresh ones, in the average too.
  for name, given in task.warm_start.items():
    for tree in (state.params, state.ema):
      tree[name] = jax.tree.map(
          lambda new, old: jax.make_array_from_callback(
              old.shape, old.sharding, lambda index: np.asarray(new)[index]
          ),
          given,
          tree[name],
      )
  return state


def _on_host(params):
  """All of the parameters as NumPy arrays, on every process."""
  if jax.process_count() == 1:
    return params if jax.device_count() == 1 else jax.device_get(params)
  return jax.tree.map(
      lambda x: multihost_utils.process_allgather(x, tiled=True), params
  )


def _lost_process(error: Exception) -> LostProcessError | None:
  """The message, where an error comes of a process that has gone."""
  if jax.process_count() == 1 or isinstance(error, ValueError):
    return None
  text = f"{type(error).__name__} {error}"
  if not any(sign in text.lower() for sign in _SIGNS_OF_LOSS):
    return None
  reason = str(error).strip().splitlines() or [type(error).__name__]
  return LostProcessError(
      f"Process {jax.process_index()} of {jax.process_count()} stops: another"
      " one has gone, and no step can be taken without it"
      f" ({reason[0][:200]}). Start all of them again; the same command goes on"
      " from the newest checkpoint."
  )


def _loop(
    task, step_fn, state, num_steps, key, mesh, checkpoints, writer, notice,
    log_every, eval_every, save_every,
):
  start = int(state.step)
  meter = meter_lib.Meter(writer, log_every, task.describe_batch)
  batch_size = task.config.batch_size
  rows = partitioning.local_rows(batch_size, mesh)
  progress = tqdm.tqdm(
      range(start, num_steps), initial=start, total=num_steps, desc="steps",
      mininterval=5.0, disable=jax.process_index() != 0,
  )
  for step in progress:
    with meter.spending("data"):
      batch = task.batch(step, rows)
    with meter.spending("transfer"):
      if mesh.size > 1:
        batch = partitioning.global_batch(batch, rows, batch_size, mesh)
      else:
        batch = jax.device_put(batch)
    state, metrics = step_fn(state, batch, key)
    meter.add(step + 1, metrics)
    stops = notice.came() or checkpoints.reached_preemption(step + 1)
    if (step + 1) % save_every == 0 or step + 1 == num_steps or stops:
      meter.check()
      with meter.spending("save"):
        checkpoints.save(state)
    if stops:
      checkpoints.wait()
      logging.info(
          "Told to stop at step %d; the state is saved, and the same command"
          " goes on from it.", step + 1
      )
      raise SystemExit(_EXIT_AFTER_NOTICE)
    if (step + 1) % eval_every == 0 or step + 1 == num_steps:
      values = task.evaluate(state.ema)
      writer.write(step + 1, {f"eval/{k}": v for k, v in values.items()})
      meter.restart_clock()
  meter.check()
  return state

