"""Estimates of dense kernels, by hand, and compilation if libtpu is there."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from sculpt4d_jax.kernels.block_sparse_attention.bench import aot_dense

ROOT = pathlib.Path(__file__).resolve().parents[4]

# One bundle before a loop of four; two of these use the matrix units.
LISTING = """\
   0  : { %1 = sadd.s32 1, 2 }
 0x1 LB : > { %2 = vmatmul.bf16.gmra.mxu0 %1 }
 0x2  : > { %3 = vadd.f32 %2, %2 ;; %4 = vmatmul.bf16.gmra.mxu1 %1 }
 0x3  : > { %5 = sbr.rel (%p1) target = $0x1 }
 0x4 CT : > { %6 = sadd.s32 1, 2 }
"""


def test_a_tile_takes_its_bundles_or_the_products():
  estimate = lambda tile: aot_dense.estimate_listing(
    LISTING, 2, tile, 128, "v5e"
  )
  # The fourth bundle of the loop is counted at most.
  assert estimate(aot_dense.Tile(8, 8, 8)) == (3, 4)
  # 2 * 2 * 256 * 256 * 128 operations of 131,072 a cycle.
  assert estimate(aot_dense.Tile(256, 256, 128)) == (256, 257)


def test_padding_fills_whole_tiles():
  assert aot_dense.padded(4097, 384) == aot_dense.padded(4097, 1408) == 4224
  assert aot_dense.padded(1370, 1408) == 1408
  assert aot_dense.padded(1408, 1408) == 1408


def test_the_roofline_has_no_padding():
  # 4 * 1000 * 500 * 128 operations of a row at 197e12 a second.
  expected = 1e3 * 3 * 4 * 1000 * 500 * 128 / 197e12
  found = aot_dense.roofline("v5e", "forward", (1000, 500), 3, 128)
  assert found == pytest.approx(expected)
  backward = aot_dense.roofline("v5e", "backward", (1000, 500), 3, 128)
  assert backward == pytest.approx(2.5 * expected)


@pytest.mark.slow
def test_candidates_compile_for_a_chip():
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip('libtpu is not installed: pip install "jax[tpu]"')
  module = "kernels.block_sparse_attention.bench.aot_dense"
  flags = ["--chips", "v5e", "--cases", "cross", "--packages", "jax", "flash"]
  result = subprocess.run(
    [sys.executable, "-m", module, *flags, "--tiles", "384x1408x1408"],
    cwd=ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert result.returncode == 0, result.stderr[-2000:]
  lines = [x.split() for x in result.stdout.splitlines() if x[:5] == "cross"]
  assert [(x[2], x[3]) for x in lines] == [
    ("forward", "jax"),
    ("forward", "flash"),
    ("backward", "jax"),
    ("backward", "flash"),
  ]
  for line in lines:
    least, most = (float(line[i].rstrip("%")) for i in (6, 8))
    assert 0 < most <= least <= 100
