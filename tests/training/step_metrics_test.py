"""Means of steps, their times, and losses that are not finite."""

import time

import numpy as np
import pytest

from sculpt4d_jax.training import metric_writers
from sculpt4d_jax.training import step_metrics


class _Lines(metric_writers.NullWriter):
  def __init__(self):
    self.lines = []

  def write(self, step, values):
    self.lines.append((step, values))


def test_times_add_up_and_utilisation_follows():
  lines = _Lines()
  one = step_metrics.Meter(lines, 2, lambda step: "clips")
  one.expect(flops=1e6, peak=1e9)
  for step in (1, 2, 3):
    with one.spending("data"):
      time.sleep(0.02)
    one.add(step, {"loss": np.float32(step), "grad_norm": np.float32(1)})
  one.check()
  ((step, values),) = lines.lines
  assert step == 2 and values["train/loss"] == 1.5
  parts = ("data", "transfer", "save", "step")
  total = sum(values[f"train/seconds/{p}"] for p in parts)
  np.testing.assert_allclose(total, values["train/seconds/all"])
  assert values["train/seconds/data"] >= 0.02
  np.testing.assert_allclose(
    values["train/mfu"], 1e-3 / values["train/seconds/all"]
  )


def test_a_loss_that_is_no_number_names_step_groups_and_batch():
  one = step_metrics.Meter(_Lines(), 2, lambda step: f"clips of {step}")
  one.add(
    8,
    {
      "loss": np.float32("nan"),
      "grad_norm": np.float32("inf"),
      "grad_norm/mlp": np.float32("inf"),
      "grad_norm/router": np.float32(1),
    },
  )
  with pytest.raises(
    step_metrics.NonFiniteLossError,
    match="loss is nan at step 8.*gradients of mlp. The batch: clips of 7",
  ):
    one.check()
