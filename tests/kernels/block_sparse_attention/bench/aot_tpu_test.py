"""The TPU kernels compile ahead of time, if libtpu is installed."""

import importlib.util
import os
import pathlib
import subprocess
import sys

import pytest

from sculpt4d_jax.kernels.block_sparse_attention.bench import aot_tpu

ROOT = pathlib.Path(__file__).resolve().parents[4]


def test_every_call_has_its_mask_and_dtype():
  calls = {
    what: aot_tpu.make_call(what, 4, 32, heads=4, tokens_per_frame=4096)
    for what in aot_tpu.WHAT
  }
  assert calls["paper"].shape == (1, 4, 4 * 4096, 128)
  assert calls["dense"].mask.density() == 1.0
  assert not calls["lists"].mask.is_power_of_two
  assert {x for x, call in calls.items() if call.dtype == "float32"} == {
    "float32"
  }
  axes = {what: call.axis for what, call in calls.items() if call.axis}
  assert axes == {"sharded_heads": "heads", "sharded_frames": "frames"}


def test_exchanges_are_counted_once():
  text = """
      %a = bf16[2]{0} all-to-all(%x), channel_id=1
      %b = (f32[2]{0}, f32[2]{0}) all-gather-start(%y), channel_id=2
      %c = f32[2]{0} all-gather-done(%b)
      %d = f32[2]{0} add(%all-to-all.1, %c)
  """
  assert aot_tpu._count_exchanges(text) == 2


def test_the_ideal_is_one_over_the_density():
  # Of two frames of two blocks each, with no anchor and stride 2 between them:
  # a block sees the two of its own frame, and one of the other.
  call = aot_tpu.make_call("paper", 2, 2)
  mask = type(call.mask)(2, 2, (1, 2), ())
  assert mask.density() == 0.75
  gain = aot_tpu.against_dense(
    {"estimate_ms": 10.0}, {"estimate_ms": 12.0}, mask
  )
  assert gain["speed_up"] == pytest.approx(1.2)
  assert gain["of_ideal"] == pytest.approx(0.9)


@pytest.mark.slow
@pytest.mark.parametrize("chip", ["v5e", "v6e"])
@pytest.mark.parametrize("what", aot_tpu.WHAT)
def test_compiles_for(chip, what):
  # In a separate process: libtpu is set up before it is loaded.
  if importlib.util.find_spec("libtpu") is None:
    pytest.skip('libtpu is not installed: pip install "jax[tpu]"')
  command = [
    *(sys.executable, "-m", "kernels.block_sparse_attention.bench.aot_tpu"),
    *("--what", what, "--chips", chip, "--frames", "8", "--heads", "4"),
  ]
  result = subprocess.run(
    command,
    cwd=ROOT,
    env=dict(os.environ),
    capture_output=True,
    text=True,
    timeout=900,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  lines = [line.split() for line in result.stdout.splitlines()]
  rows = {line[3]: line for line in lines if line[:2] == [what, chip]}
  assert set(rows) == {"forward", "backward"}
  for direction, row in rows.items():
    work, share, exchanges = row[8], row[11], int(row[12])
    assert float(work) == 1.0, row
    assert 0.2 < float(share.rstrip("%")) / 100 <= 1.0, row
    if what == "sharded_frames":
      # Three arrays there and one back; backward another there and three back,
      # without the output. The compiler may join some of them.
      assert 0 < exchanges <= {"forward": 4, "backward": 7}[direction], row
    else:
      assert exchanges == 0, row
