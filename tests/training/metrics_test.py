"""Metrics of a run, also after a full disk or an early end."""

import json
import time

import numpy as np
import pytest

from sculpt4d_jax.io import atomic
from sculpt4d_jax.training import metrics
from sculpt4d_jax.training import step_metrics


@pytest.mark.parametrize(
  "left",
  ['{"step": 2, "lo', '{"step": 2, "a": "' + "long" * 50_000, "", None],
  ids=["short", "longer than a buffer", "whole", "nothing else"],
)
def test_a_line_that_was_cut_short_is_not_left_behind(tmp_path, left):
  path = tmp_path / "metrics.jsonl"
  whole = [] if left is None else [{"step": 1}]
  path.write_text("{" if left is None else '{"step": 1}\n' + left)
  writer = metrics.RunWriter(tmp_path)
  writer.write(3, {"loss": 1.5})
  writer.close()
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert lines == [*whole, {"step": 3, "loss": 1.5}]


def test_what_cannot_be_written_is_said(tmp_path):
  (tmp_path / "metrics.jsonl").mkdir()
  with pytest.raises(atomic.OutputError, match="cannot write"):
    metrics.RunWriter(tmp_path)


class _Lines(metrics.NullWriter):
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
