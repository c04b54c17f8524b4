"""Schedules are read block by block and weighed by how often blocks run."""

import importlib.util

import numpy as np
import pytest

from sculpt4d_jax.kernels.block_sparse_attention import mask as mask_lib
from sculpt4d_jax.kernels.block_sparse_attention.bench import aot_tpu
from sculpt4d_jax.kernels.block_sparse_attention.bench import tpu_schedule
from sculpt4d_jax.kernels.block_sparse_attention.tpu import lists as tpu_lists
from sculpt4d_jax.kernels.block_sparse_attention.tpu import pair_lists

# A grid loop that holds a loop over items with one block of products.
LISTING = """
= control target key start
LH: loop header
= control target key end
     0   :  { %s1 = smov.u32 0 } /* Start region 1 */
   0x1 LB: > { %s2 = sphi %s1, %s3 }
   0x2   : > { %4 = sbr.rel (%p1) target = $region9 }
   0x3 LB: >> { %s5 = sld [smem:[#allocation13]] }
   0x4   : >> { %v6 = vmatmul.mubr.bf16.mxu0 %v5 } /* Start region 2 */
   0x5   : >> { %v7 = vmatmul.mubr.bf16.mxu0 %v6  ;;
 %v8 = vmatmul.mubr.bf16.mxu1 %v6 }
   0x6   : >> { %9 = sbr.rel (!%p2) target = $region3 }
   0x7   :  {}
"""


def test_blocks_of_a_listing():
  blocks = tpu_schedule.read_blocks(LISTING)
  assert blocks == [
    tpu_schedule.Block(0, 1, (), 0),
    tpu_schedule.Block(1, 2, (1,), 0),
    tpu_schedule.Block(3, 1, (1, 3), 0),
    tpu_schedule.Block(4, 3, (1, 3), 3),
    tpu_schedule.Block(7, 1, (), 0),
  ]


def test_cycles_by_hand():
  blocks = tpu_schedule.read_blocks(LISTING)
  uses = [tpu_schedule.Use(products=2, times=10, rounds=10)]
  # 1 + 5 tiles of 2 bundles + 10 items of 1 bundle and the products + 1. The
  # products take 3 bundles, or 2 * 4 cycles at peak.
  count = lambda cycles: tpu_schedule.cycles(blocks, uses, 5, 0.0, cycles)
  assert count(1.0) == 1 + 5 * 2 + 10 * (1 + 3) + 1
  assert count(4.0) == 1 + 5 * 2 + 10 * (1 + 8) + 1
  with pytest.raises(ValueError, match="1 blocks .* source 2"):
    tpu_schedule.cycles(blocks, uses * 2, 5, 0.0, 1.0)


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_uses_hold_all_products(direction):
  mask = mask_lib.BlockMask(12, 16)
  layout = tpu_lists.make_layout(mask, 64, 4, 1)
  tiles = ((1, 4), (4, 1))
  if direction == "backward":
    lists = tpu_lists.make_lists(mask, layout, tiles, 4, 3)
    filled = 0
    assert all(np.isfinite(work.singles_per_item()) for work in lists)
  else:
    lists = pair_lists.make_lists(mask, layout, tiles, 4, (8, 6), 3)
    filled = sum(work.num_filled for work in lists)
    assert filled
  products = {"forward": 2, "backward": 5}[direction]
  find_uses = getattr(tpu_schedule, f"{direction}_uses")
  total = sum(
    use.products * use.times for work in lists for use in find_uses(work)
  )
  pairs = round(mask.density() * (mask.num_frames * layout.segments) ** 2)
  assert total == products * (pairs + filled)


def test_missing_schedule_is_named(tmp_path):
  with pytest.raises(FileNotFoundError, match="no final bundles of kernel_a"):
    tpu_schedule.find_listing(tmp_path, "kernel_a")


@pytest.mark.skipif(
  importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed"
)
def test_missing_libtpu_is_named():
  with pytest.raises(RuntimeError, match=r"jax\[tpu\]"):
    aot_tpu.devices("v5e")
