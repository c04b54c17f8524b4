import json
import math

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.geometry import mesh as mesh_lib

TriangleMesh = mesh_lib.TriangleMesh
EMPTY = TriangleMesh(np.zeros((0, 3)), np.zeros((0, 3)))
QUICK = geometry_metrics.Conventions(
  num_points=1000, iou_resolution=16, jitter_resolution=12
)


def sphere(radius, centre=(0.0, 0.0, 0.0)):
  mesh = trimesh.creation.icosphere(subdivisions=2, radius=radius)
  return TriangleMesh(mesh.vertices + centre, mesh.faces)


def moving(radius=0.5, num_frames=4):
  return [sphere(radius, (0.1 * t, 0.0, 0.0)) for t in range(num_frames)]


def scores(name, chamfer, jitter=0.0):
  return evaluator.SequenceMetrics(
    name=name,
    chamfer=np.array(chamfer, float),
    iou=np.ones(len(chamfer)),
    f_score=np.ones(len(chamfer)),
    motion=geometry_metrics.Motion(jitter, 0.0, 0.0),
    num_empty=0,
  )


def test_truth_against_itself_is_perfect():
  result = evaluator.evaluate_sequence(moving(), moving(), QUICK)
  assert result.means() == {
    "chamfer": 0.0,
    "iou": 1.0,
    "f_score": 1.0,
    "jitter": 0.0,
  }
  assert result.num_frames == 4


def test_one_bad_frame_shows_in_that_frame_only():
  prediction = moving()
  prediction[2] = sphere(0.3, (0.2, 0.0, 0.0))
  result = evaluator.evaluate_sequence(prediction, moving(), QUICK)
  assert result.chamfer[2] == pytest.approx(0.2, rel=0.1)
  np.testing.assert_array_equal(result.chamfer[[0, 1, 3]], 0.0)
  assert result.motion.jitter > 0.0


def test_empty_frames_score_the_worst_and_are_counted():
  prediction = [EMPTY] * 4
  result = evaluator.evaluate_sequence(prediction, moving(), QUICK)
  means = result.means()
  assert means["chamfer"] == pytest.approx(math.sqrt(12))
  assert means["iou"] == means["f_score"] == 0.0
  assert result.num_empty == 4
  assert np.isfinite(means["jitter"])


def test_scores_repeat_and_progress_is_reported():
  calls = []
  a = evaluator.evaluate_sequence(
    moving(0.4), moving(), QUICK, on_frame=lambda: calls.append(1)
  )
  b = evaluator.evaluate_sequence(moving(0.4), moving(), QUICK)
  assert a.means() == b.means()
  assert len(calls) == 4


def test_single_frame_has_no_jitter():
  result = evaluator.evaluate_sequence([sphere(0.4)], [sphere(0.5)], QUICK)
  assert math.isnan(result.means()["jitter"])
  assert "–" in evaluator.format_table({"one": evaluator.summarise([result])})


def test_impossible_comparisons_are_refused():
  with pytest.raises(ValueError, match="walk: 3 predicted frames against 4"):
    evaluator.evaluate_sequence(moving()[:3], moving(), QUICK, name="walk")
  with pytest.raises(ValueError, match="frame 1 of the truth has no surface"):
    evaluator.evaluate_sequence(
      moving(), [sphere(0.5), EMPTY, *moving()[:2]], QUICK
    )
  with pytest.raises(ValueError, match="no frames"):
    evaluator.evaluate_sequence([], [], QUICK)
  with pytest.raises(ValueError, match="no sequences"):
    evaluator.summarise([])


def test_mean_is_over_sequences_not_frames():
  summary = evaluator.summarise(
    [scores("short", [1.0]), scores("long", [0.0, 0.0, 0.0])]
  )
  assert summary.estimates["chamfer"].mean == pytest.approx(0.5)


def test_interval_covers_the_mean_of_normal_samples():
  # The interval of 30 normal samples is about +-1.96 / sqrt(30) wide.
  rng = np.random.default_rng(0)
  values = rng.normal(size=30)
  estimate = evaluator.estimate_mean(values)
  half_width = (estimate.high - estimate.low) / 2
  assert half_width == pytest.approx(1.96 * values.std() / 30**0.5, rel=0.05)
  assert estimate.low < values.mean() < estimate.high
  narrower = evaluator.estimate_mean(values, confidence=0.5)
  assert narrower.high - narrower.low < half_width


def test_intervals_cover_the_true_mean_as_often_as_promised():
  rng = np.random.default_rng(1)
  hits = 0
  for _ in range(200):
    estimate = evaluator.estimate_mean(rng.normal(size=40), num_resamples=500)
    hits += estimate.low < 0.0 < estimate.high
  assert 0.89 <= hits / 200 <= 0.99


def test_estimate_leaves_out_nan_and_has_no_interval_for_one():
  estimate = evaluator.estimate_mean([math.nan, 2.0])
  assert (estimate.mean, estimate.num_sequences) == (2.0, 1)
  assert math.isnan(estimate.low)
  assert math.isnan(evaluator.estimate_mean([math.nan]).mean)


def test_paired_difference_sees_what_means_hide():
  rng = np.random.default_rng(2)
  difficulty = rng.uniform(0.0, 1.0, 20)
  worse = evaluator.summarise(
    [scores(str(i), [d]) for i, d in enumerate(difficulty)]
  )
  better = evaluator.summarise(
    [scores(str(i), [d - 0.01]) for i, d in enumerate(difficulty)][::-1]
  )
  difference = evaluator.paired_difference(better, worse, "chamfer")
  assert difference.mean == pytest.approx(-0.01)
  assert difference.high < 0.0
  assert (
    better.estimates["chamfer"].high > worse.estimates["chamfer"].low
  )  # The intervals of the means overlap.
  with pytest.raises(ValueError, match="Only one method"):
    evaluator.paired_difference(
      better, evaluator.summarise([scores("x", [1.0])]), "chamfer"
    )


def test_tables_align_and_are_valid_markdown():
  summary = evaluator.summarise(
    [scores("a", [0.25, 0.75], 0.5), scores("b", [0.5])]
  )
  text = evaluator.format_table({"ours": summary, "a longer name": summary})
  lines = text.split("\n")
  assert len(lines) == 3 and len({len(line) for line in lines}) == 1
  assert "0.5000 [0.5000, 0.5000]" in lines[1]
  markdown = evaluator.format_table({"ours": summary}, markdown=True)
  header, rule, row = markdown.split("\n")
  assert header.count("|") == rule.count("|") == row.count("|") == 7
  assert set(rule) <= set("|-: ")
  by_sequence = evaluator.format_sequences(summary, digits=2)
  assert "0.50" in by_sequence.split("\n")[1]


def test_json_holds_conventions_and_every_frame():
  summary = evaluator.summarise([scores("a", [0.25, 0.75], math.nan)])
  document = json.loads(
    json.dumps(evaluator.to_json({"ours": summary}, QUICK), allow_nan=False)
  )
  assert document["conventions"]["num_points"] == 1000
  method = document["methods"]["ours"]
  assert method["sequences"][0]["chamfer"] == [0.25, 0.75]
  assert method["sequences"][0]["motion"]["jitter"] is None
  assert method["estimates"]["chamfer"]["mean"] == 0.5
