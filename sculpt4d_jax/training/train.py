"""The training loop, for any task."""

import math
import pathlib
import time
from typing import Any, Protocol

from absl import logging
import jax
import numpy as np
import tqdm

from sculpt4d_jax import array_types
from sculpt4d_jax.training import checkpoints as checkpoints_lib
from sculpt4d_jax.training import metrics as metrics_lib
from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import state as state_lib
from sculpt4d_jax.training import step as step_lib

Array = array_types.Array


class Task(Protocol):
  """What is trained."""

  def init_params(self) -> Any:
    """Fresh parameters."""

  def batch(self, step: int) -> Any:
    """The batch of a step; depends on nothing but the step."""

  def loss(self, params: Any, batch: Any, key: Array) -> tuple[Array, dict]:
    """Loss and metrics."""

  def evaluate(self, params: Any) -> dict[str, float]:
    """Held-out metrics."""


class NonFiniteLossError(RuntimeError):
  """The loss is NaN or infinite; the message names the step."""


def train(
    task: Task,
    optimizer: optimizer_lib.OptimizerConfig,
    workdir: str | pathlib.Path,
    *,
    seed: int = 0,
    log_every: int = 20,
    eval_every: int = 500,
    save_every: int = 250,
) -> Any:
  """Trains to the last step, going on from the newest checkpoint if any.

  Args:
    task: Model, data and loss.
    optimizer: Optimizer and number of steps.
    workdir: Folder of checkpoints, metrics and TensorBoard events.
    seed: Of everything random in the loss.
    log_every: Steps between lines of training metrics.
    eval_every: Steps between evaluations.
    save_every: Steps between checkpoints.

  Returns:
    The moving average of the parameters.

  Raises:
    NonFiniteLossError: The loss is not a number any more.
  """
  workdir = pathlib.Path(workdir)
  step_fn, tx = step_lib.make_step(task.loss, optimizer)
  state = state_lib.create(task.init_params(), tx)
  num_params = sum(x.size for x in jax.tree.leaves(state.params))
  logging.info("%s parameters on %s.", f"{num_params:,}", jax.devices())
  checkpoints = checkpoints_lib.Checkpoints(workdir / "checkpoints")
  if checkpoints.latest_step() is not None:
    state = checkpoints.restore(state)
  writer = metrics_lib.RunWriter(workdir)
  try:
    state = _loop(
        task, step_fn, state, optimizer.num_steps, jax.random.key(seed),
        checkpoints, writer, log_every, eval_every, save_every,
    )
  finally:
    checkpoints.close()
    writer.close()
  return state.ema


def _loop(
    task, step_fn, state, num_steps, key, checkpoints, writer, log_every,
    eval_every, save_every,
):
  start = int(state.step)
  meter = _Meter(writer, log_every)
  progress = tqdm.tqdm(
      range(start, num_steps), initial=start, total=num_steps, desc="steps",
      mininterval=5.0,
  )
  for step in progress:
    state, metrics = step_fn(state, task.batch(step), key)
    meter.add(step + 1, metrics)
    if (step + 1) % save_every == 0 or step + 1 == num_steps:
      meter.check()
      checkpoints.save(state)
    if (step + 1) % eval_every == 0 or step + 1 == num_steps:
      values = task.evaluate(state.ema)
      writer.write(step + 1, {f"eval/{k}": v for k, v in values.items()})
      meter.restart_clock()
  meter.check()
  return state


class _Meter:
  """Averages metrics, a step late so that the device never waits."""

  def __init__(self, writer: metrics_lib.Writer, log_every: int):
    self._writer = writer
    self._log_every = log_every
    self._pending = None
    self._values = []
    self.restart_clock()

  def restart_clock(self) -> None:
    self._time, self._since = time.monotonic(), len(self._values)

  def add(self, step: int, metrics: dict[str, Array]) -> None:
    """Takes the metrics of a step, and reads those of the step before."""
    previous, self._pending = self._pending, (step, metrics)
    if previous is not None:
      self._read(*previous)

  def check(self) -> None:
    """Reads what is pending: the state is good up to here."""
    if self._pending is not None:
      self._read(*self._pending)
      self._pending = None

  def _read(self, step: int, metrics: dict[str, Array]) -> None:
    values = {k: float(v) for k, v in metrics.items()}
    for name in ("loss", "grad_norm"):
      if not math.isfinite(values[name]):
        raise NonFiniteLossError(
            f"{name} is {values[name]} at step {step}. The newest checkpoint"
            " is from before it: resume with a lower learning rate, or look"
            " at the batch of that step."
        )
    self._values.append(values)
    if step % self._log_every == 0:
      mean = {
          k: float(np.mean([v[k] for v in self._values])) for k in values
      }
      elapsed = time.monotonic() - self._time
      count = len(self._values) - self._since
      mean["steps_per_second"] = count / max(elapsed, 1e-9)
      self._writer.write(step, {f"train/{k}": v for k, v in mean.items()})
      self._values = []
      self.restart_clock()
