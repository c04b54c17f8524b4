"""The training loop with a task of one linear layer: it ends, resumes, stops."""

import dataclasses
import json

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.models import layers
from sculpt4d_jax.training import loop
from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import schedule as schedule_lib
from sculpt4d_jax.training import step_metrics

OPTIMIZER = optimizer_lib.OptimizerConfig(
  learning_rate=0.1,
  num_steps=12,
  warmup_steps=0,
  weight_decay=0.0,
  ema_decay=0.5,
)
SCHEDULE = schedule_lib.Schedule(log_every=2, eval_every=5, save_every=6)
TRUE = np.array([[2.0], [-1.0]], np.float32)


@dataclasses.dataclass(frozen=True)
class Sizes:
  batch_size: int = 8


class Line:
  """y = x @ TRUE + 3, to be learned by a linear layer."""

  config = Sizes()
  warm_start = {}
  is_trained = None

  def __init__(self, stop_before=None, bad_step=None):
    self.stop_before, self.bad_step = stop_before, bad_step
    self.steps = []
    self.module = layers.Linear(
      2, (1,), kernel_axes=(None, None), rngs=nnx.Rngs(0)
    )

  def init_params(self):
    return nnx.state(self.module, nnx.Param)

  def check_mesh(self, mesh, accumulation_steps):
    del mesh, accumulation_steps

  def batch(self, step, rows=None):
    if step == self.stop_before:
      raise KeyboardInterrupt
    self.steps.append(step)
    x = np.random.default_rng(step).normal(size=(8, 2)).astype(np.float32)
    y = x @ TRUE + 3
    if step == self.bad_step:
      y = np.full_like(y, np.nan)
    return (x, y) if rows is None else (x[rows], y[rows])

  def describe_batch(self, step):
    return f"seed {step}"

  def flops(self, batch):
    del batch
    return 48

  def loss(self, params, batch, key):
    del key
    x, y = batch
    error = nnx.merge(nnx.graphdef(self.module), params)(x) - y
    return jnp.mean(error**2), {}

  def evaluate(self, params):
    x = np.eye(2, dtype=np.float32)
    loss, _ = self.loss(params, (x, x @ TRUE + 3), None)
    return {"error": float(loss)}

  def exported(self, params):
    return params


class Recorder:
  every = 4

  def __init__(self):
    self.seen = []

  def look(self, step, params, writer):
    del params, writer
    self.seen.append(step)
    return {"sample/seen": float(step)}


def kernel(trained):
  (found,) = (
    value[...]
    for path, value in nnx.to_flat_state(trained.params)
    if "kernel" in path
  )
  return np.asarray(found)


def train(folder, task, **changes):
  optimizer = dataclasses.replace(OPTIMIZER, **changes)
  return loop.train(task, optimizer, folder, schedule=SCHEDULE)


def test_a_line_is_learned(tmp_path):
  schedule = schedule_lib.Schedule()  # It saves at the end alone.
  optimizer = dataclasses.replace(OPTIMIZER, num_steps=300)
  trained = loop.train(Line(), optimizer, tmp_path, schedule=schedule)
  np.testing.assert_allclose(kernel(trained), TRUE, atol=0.02)
  assert trained.evaluated["error"] < 1e-3


def test_an_interrupted_run_resumes_exactly(tmp_path):
  whole = train(tmp_path / "whole", Line())
  with pytest.raises(KeyboardInterrupt):
    train(tmp_path / "parts", Line(stop_before=9))
  rest = Line()
  resumed = train(tmp_path / "parts", rest)
  assert rest.steps[0] == 6  # The step of the newest checkpoint.
  np.testing.assert_array_equal(kernel(resumed), kernel(whole))


def test_a_finished_run_takes_no_further_step(tmp_path):
  first = train(tmp_path, Line(), num_steps=2)
  again = Line()
  second = train(tmp_path, again, num_steps=2)
  assert not again.steps
  np.testing.assert_array_equal(kernel(second), kernel(first))


def test_observers_look_at_their_steps_and_at_the_end(tmp_path):
  recorder = Recorder()
  loop.train(
    Line(), OPTIMIZER, tmp_path, schedule=SCHEDULE, observers=[recorder]
  )
  assert recorder.seen == [4, 8, 12]
  lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  evaluated = [r["step"] for r in records if "eval/error" in r]
  assert evaluated == [5, 10, 12]
  assert [r["step"] for r in records if "sample/seen" in r] == recorder.seen


def test_a_loss_that_is_not_finite_ends_the_run_before_it_is_saved(tmp_path):
  with pytest.raises(step_metrics.NonFiniteLossError, match="seed 7"):
    train(tmp_path, Line(bad_step=7))
  steps = [int(p.name) for p in (tmp_path / "checkpoints").glob("[0-9]*")]
  assert steps == [6]


def test_given_weights_are_the_start(tmp_path):
  task = Line()
  params = jax.tree.map(np.asarray, task.init_params())
  task.warm_start = {"kernel": params["kernel"].replace(TRUE)}
  trained = train(tmp_path, task, num_steps=1, learning_rate=1e-9)
  np.testing.assert_allclose(kernel(trained), TRUE, atol=1e-6)
