"""The training loop, for any task, on one device or many processes."""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import json
import time
from typing import Any, Protocol

from absl import logging
from flax import nnx
import jax
import numpy as np
import optax
import tqdm

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths
from sculpt4d_jax.training import best_checkpoints as best_lib
from sculpt4d_jax.training import checkpoints as checkpoints_lib
from sculpt4d_jax.training import connections
from sculpt4d_jax.training import goodput as goodput_lib
from sculpt4d_jax.training import metric_writers
from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import preemption as notice_lib
from sculpt4d_jax.training import profiling
from sculpt4d_jax.training import schedule as schedule_lib
from sculpt4d_jax.training import state as state_lib
from sculpt4d_jax.training import step as step_lib
from sculpt4d_jax.training import step_metrics as meter_lib
from sculpt4d_jax.training import watchdog as watchdog_lib
from sculpt4d_jax.training.ahead_of_time import step_flops

Array = array_types.Array

# Exit code after a preemption: that of a process ended by SIGTERM (128 + 15).
_EXIT_AFTER_NOTICE = 143
# Options of XLA for a program that runs once.
_QUICK = {
  "xla_backend_optimization_level": 0,
  "xla_llvm_disable_expensive_passes": True,
}
# Substrings of the errors that jax raises when a peer process dies.
_SIGNS_OF_LOSS = (
  "gloo",
  "connection",
  "heartbeat",
  "barrier",
  "coordination",
  "unavailable",
  "deadline_exceeded",
  "preempted",
)


class Task(Protocol):
  """Model, data and loss of a training."""

  config: Any  # Has `batch_size`.
  warm_start: Mapping[str, nnx.State]  # Parts that start from given weights.
  # (path, parameter) -> whether it is trained at all; None trains everything.
  is_trained: Callable[[tuple[Any, ...], Any], bool] | None

  def init_params(self) -> Any:
    """Fresh parameters; may be traced."""

  def check_mesh(
    self, mesh: partitioning.Mesh, accumulation_steps: int
  ) -> None:
    """Raises ValueError if the mesh does not divide a step."""

  def batch(self, step: int, rows: np.ndarray | None = None) -> Any:
    """The batch of a step, or some of its clips; depends on the step alone."""

  def describe_batch(self, step: int) -> str:
    """Describes the content of a step's batch, for messages."""

  def flops(self, batch: Any) -> int:
    """Model FLOPs of a step on a whole batch."""

  def draw(self, batch: Any, key: Array) -> Any:
    """Random numbers of a step's loss, arrays [B, ...]."""

  def loss(self, params: Any, batch: Any, draws: Any) -> tuple[Array, dict]:
    """Loss and metrics.

    A task without micro-batches may lack `draw`; its loss takes the key. A task
    whose attribute `sees_progress` is true also takes a `step.Progress`.
    """

  def evaluate(self, params: Any) -> dict[str, float]:
    """Held-out metrics."""

  def exported(self, params: Any) -> Any:
    """Parameters of the networks that are exported."""


class Observer(Protocol):
  """A callback that runs every `every` steps."""

  every: int  # Number of steps between calls; it is also called at the end.

  def look(
    self, step: int, params: Any, writer: metric_writers.Writer
  ) -> dict[str, float]:
    """Metrics of parameters on the host; the same on every process."""


class LostProcessError(RuntimeError):
  """A peer process of the run died; this one cannot continue without it."""


@dataclasses.dataclass(frozen=True)
class Trained:
  """Result of a run.

  Attributes:
    params: Moving average of the parameters, complete and on the host, joined
      with those that are not trained; of the last step, or of the best one if
      the schedule says so.
    evaluated: Held-out metrics of these parameters; None if they were not
      evaluated.
  """

  params: Any
  evaluated: dict[str, float] | None


def train(
  task: Task,
  optimizer: optimizer_lib.OptimizerConfig,
  workdir: paths.PathLike,
  *,
  mesh: partitioning.MeshConfig = partitioning.MeshConfig(),
  seed: int = 0,
  schedule: schedule_lib.Schedule = schedule_lib.Schedule(),
  observers: Sequence[Observer] = (),
) -> Trained:
  """Trains to the last step; resumes from the newest checkpoint, if any.

  Every process of a run calls this with the same arguments; `workdir` is a
  folder that all of them see, or a place in a store. A batch depends on its
  step alone, so the step in a checkpoint is also the position in the data.

  Args:
    task: Model, data and loss.
    optimizer: Optimizer and number of steps.
    workdir: Folder of checkpoints, metrics and TensorBoard events.
    mesh: Device mesh.
    seed: Seed of everything random in the loss.
    schedule: Steps at which it logs, evaluates, saves and profiles.
    observers: Callbacks that see the averaged parameters every few steps.

  Raises:
    meter.NonFiniteLossError: The loss is NaN or infinite.
    LostProcessError: A peer process died.
    SystemExit: Preempted (SIGTERM); the state was saved first.
    ValueError: The mesh does not fit the devices or the task.
  """
  workdir = paths.of(workdir)
  goodput = goodput_lib.Goodput()
  device_mesh = partitioning.make_mesh(mesh)
  task.check_mesh(device_mesh, optimizer.accumulation_steps)
  # Before anything slow, during which connections could time out.
  connections.connect(device_mesh)
  with partitioning.use_mesh(device_mesh):
    shardings = state_shardings(task, optimizer, device_mesh)
    step_fn, tx = make_step(task, optimizer, shardings)
    checkpoints = checkpoints_lib.Checkpoints(
      workdir / "checkpoints", schedule.keep_checkpoints
    )
    best = best_lib.Best(workdir / "best", schedule)
    # A checkpoint takes precedence over given weights, and those over fresh
    # ones.
    abstract = abstract_state(task, tx)
    with goodput.spending("restore"):
      state = checkpoints.restore_newest(abstract, shardings, missing_ok=True)
    if state is None:
      state = _initial_state(task, tx, shardings)
    elif abstract.fixed:  # Not in checkpoints, as it never changes.
      fixed = _initial_state(task, tx, shardings).fixed
      state = dataclasses.replace(state, fixed=fixed)
    _log_sizes(state, device_mesh)
    for remark in optimizer_lib.remarks(optimizer):
      logging.warning("%s", remark)
    writer = metric_writers.open_writer(workdir)
    tracer = profiling.Tracer(workdir / "profile", schedule)
    # Whether a save that is in progress can still be completed at the end.
    can_save = True
    try:
      with notice_lib.Notice() as notice:
        loop = _Loop(
          task,
          step_fn,
          optimizer.num_steps,
          jax.random.key(seed),
          device_mesh,
          checkpoints,
          best,
          writer,
          notice,
          tracer,
          schedule,
          observers,
          goodput,
          workdir / "compile_seconds.json",
        )
        state = loop.run(state)
      evaluated = loop.evaluated
      if schedule.export == "best":
        chosen = best.restore(abstract, shardings)
        # The metrics are those of the last step, not of the best one.
        if int(chosen.step) != int(state.step):
          evaluated = None
        state = dataclasses.replace(chosen, fixed=state.fixed)
      params = _on_host(state_lib.join(state.ema, state.fixed))
      return Trained(params, evaluated)
    # The disk is full: closing would wait for the same failure.
    except checkpoints_lib.CheckpointError:
      can_save = False
      raise
    except Exception as error:
      lost = _lost_process(error)
      if lost is None:
        raise
      can_save = False  # Saving needs all processes.
      raise lost from error
    finally:
      goodput.end()
      tracer.close()
      writer.close()
      if can_save:
        checkpoints.close()
        best.close()


def _log_sizes(state: state_lib.TrainState, mesh: partitioning.Mesh):
  sizes = [
    sum(x.size for x in jax.tree.leaves(tree))
    for tree in (state.params, state.fixed)
  ]
  fixed = f" and {sizes[1]:,} that stay as they are" if sizes[1] else ""
  logging.info("%s parameters%s on %s.", f"{sizes[0]:,}", fixed, mesh)


def make_step(
  task: Task,
  optimizer: optimizer_lib.OptimizerConfig,
  shardings: state_lib.TrainState,
) -> tuple[step_lib.Step, optax.GradientTransformation]:
  """Compiles a task's step; see `step.make_step`."""
  return step_lib.make_step(
    task.loss,
    optimizer,
    shardings,
    draw=getattr(task, "draw", None),
    sees_progress=getattr(task, "sees_progress", False),
  )


def abstract_state(
  task: Task, tx: optax.GradientTransformation
) -> state_lib.TrainState:
  """Shapes of a run's state."""
  return jax.eval_shape(
    lambda: state_lib.create(task.init_params(), tx, task.is_trained)
  )


def state_shardings(
  task: Task,
  optimizer: optimizer_lib.OptimizerConfig,
  mesh: partitioning.Mesh,
) -> state_lib.TrainState:
  """Shardings of a run's state on a mesh."""
  tx = optimizer_lib.make_optimizer(optimizer)
  return partitioning.shardings(abstract_state(task, tx), mesh)


def _initial_state(
  task: Task, tx: optax.GradientTransformation, shardings: state_lib.TrainState
):
  create = lambda: state_lib.create(task.init_params(), tx, task.is_trained)
  # It runs once. On a CPU, optimising the random numbers of a hundred parameters
  # takes a minute with jax 0.10 and several with 0.12; the rest half a minute.
  options = _QUICK if jax.default_backend() == "cpu" else None
  state = jax.jit(create, out_shardings=shardings, compiler_options=options)()
  # Given weights replace fresh ones, in the average too.
  given = dict(nnx.to_flat_state(nnx.State(dict(task.warm_start))))
  left = set(given)
  for tree in (state.params, state.ema, state.fixed):
    left -= _give(tree, given)
  assert not left, f"Given weights have no place: {sorted(left)[:3]}"
  return state


def _give(tree: Any, given: Mapping[tuple[Any, ...], Any]):
  """Overwrites parameters that share a path with `given`; returns the paths."""
  found = set()
  for path, variable in nnx.to_flat_state(tree) if given and tree else ():
    if path in given:
      old, new = variable[...], given[path][...]
      variable.set_value(partitioning.place(new, old.sharding))
      found.add(path)
  return found


def _on_host(params: Any):
  """Complete parameters, on every process."""
  # On one device they stay where they are.
  return params if jax.device_count() == 1 else partitioning.on_host(params)


def _lost_process(error: Exception) -> LostProcessError | None:
  """The error to raise if a peer process has died, or None."""
  # jax has no error type for this; messages are all there is. ValueErrors are
  # our own.
  if jax.process_count() == 1 or isinstance(error, ValueError):
    return None
  text = f"{type(error).__name__} {error}"
  if not any(sign in text.lower() for sign in _SIGNS_OF_LOSS):
    return None
  reason = str(error).strip().splitlines() or [type(error).__name__]
  return LostProcessError(
    f"Process {jax.process_index()} of {jax.process_count()} stops: another"
    " one has gone, and no step can be taken without it"
    f" ({reason[0][:200]}). Start all of them again; the same command resumes"
    " from the newest checkpoint."
  )


@dataclasses.dataclass
class _Loop:
  """The steps of a run, and everything that is due between them."""

  task: Task
  step_fn: step_lib.Step
  num_steps: int
  key: Array
  mesh: partitioning.Mesh
  checkpoints: checkpoints_lib.Checkpoints
  best: best_lib.Best
  writer: metric_writers.Writer
  notice: notice_lib.Notice
  tracer: profiling.Tracer
  schedule: schedule_lib.Schedule
  observers: Sequence[Observer]
  goodput: goodput_lib.Goodput
  compile_record: paths.PathLike  # Compile time of the previous run.
  evaluated: dict[str, float] | None = None  # After the last step.

  def __post_init__(self):
    self.meter = meter_lib.Meter(
      self.writer,
      self.schedule.log_every,
      self.task.describe_batch,
      self.goodput.shares,
    )

  def run(self, state: state_lib.TrainState) -> state_lib.TrainState:
    """Runs the remaining steps."""
    start = int(state.step)
    # This process loads only its devices' clips.
    rows = partitioning.local_rows(self.task.config.batch_size, self.mesh)
    progress = tqdm.tqdm(
      range(start, self.num_steps),
      initial=start,
      total=self.num_steps,
      desc="steps",
      mininterval=5.0,
      # Left out rather than False, so that TQDM_DISABLE still works.
      **({"disable": True} if jax.process_index() else {}),
    )
    with watchdog_lib.Watchdog(self.schedule.hang_seconds) as self.watchdog:
      for step in progress:
        with self.goodput.step():
          state = self._step(state, step, rows, step == start)
      self.meter.check()
    return state

  def _step(
    self,
    state: state_lib.TrainState,
    step: int,
    rows: np.ndarray,
    is_first: bool,
  ):
    """Runs one step, and what is due after it."""
    batch = self._batch(step, rows)
    if is_first:
      # FLOPs depend on the shapes of a batch, which are known from here on.
      self._measure_work(batch)
    self.tracer.before(step)
    call = self._compile if is_first else self.step_fn
    state, metrics = call(state, batch, self.key)
    # Metrics are read one step late: the host prepares the next batch while the
    # devices compute.
    self.meter.add(step + 1, metrics)
    self.watchdog.beat(step + 1)
    self._save(state, step + 1)
    self._evaluate(state, step + 1)
    return state

  def _compile(self, *args: Any):
    """Runs the first step, which compiles."""
    path, last = paths.of(self.compile_record), ""
    if jax.process_index() == 0 and path.is_file():
      try:
        last = f"; the last time took {json.loads(path.read_text()):.0f} s"
      except ValueError:
        pass  # It is only a hint.
    logging.info("Compiling the training step%s.", last)
    began = time.monotonic()
    with self.goodput.spending("compile"):
      result = self.step_fn(*args)
    seconds = time.monotonic() - began
    logging.info("Compiled in %.0f s; training.", seconds)
    if jax.process_index() == 0:
      try:
        atomic.write_bytes(path, json.dumps(round(seconds, 1)).encode())
      except atomic.OutputError as error:  # It is only a hint.
        logging.warning("%s", error)
    return result

  def _batch(self, step: int, rows: np.ndarray):
    with self.goodput.spending("data"):
      return self._make_batch(step, rows)

  def _make_batch(self, step: int, rows: np.ndarray):
    with self.meter.spending("data"):
      batch = self.task.batch(step, rows)
    with self.meter.spending("transfer"):
      if self.mesh.size == 1:
        return jax.device_put(batch)
      size = self.task.config.batch_size
      return partitioning.global_batch(batch, rows, size, self.mesh)

  def _measure_work(self, batch: Any):
    peak = step_flops.peak(self.mesh.devices.flat[0])
    if peak is not None:
      self.meter.expect(self.task.flops(batch), peak * self.mesh.size)

  def _save(self, state: state_lib.TrainState, step: int):
    """Saves the state if it is due; ends the run after a preemption notice."""
    # A local notice in a single process; otherwise jax makes all processes
    # agree on the step.
    stops = self.notice.came() or self.checkpoints.reached_preemption(step)
    if step % self.schedule.save_every == 0 or step == self.num_steps or stops:
      self.meter.check()
      # After the check: no checkpoint ever holds a state that is not finite.
      with self.goodput.spending("save"), self.meter.spending("save"):
        # The watchdog must not take a store that is away for a hung step.
        with self.watchdog.paused():
          self.checkpoints.settle()
        self.checkpoints.save(state)
    if stops:
      self.checkpoints.wait_for_all()
      logging.info(
        "Told to stop at step %d; the state is saved, and the same command"
        " resumes from it.",
        step,
      )
      raise SystemExit(_EXIT_AFTER_NOTICE)

  def _evaluate(self, state: state_lib.TrainState, step: int):
    """Evaluates and shows samples if they are due."""
    # An evaluation may take longer than a step is allowed to.
    with self.goodput.spending("eval"), self.watchdog.paused():
      self._evaluate_now(state, step)

  def _evaluate_now(self, state: state_lib.TrainState, step: int):
    values = {}
    params = lambda: state_lib.join(state.ema, state.fixed)
    if step % self.schedule.eval_every == 0 or step == self.num_steps:
      held_out = self.task.evaluate(params())
      if step == self.num_steps:
        self.evaluated = held_out
      values |= {f"eval/{name}": value for name, value in held_out.items()}
    for observer in self.observers:
      if step % observer.every == 0 or step == self.num_steps:
        # All processes take part in gathering; the observer decides who uses
        # it.
        whole = self.task.exported(_on_host(params()))
        values |= observer.look(step, whole, self.writer)
    if values:
      self.meter.check()
      self.writer.write(step, values)
      self.best.offer(state, values)
      self.meter.restart_clock()
