"""Tables of variants by hand, and what keeps runs of other settings apart."""

import dataclasses

import pytest

from configs import tiny
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import variants

TIMES = {"sample": 2.0, "mesh": 0.5, "score": 1.25}


def scores(*seeds):
  """Two seeds or one; each a Chamfer distance and an F-Score a clip."""
  return variants.Scores(
    {
      number: [{"cd_sum": cd, "f_0.02": 1 - cd} for cd in clips]
      for number, clips in enumerate(seeds)
    },
    TIMES,
    "cpu",
  )


FOUND = {
  ("ours", 8): scores([0.1, 0.2, 0.3], [0.3, 0.4, 0.5]),
  ("full", 8): scores([0.2, 0.3, 0.4], [0.4, 0.5, 0.6]),
  ("no_anchor", 8): scores([0.3, 0.2, 0.1], [0.5, 0.4, 0.3]),
}


def test_means_are_over_clips_and_seeds():
  head, ours, *_ = variants.table(FOUND, "motion324")
  assert head == ["variant", "frames", "CD (sum) ↓", "F@0.02 ↑"]
  assert ours[:2] == ["ours", "8"]
  # Clips' means over seeds are 0.2, 0.3, 0.4.
  expected = evaluator.estimate_mean([0.2, 0.3, 0.4])
  assert ours[2] == evaluator.format_estimate(expected, 4)
  assert ours[2].startswith("0.3000 [")


def test_differences_are_clip_by_clip_and_marked_where_they_are_sure():
  found = {
    name: variants.Scores(
      {seed: 2 * clips for seed, clips in row.seeds.items()}, TIMES, "cpu"
    )
    for name, row in FOUND.items()
  }
  rows = variants.differences(found, "motion324", ("ours", 8))
  assert [row[0] for row in rows] == ["variant", "full", "no_anchor"]
  # The same for every clip: no doubt. The other's mean is zero.
  assert rows[1][1] == "0.1000 [0.1000, 0.1000] *"
  assert rows[1][2] == "-0.1000 [-0.1000, -0.1000] *"
  assert "*" not in rows[2][1]
  # Three clips are too few to say so.
  few = variants.differences(FOUND, "motion324", ("ours", 8))
  assert few[1][1] == "0.1000 [0.1000, 0.1000]"


def test_seeds_and_seconds_have_a_row_each():
  rows = variants.by_seed(FOUND, "motion324")
  assert rows[1][:4] == ["ours", "8", "0", "0.2000"]
  assert rows[2][:4] == ["ours", "8", "1", "0.4000"]
  assert variants.seconds(FOUND)[1] == [
    *("ours", "8", "2.00", "0.50", "1.25", "cpu"),
  ]


def test_other_settings_are_not_resumed(tmp_path):
  preset = preset_lib.from_config(tiny.get_config())
  other = dataclasses.replace(
    preset, sampling=dataclasses.replace(preset.sampling, num_steps=7)
  )
  assert variants._digest(preset) == variants._digest(preset)
  assert variants._digest(preset) != variants._digest(other)
  for _ in range(2):
    variants._claim(tmp_path, variants._digest(preset))
  with pytest.raises(ValueError, match="training with other settings"):
    variants._claim(tmp_path, variants._digest(other))
