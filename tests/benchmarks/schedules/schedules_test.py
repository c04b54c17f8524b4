import dataclasses

import numpy as np
import pytest

from benchmarks.schedules import coverage
from benchmarks.schedules import entries
from configs import sculpt4d
from sculpt4d_jax.evaluation import cost
from sculpt4d_jax.kernels import block_sparse_attention as bsa
from sculpt4d_jax.training import preset as preset_lib


def reach_by_matrices(mask):
  seen = mask.dense_blocks().astype(float)
  weights = seen / seen.sum(1, keepdims=True)
  twice = weights @ weights
  terms = np.where(twice > 0, twice * np.log(np.where(twice > 0, twice, 1)), 0)
  return np.mean(np.exp(-terms.sum(1))) / mask.num_blocks


@pytest.mark.parametrize("schedule", [(1, 1, 2, 4), (1, 4), (2, 8), (8,)])
@pytest.mark.parametrize("anchors", [(0,), ()])
def test_reach_equals_products_of_whole_masks(schedule, anchors):
  mask = bsa.BlockMask(5, 8, schedule, anchors)
  expected = reach_by_matrices(mask)
  assert coverage.reach(mask) == pytest.approx(expected, rel=1e-9)


def test_reach_by_hand():
  assert coverage.reach(bsa.BlockMask.dense(4, 8)) == pytest.approx(1.0)
  # Each block sees itself in all 4 frames: 4 of 32 blocks, evenly.
  mask = bsa.BlockMask(4, 8, (8,), ())
  assert coverage.reach(mask) == pytest.approx(4 / 32)


def test_no_schedule_is_sparser_at_equal_shares():
  # 1 / stride by distance decides the density, anchors being equal.
  paper = (1, 1, 2, 4, 8, 16)
  own = coverage.shares(paper, 16)
  density = bsa.BlockMask(16, 32, paper).density()
  for schedule, anchors in entries.enumerate_schedules(32):
    if anchors and np.all(np.array(coverage.shares(schedule, 16)) >= own):
      assert bsa.BlockMask(16, 32, schedule).density() >= density


def test_enumeration_and_prices():
  # 6 strides, 6 places: 11 choose 6 schedules, each with and without anchor.
  assert len(list(entries.enumerate_schedules(32))) == 2 * 462
  model = preset_lib.from_config(sculpt4d.get_config()).model
  sizes = cost.Sizes(model.dit, model.image_encoder, model.vae)
  entry = entries.price(sizes, (1, 1, 2, 4, 8, 16), (0,), 16)
  assert round(100 * entry.density, 2) == 35.23  # Table A1.
  assert entry.operations == sum(sizes.call(16, "sparse").values())
  assert entry.name == "1-1-2-4-8-16+anchor"
  assert not entry.dominates(entry)
  assert dataclasses.replace(entry, density=0.3).dominates(entry)
  assert not dataclasses.replace(entry, density=0.3, reach=0).dominates(entry)
