"""The program that counts operations."""

import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]


def flops(*arguments, timeout=120):
  return subprocess.run(
    [sys.executable, "-m", "launch.flops", *arguments],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )


def test_prints_parts_and_tables_and_draws_the_figure(tmp_path):
  figure = tmp_path / "figure.svg"
  result = flops(
    "--config=configs/sculpt4d.py", "--num_frames=8,16", f"--figure={figure}"
  )
  assert result.returncode == 0, result.stderr
  for expected in (
    "8 frames",
    "49 calls of the velocity, 98 of the network",
    "MoE: routed experts",
    "21.50%",
    "1584.9",
    "does not break its part down",
  ):
    assert expected in result.stdout
  assert figure.read_text().startswith("<svg")


def test_bad_frames_are_one_message():
  result = flops("--num_frames=8,many")
  assert result.returncode == 2
  assert "must be whole numbers" in result.stderr
  assert "Traceback" not in result.stderr
