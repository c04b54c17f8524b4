"""The best checkpoints are kept, independent of later ones."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.training import best_checkpoints
from sculpt4d_jax.training import schedule
from sculpt4d_jax.training import state


def _state(step):
  params = {"kernel": jnp.full((4,), float(step))}
  return state.TrainState(jnp.array(step), params, params, {"m": params})


def _offer_all(folder, scores, **changes):
  fields = dict(keep_best=2, best_metric="eval/loss") | changes
  keeper = best_checkpoints.Best(folder / "best", schedule.Schedule(**fields))
  for step, score in scores.items():
    keeper.offer(_state(step), {fields["best_metric"]: score})
  keeper.close()
  return sorted(int(p.name) for p in (folder / "best").iterdir())


def test_the_lowest_are_kept_over_restarts(tmp_path):
  assert _offer_all(tmp_path, {1: 5.0, 2: 3.0, 3: 4.0, 4: float("nan")}) == [
    2,
    3,
  ]
  assert _offer_all(tmp_path, {5: 3.5, 6: 9.0}) == [2, 5]
  scores = json.loads((tmp_path / "best.json").read_text())
  assert scores == {"metric": "eval/loss", "2": 3.0, "5": 3.5}
  keeper = best_checkpoints.Best(
    tmp_path / "best",
    schedule.Schedule(keep_best=2, best_metric="eval/loss"),
  )
  shardings = jax.tree.map(lambda x: x.sharding, _state(0))
  restored = keeper.restore(_state(0), shardings)
  np.testing.assert_array_equal(restored.params["kernel"], np.full(4, 2.0))
  keeper.close()


def test_of_overlaps_the_highest_are_kept(tmp_path):
  scores = {1: 0.2, 2: 0.6, 3: 0.4}
  assert _offer_all(tmp_path, scores, best_metric="sample/iou") == [2, 3]


def test_other_metrics_are_passed_by(tmp_path):
  keeper = best_checkpoints.Best(
    tmp_path / "best", schedule.Schedule(keep_best=1)
  )
  keeper.offer(_state(1), {"sample/chamfer": 1.0})
  assert keeper.best_step() is None
  with pytest.raises(ValueError, match="never evaluated"):
    keeper.restore(_state(0), None)
  keeper.close()


def test_a_metric_that_its_evaluation_lacks_is_refused(tmp_path):
  keeper = best_checkpoints.Best(
    tmp_path / "best", schedule.Schedule(keep_best=1)
  )
  with pytest.raises(ValueError, match="not among .*: eval/error, eval/loss"):
    keeper.offer(
      _state(1), {"eval/loss": 1.0, "eval/error": 2.0, "sample/x": 3}
    )
  keeper.close()


def test_schedules_are_checked():
  with pytest.raises(ValueError, match="eval/ or sample/"):
    schedule.Schedule(best_metric="chamfer")
  with pytest.raises(ValueError, match="keep_best of at least 1"):
    schedule.Schedule(export="best")
  with pytest.raises(ValueError, match="first step and a number"):
    schedule.Schedule(profile=(3,))
  with pytest.raises(ValueError, match="save_every=0"):
    schedule.Schedule(save_every=0)
