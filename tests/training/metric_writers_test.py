"""Metrics of a run on disk, also after a full disk or an early end."""

import json

import pytest

from sculpt4d_jax.io import atomic
from sculpt4d_jax.training import metric_writers


@pytest.mark.parametrize(
  "left",
  ['{"step": 2, "lo', '{"step": 2, "a": "' + "long" * 50_000, "", None],
  ids=["short", "longer than a buffer", "whole", "nothing else"],
)
def test_a_line_that_was_cut_short_is_not_left_behind(tmp_path, left):
  path = tmp_path / "metrics.jsonl"
  whole = [] if left is None else [{"step": 1}]
  path.write_text("{" if left is None else '{"step": 1}\n' + left)
  writer = metric_writers.RunWriter(tmp_path)
  writer.write(3, {"loss": 1.5})
  writer.close()
  lines = [json.loads(line) for line in path.read_text().splitlines()]
  assert lines == [*whole, {"step": 3, "loss": 1.5}]


def test_what_cannot_be_written_is_said(tmp_path):
  (tmp_path / "metrics.jsonl").mkdir()
  with pytest.raises(atomic.OutputError, match="cannot write"):
    metric_writers.RunWriter(tmp_path)
