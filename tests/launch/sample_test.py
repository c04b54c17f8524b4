"""Bad input to the sampler: one clear message, exit code 2, nothing left."""

import os
import pathlib
import shutil
import subprocess
import sys

from absl import flags
from absl.testing import flagsaver
import numpy as np
from PIL import Image
import pytest

from launch import program
from launch import sample
from sculpt4d_jax.io.video import writer

ROOT = pathlib.Path(__file__).resolve().parents[2]
WEIGHTS = ROOT / "weights" / "small"
CLIP = ROOT / "demo" / "clip.mp4"

if not flags.FLAGS.is_parsed():
  flags.FLAGS(["sample_test", "--input=", "--output="])


def refuse(tmp_path, **settings):
  """The message that the sampler refuses with; checks that it left nothing."""
  output = settings.pop("output", tmp_path / "out")
  settings = {"input": str(CLIP), "output": str(output)} | settings
  with flagsaver.flagsaver(**settings):
    with pytest.raises(Exception) as caught:
      sample.main([])
  message = program.user_message(caught.value)
  assert message, f"a traceback instead of a message: {caught.value!r}"
  assert not output.is_dir() or not any(output.iterdir())
  return message


def write_clip(path, frames):
  writer.write_video(path, frames, fps=8)
  return str(path)


def test_missing_file(tmp_path):
  assert "nothing.mp4" in refuse(tmp_path, input=str(tmp_path / "nothing.mp4"))


def test_an_unknown_format_is_found_before_the_work(tmp_path):
  assert "expected some of ply" in refuse(tmp_path, formats="stl")


def test_not_a_video(tmp_path):
  path = tmp_path / "notes.mp4"
  path.write_text("not a video, but it says so\n" * 50)
  assert "notes" in refuse(tmp_path, input=str(path))


def test_zero_frames(tmp_path):
  (tmp_path / "empty").mkdir()
  assert "empty" in refuse(tmp_path, input=str(tmp_path / "empty"))


def test_one_pixel(tmp_path):
  Image.new("RGB", (1, 1)).save(tmp_path / "dot.png")
  assert "1" in refuse(tmp_path, input=str(tmp_path / "dot.png"))


def test_empty_foreground(tmp_path):
  white = np.full((3, 48, 48, 3), 255, np.uint8)
  message = refuse(tmp_path, input=write_clip(tmp_path / "w.mp4", white))
  assert "object" in message or "foreground" in message


def test_unknown_matte(tmp_path):
  assert "magic" in refuse(tmp_path, matte="magic")


def test_checkpoint_is_missing(tmp_path):
  message = refuse(tmp_path, checkpoint=str(tmp_path / "none"))
  assert "no folder of weights" in message


def test_corrupt_checkpoint(tmp_path):
  shutil.copytree(WEIGHTS, tmp_path / "weights")
  path = tmp_path / "weights" / "dit.safetensors"
  path.write_bytes(path.read_bytes()[:1000])
  message = refuse(tmp_path, checkpoint=str(tmp_path / "weights"))
  assert "dit.safetensors is no whole safetensors file" in message


def test_foreign_checkpoint(tmp_path):
  import safetensors.numpy

  shutil.copytree(WEIGHTS, tmp_path / "weights")
  safetensors.numpy.save_file(
    {"x": np.zeros(3)}, tmp_path / "weights" / "vae.safetensors"
  )
  message = refuse(tmp_path, checkpoint=str(tmp_path / "weights"))
  assert "not weights that a training wrote" in message


def test_output_is_a_file(tmp_path):
  (tmp_path / "taken").write_text("here first")
  assert "is a file" in refuse(tmp_path, output=tmp_path / "taken")
  assert (tmp_path / "taken").read_text() == "here first"


@pytest.mark.parametrize(
  "arguments, reason",
  [
    (["--input=nothing.mp4", "--output=out"], "nothing.mp4"),
    (["--input=demo/clip.mp4"], "output"),
    (
      [
        "--config=configs/sculpt4d.py",
        "--input=demo/clip.mp4",
        "--checkpoint=weights/tiny",
        "--output=out/refused",
      ],
      "does not fit the preset",
    ),
  ],
)
def test_exit_code_is_two_and_no_traceback(arguments, reason):
  result = subprocess.run(
    [sys.executable, "-m", "launch.sample", *arguments],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 2, result.stderr
  assert reason in result.stderr
  assert "Traceback" not in result.stderr
  assert not (ROOT / "out" / "refused").exists()


def test_plan_needs_no_input_and_no_memory():
  result = subprocess.run(
    [
      sys.executable,
      "-c",
      "import pathlib, runpy, sys\n"
      "sys.argv = ['sample', '--plan', '--config=configs/sculpt4d.py']\n"
      "try: runpy.run_module('launch.sample', run_name='__main__')\n"
      "except SystemExit as e: assert not e.code, e.code\n"
      # Not getrusage: that counts what the process was forked from, too.
      "status = pathlib.Path('/proc/self/status').read_text()\n"
      "print('PEAK', status.partition('VmHWM:')[2].split()[0])",
    ],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert result.returncode == 0, result.stderr
  for device in ("8 GB GPU", "80 GB GPU", "TPU v5e", "TPU v5p", "TPU v6e"):
    assert f"| {device} |" in result.stdout
  assert "| DiT weights | 6.34 |" in result.stdout
  peak = int(result.stdout.rpartition("PEAK ")[2])
  assert peak < 1.5 * 2**20  # KiB; the DiT alone would be four times that.


def test_help_teaches():
  result = subprocess.run(
    [sys.executable, "-m", "launch.sample", "--help"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )
  assert result.returncode == 0
  assert result.stdout.startswith("Makes an animated mesh from a clip")
  for flag in ("--input", "--output", "--matte", "--checkpoint"):
    assert flag in result.stdout
