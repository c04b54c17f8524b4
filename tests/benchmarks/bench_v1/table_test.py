import dataclasses
import json

import numpy as np

from benchmarks.bench_v1 import table
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.evaluation.protocols import scores


def write_row(folder, name, num_clips):
  protocol = dataclasses.replace(
    protocol_table.find("project"), metrics=("cd", "jitter")
  )
  clips = [
    scores.ClipScores(
      f"procedural-{seed:03d}",
      1,
      0,
      False,
      {"cd": np.array([0.25]), "jitter": np.array([np.nan])},
    )
    for seed in range(num_clips)
  ]
  document = scores.to_json({name: scores.summarise(protocol, clips)})
  (folder / f"{name}.json").write_text(json.dumps(document))


def test_rows_of_fewer_clips_are_marked(tmp_path):
  assert "No rows yet" in table.of_scores(tmp_path)
  write_row(tmp_path, "whole", 64)
  assert "Partial" not in table.of_scores(tmp_path)
  write_row(tmp_path, "some", 8)
  lines = table.of_scores(tmp_path).split("\n")
  assert lines[0].split() == ["clips", "failed", "CD", "(mean)", "Jitter"]
  by_name = {line.split()[0]: line.split() for line in lines[1:3]}
  assert by_name["some"][1:4] == ["8", "of", "64"]
  assert by_name["whole"][1] == "64"
  assert by_name["whole"][-1] == "–"
  assert "Partial, no scores of bench-v1: some. All 64 clips" in lines[-1]
