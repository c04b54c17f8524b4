"""The table of the benchmark: a row a system, whole or marked as partial."""

import json
import math
import pathlib

from benchmarks.bench_v1 import make
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation.protocols import metric_table


def of_scores(folder: pathlib.Path) -> str:
  """All rows that were scored by one protocol.

  Args:
    folder: Folder with a JSON file for each row, as `scores.to_json` makes it.
  """
  rows = {}
  for path in sorted(folder.glob("*.json")):
    rows |= json.loads(path.read_text())["methods"]
  if not rows:
    return "No rows yet: give --predicted or --baselines."
  metrics = list(next(iter(rows.values()))["estimates"])
  titles = [metric_table.METRICS[name].title for name in metrics]
  cells = [["", "clips", "failed", *titles]]
  partial = []
  for name, row in rows.items():
    count = row["num_clips"]
    clips = str(count)
    if count < make.NUM_CLIPS:
      partial.append(name)
      clips = f"{count} of {make.NUM_CLIPS}"
    found = [_estimate(row["estimates"][metric]) for metric in metrics]
    cells.append(
      [name, clips, str(row["num_failed"])]
      + [evaluator.format_estimate(estimate, 4) for estimate in found]
    )
  text = evaluator.layout(cells, False)
  if partial:
    text += (
      f"\n\nPartial, no scores of {make.VERSION}: {', '.join(partial)}. All"
      f" {make.NUM_CLIPS} clips are needed."
    )
  return text


def _estimate(values: dict[str, float | None]) -> evaluator.Estimate:
  return evaluator.Estimate(
    **{k: math.nan if v is None else v for k, v in values.items()}
  )
