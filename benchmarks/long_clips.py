r"""Tests long clips in windows: memory, drift, seams and resumption.

  python -m benchmarks.long_clips --num_frames=256

One procedural clip at the training clips' frame rate is made with the small
model in sequential windows, each run in a separate process:

  one window     only the first window: its peak memory
  whole          all windows: peak memory, IoU of the first and last quarter,
                 jitter at seams and elsewhere
  killed         the same command, killed (SIGKILL) after a third of the
                 windows and started again: the bytes are compared

Accepted are a peak memory within 5 % of one window's, an IoU of the last
quarter within 5 % of the first one's, jitter at seams within 10 % of elsewhere,
and equal bytes; the exit code is 0 if all four hold, else 1. Because IoU varies
with the phase of a motion, the IoU of windows without overlap, which cannot
drift, is printed too. Scores are those of the decoder's field on a grid.
"""

from collections.abc import Sequence
import dataclasses
import functools
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

from absl import flags
from ml_collections import config_flags
import numpy as np

from benchmarks.sampling import field_scores
from benchmarks.sampling import settings as settings_lib
from launch import program
from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.diffusion import windows as windows_lib
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import long_clips
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.training import preset as preset_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/tiny.py", "Preset; see configs/base.py."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of weights.")
_NUM_FRAMES = flags.DEFINE_integer("num_frames", 256, "Frames.", lower_bound=16)
_SEED = flags.DEFINE_integer("seed", 3, "Seed of the clip; held out.")
_SETTING = flags.DEFINE_string("setting", "draft", "Preset or fields.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Kept results, if wanted.")
_PART = flags.DEFINE_string("part", None, "Used by the program itself.")

_FRAMES_A_SECOND = 8
_LIMITS = {
  "peak over one window's": (None, 1.05),
  "IoU of the last quarter over the first's": (0.95, None),
  "jitter at seams over elsewhere": (None, 1.10),
}


def main(unused_argv: Sequence[str]) -> int:
  """Runs the program."""
  if _PART.value:
    return _run_part(_PART.value, pathlib.Path(_WORKDIR.value))
  with tempfile.TemporaryDirectory() as scratch:
    workdir = pathlib.Path(_WORKDIR.value or scratch)
    workdir.mkdir(parents=True, exist_ok=True)
    return _check(workdir)


def _check(workdir: pathlib.Path) -> int:
  size, num_frames = _preset().data.num_frames, _NUM_FRAMES.value
  _make_clip(workdir)
  for part in ("one_window", "whole"):
    _finish(_start(part, workdir))
  killed = _start("killed", workdir)
  third = len(_windows().starts(num_frames)) // 3
  while not (workdir / "killed" / f"window_{third:06d}.npz").exists():
    if killed.poll() is not None:
      raise UserError("The run to be killed ended before it was.")
    time.sleep(0.2)
  killed.send_signal(signal.SIGKILL)
  killed.wait()
  _finish(_start("killed", workdir))
  _finish(_start("no_overlap", workdir))
  report = _score(workdir, size)
  for name, value in report.items():
    print(f"{name}: {value}")
  return 0 if report["accepted"] else 1


def _score(workdir: pathlib.Path, size: int) -> dict[str, Any]:
  clip = solids.make_clip(
    _SEED.value, _NUM_FRAMES.value, _NUM_FRAMES.value / _FRAMES_A_SECOND
  )
  model = _model()
  truth = field_scores.true_fields(clip)
  band = _preset().vae_training.task.field_band
  load = lambda part: np.load(workdir / f"{part}.npy")
  peaks = {
    part: json.loads((workdir / f"{part}.json").read_text())["peak_mb"]
    for part in ("one_window", "whole")
  }
  scores = {
    part: field_scores.by_frame(
      field_scores.fields(model, load(part), band), truth
    )
    for part in ("whole", "no_overlap")
  }
  quarter = _NUM_FRAMES.value // 4
  iou, jitter = scores["whole"]
  near = np.zeros(len(jitter), bool)
  # A seam is between a window's first new frame and the previous frame.
  for start in _windows().starts(_NUM_FRAMES.value)[1:]:
    seam = start + _windows().overlap
    near[max(seam - 2, 0) : seam] = True
  ratios = {
    "peak over one window's": peaks["whole"] / peaks["one_window"],
    "IoU of the last quarter over the first's": (
      iou[-quarter:].mean() / iou[:quarter].mean()
    ),
    "jitter at seams over elsewhere": (
      jitter[near].mean() / jitter[~near].mean()
    ),
  }
  same = load("whole").tobytes() == load("killed").tobytes()
  cut = scores["no_overlap"][0]
  accepted = same and all(
    (low is None or ratios[name] >= low)
    and (high is None or ratios[name] <= high)
    for name, (low, high) in _LIMITS.items()
  )
  return {
    "clip": f"{clip.family}-{clip.seed}, {_NUM_FRAMES.value} frames in windows"
    f" of {size}, setting {_SETTING.value!r}",
    "peak of one window and of all, MB": tuple(peaks.values()),
    "IoU, first and last quarter": _pair(iou[:quarter], iou[-quarter:]),
    "without overlap": _pair(cut[:quarter], cut[-quarter:]),
    "jitter at seams and elsewhere": _pair(jitter[near], jitter[~near]),
    **{name: round(float(ratio), 3) for name, ratio in ratios.items()},
    "killed and resumed to the same bytes": same,
    "accepted": accepted,
  }


def _pair(*groups: np.ndarray) -> tuple[float, ...]:
  return tuple(round(float(x.mean()), 4) for x in groups)


@functools.cache
def _preset() -> preset_lib.Preset:
  return preset_lib.from_config(_CONFIG.value)


def _windows(overlap: int | None = None) -> windows_lib.Windows:
  size = _preset().data.num_frames
  return windows_lib.Windows(size, size // 2 if overlap is None else overlap)


def _make_clip(workdir: pathlib.Path) -> None:
  seconds = _NUM_FRAMES.value / _FRAMES_A_SECOND
  clip = solids.make_clip(_SEED.value, _NUM_FRAMES.value, seconds)
  np.save(
    workdir / "images.npy",
    clip_records.make_record(clip, _preset().data.sizes).images,
  )


def _start(part: str, workdir: pathlib.Path) -> subprocess.Popen:
  arguments = [f for f in sys.argv[1:] if not f.startswith("--workdir")]
  return subprocess.Popen(
    [sys.executable, "-m", "benchmarks.long_clips", *arguments]
    + [f"--part={part}", f"--workdir={workdir}"],
    env=os.environ,
  )


def _finish(process: subprocess.Popen) -> None:
  """Waits for a part, which has printed the reason if it failed."""
  if process.wait():
    raise UserError(f"A part failed: {' '.join(process.args)}")


def _model() -> model_lib.Sculpt4D:
  folder = model_lib.weights_folder(_preset().weights, _CHECKPOINT.value)
  return model_lib.Sculpt4D.load(_preset().model, folder)


def _run_part(part: str, workdir: pathlib.Path) -> int:
  """Samples the clip, or its first window; writes latents and peak memory."""
  images = np.load(workdir / "images.npy", mmap_mode="r")
  windows = _windows(0 if part == "no_overlap" else None)
  if part == "one_window":
    images = images[: windows.size]
  setting = settings_lib.parse(
    _SETTING.value, dataclasses.asdict(_preset().sampling)
  )
  model = _model()
  folder = None
  if part == "killed":
    identity = long_clips.identity(setting, windows, images)
    folder = long_clips.WindowFolder(workdir / part, identity)
  # Compiles, which takes more memory than sampling.
  long_clips.sample(model, images[: windows.size], setting, windows)
  log = run_log.RunLog(False)
  with log.stage("denoise"):
    latents = long_clips.sample(model, images, setting, windows, folder=folder)
  np.save(workdir / f"{part}.npy", latents)
  figures = {"peak_mb": log.stages[0].peak_memory_mb}
  (workdir / f"{part}.json").write_text(json.dumps(figures))
  return 0


if __name__ == "__main__":
  program.run(main)
