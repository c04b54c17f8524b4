"""Splash attention's estimate, by hand, and its compilation if libtpu is there."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from sculpt4d_jax.kernels import block_sparse_attention as bsa
from sculpt4d_jax.kernels.block_sparse_attention.bench import aot_splash

ROOT = pathlib.Path(__file__).resolve().parents[4]

# Two loops of bundles; two of the bundles use the matrix units.
LISTING = """\
   0  : { %1 = sadd.s32 1, 2 }
 0x1 LB : > { %2 = vmatmul.bf16.gmra.mxu0 %1 }
 0x2  : > { %3 = vadd.f32 %2, %2 ;; %4 = vmatmul.bf16.gmra.mxu1 %1 }
 0x3  : > { %5 = sbr.rel (%p1) target = $0x1 }
 0x4  : { %6 = sadd.s32 1, 2 }
"""


def test_empty_tiles_are_not_counted():
  # Blocks 0 and 1 of both frames see all of their frame, and one block of the
  # other frame: 12 of 16 pairs of blocks; with tiles of two blocks all.
  mask = bsa.BlockMask(2, 2, (1, 2), ())
  count = lambda q, k: aot_splash.count_tiles(mask, 256, aot_splash.Tile(q, k))
  dense = mask.dense_blocks("bit_reversed")
  assert count(128, 128) == np.count_nonzero(dense) == 12
  assert count(256, 128) == 8
  assert count(256, 256) == 4
  assert count(512, 512) == 1


def test_a_tile_takes_its_bundles_or_the_products():
  cycles = lambda tile: aot_splash.tile_cycles(LISTING, "fwd", tile, 128, "v5e")
  # 3 bundles of the loop; two products of 2 x 8 x 8 x 128 fit 1 cycle.
  assert cycles(aot_splash.Tile(8, 8)) == 3
  # 2 * 2 * 256 * 256 * 128 operations of 131,072 a cycle.
  assert cycles(aot_splash.Tile(256, 256)) == 256


@pytest.mark.slow
def test_splash_attention_compiles_for_a_chip():
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip('libtpu is not installed: pip install "jax[tpu]"')
  module = "kernels.block_sparse_attention.bench.aot_splash"
  flags = ["--chips", "v5e", "--frames", "8", "--heads", "1", "--no-ours"]
  result = subprocess.run(
    [sys.executable, "-m", module, *flags, "--tiles", "512x512"],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert result.returncode == 0, result.stderr[-2000:]
  lines = [x.split() for x in result.stdout.splitlines() if x[:3] == "jax"]
  assert [(x[1], x[4]) for x in lines] == [
    ("paper", "forward"),
    ("dense", "forward"),
    ("paper", "backward"),
    ("dense", "backward"),
  ]
  # Its share of the peak for the exact mask is highest without a mask.
  shares = [float(x[6].rstrip("%")) for x in lines]
  assert all(0 < share <= 100 for share in shares)
  assert shares[0] < shares[1] and shares[2] < shares[3]
