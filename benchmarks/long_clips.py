r"""Tests long clips in windows: memory, drift, seams and resumption.

  python -m benchmarks.long_clips --num_frames=256

Procedural clips are made with the small model in sequential windows, each run in
a separate process:

  one window     only the first window of the first clip, as often as "whole" has
                 windows, as freed memory is kept in pieces: its peak memory
  whole          all windows: peak memory, IoU of the first and last quarter,
                 jitter at seams and elsewhere
  no overlap     windows that share no frames, and so cannot drift
  killed         the first clip as in "whole", killed (SIGKILL) after a third of
                 the windows and started again: the bytes are compared

Accepted are, as means over the clips, a peak memory within 5 % of one window's,
an IoU of the last quarter within 5 % of the first one's, jitter at seams within
10 % of elsewhere and of blended frames within 10 % of that of the same frames
inside of one window, of those without overlap; and equal bytes. The exit code is
0 if all hold, else 1. A seam is where a window's last frame meets the next
window's first new one; most other frames are blended. As IoU also varies with the
phase of a motion, that without overlap is printed. Scores are those of the
decoder's field on a grid.

The slower the motion, the less jitter there is that could hide a seam:
--frames_a_second=256 shows 256 frames of what otherwise takes one window.
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
  "config", "configs/small.py", "Preset; see configs/base.py."
)
_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Folder of weights.")
_NUM_FRAMES = flags.DEFINE_integer("num_frames", 256, "Frames.", lower_bound=16)
_SEEDS = flags.DEFINE_list(
  "seeds", ["3", "4", "5", "6"], "Seeds of the clips; held out."
)
_SETTING = flags.DEFINE_string("setting", "draft", "Preset or fields.")
_OVERLAP = flags.DEFINE_integer("overlap", None, "As in launch.sample.")
_BLEND = flags.DEFINE_integer("blend", None, "As in launch.sample.")
_FRAMES_A_SECOND = flags.DEFINE_float(
  "frames_a_second",
  None,
  "Frame rate of the clips, whose motion takes most of a second; by default"
  " that of the training.",
  lower_bound=1e-3,
)
_VARIETY = flags.DEFINE_float(
  "variety", 0.0, "Share of clips of other families, as config.data.variety."
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Kept results, if wanted.")
_PART = flags.DEFINE_string("part", None, "Used by the program itself.")

_BLENDED = "jitter of blended frames over the same ones in one window"
_LIMITS = {
  "peak over one window's": (None, 1.05),
  "IoU of the last quarter over the first's": (0.95, None),
  "jitter at seams over elsewhere": (None, 1.10),
  _BLENDED: (None, 1.10),
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
  first, *others = (workdir / seed for seed in _SEEDS.value)
  for folder in (first, *others):
    folder.mkdir(exist_ok=True)
    _make_clip(folder)
  # Twice: the first run fills the cache of compiled programs, so that memory that
  # compiling leaves behind is in none of the figures.
  for part in ("one_window", "one_window", "whole"):
    _finish(_start(part, first))
  killed = _start("killed", first)
  third = len(_windows().starts(_NUM_FRAMES.value)) // 3
  while not (first / "killed" / f"window_{third:06d}.npz").exists():
    if killed.poll() is not None:
      raise UserError("The run to be killed ended before it was.")
    time.sleep(0.2)
  killed.send_signal(signal.SIGKILL)
  killed.wait()
  _finish(_start("killed", first))
  _finish(_start("no_overlap", first))
  for folder in others:
    _finish(_start("whole", folder))
    _finish(_start("no_overlap", folder))
  report = _report(workdir)
  for name, value in report.items():
    print(f"{name}: {value}")
  return 0 if report["accepted"] else 1


def _report(workdir: pathlib.Path) -> dict[str, Any]:
  model, windows = _model(), _windows()
  report: dict[str, Any] = {
    "clips": f"{_NUM_FRAMES.value} frames in windows of {windows.size}, overlap"
    f" {windows.overlap}, blend {windows.blend}, setting {_SETTING.value!r},"
    f" {_rate():g} frames a second",
    "windows over a frame": round(
      windows.size * len(windows.starts(_NUM_FRAMES.value)) / _NUM_FRAMES.value,
      2,
    ),
  }
  scores = []
  for seed in _SEEDS.value:
    name, values = _score(model, workdir / seed)
    ratio = values["jitter of blended frames"] / values["in one window"]
    report[name] = {k: round(float(v), 4) for k, v in values.items()}
    report[name]["blended over in one window"] = round(float(ratio), 3)
    scores.append(values)
  mean = {k: np.mean([values[k] for values in scores]) for k in scores[0]}
  report["mean"] = {k: round(float(v), 4) for k, v in mean.items()}
  first = workdir / _SEEDS.value[0]
  one, whole = (
    json.loads((first / f"{part}.json").read_text())["peak_mb"]
    for part in ("one_window", "whole")
  )
  report["peak of one window and of all, MB"] = (one, whole)
  ratios = {
    "peak over one window's": whole / one,
    "IoU of the last quarter over the first's": (
      mean["IoU, last quarter"] / mean["IoU, first quarter"]
    ),
    "jitter at seams over elsewhere": (
      mean["jitter at seams"] / mean["jitter elsewhere"]
    ),
    _BLENDED: mean["jitter of blended frames"] / mean["in one window"],
  }
  same = (first / "whole.npy").read_bytes() == (
    first / "killed.npy"
  ).read_bytes()
  report |= {name: round(float(ratio), 3) for name, ratio in ratios.items()}
  report["killed and resumed to the same bytes"] = same
  report["accepted"] = same and all(
    (low is None or ratios[name] >= low)
    and (high is None or ratios[name] <= high)
    for name, (low, high) in _LIMITS.items()
  )
  return report


def _score(
  model: model_lib.Sculpt4D, folder: pathlib.Path
) -> tuple[str, dict[str, float]]:
  """Name and scores of a clip."""
  clip = _clip(folder)
  truth = field_scores.true_fields(clip)
  band = _preset().vae_training.task.field_band
  (iou, jitter), (cut_iou, cut_jitter) = (
    field_scores.by_frame(
      field_scores.fields(model, np.load(folder / f"{part}.npy"), band), truth
    )
    for part in ("whole", "no_overlap")
  )
  windows, separate = _windows(), _separate_windows()
  seams = _joints(windows, 0)
  blended = _joints(windows, windows.blend) & ~_joints(separate, 0)
  quarter = _NUM_FRAMES.value // 4
  return f"{clip.family}-{clip.seed}", {
    "IoU": iou.mean(),
    "without overlap": cut_iou.mean(),
    "IoU, first quarter": iou[:quarter].mean(),
    "IoU, last quarter": iou[-quarter:].mean(),
    "without overlap, first quarter": cut_iou[:quarter].mean(),
    "without overlap, last quarter": cut_iou[-quarter:].mean(),
    "jitter at seams": jitter[seams].mean(),
    "jitter elsewhere": jitter[~seams].mean(),
    "jitter of blended frames": jitter[blended].mean(),
    "in one window": cut_jitter[blended].mean(),
  }


def _joints(windows: windows_lib.Windows, blend: int) -> np.ndarray:
  """Marks three consecutive frames that are not all of one window.

  Args:
    windows: The windows.
    blend: Number of frames before a window's end that are not of it alone.

  Returns:
    Marks by the first of the three frames, bool [F - 2].
  """
  marks, end = np.zeros(_NUM_FRAMES.value - 2, bool), 0
  for start in windows.starts(_NUM_FRAMES.value):
    if start:
      marks[max(end - blend - 2, 0) : end] = True
    end = start + windows.size
  return marks


@functools.cache
def _preset() -> preset_lib.Preset:
  return preset_lib.from_config(_CONFIG.value)


def _windows() -> windows_lib.Windows:
  size = _preset().data.num_frames
  return windows_lib.make(size, _OVERLAP.value, _BLEND.value)


def _separate_windows() -> windows_lib.Windows:
  return windows_lib.Windows(_preset().data.num_frames, 0)


def _clip(folder: pathlib.Path) -> solids.SyntheticClip:
  """The clip of a folder, which is named by its seed."""
  return solids.make_clip(
    int(folder.name),
    _NUM_FRAMES.value,
    variety=_VARIETY.value,
    seconds=_NUM_FRAMES.value / _rate(),
  )


def _rate() -> float:
  """Frames a second; clips of the training take one."""
  return _FRAMES_A_SECOND.value or _preset().data.num_frames


def _make_clip(folder: pathlib.Path) -> None:
  record = clip_records.make_record(_clip(folder), _preset().data.sizes)
  np.save(folder / "images.npy", record.images)


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
  windows = _separate_windows() if part == "no_overlap" else _windows()
  num_runs = 1
  if part == "one_window":
    num_runs = len(windows.starts(len(images)))
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
    for _ in range(num_runs):
      latents = long_clips.sample(
        model, images, setting, windows, folder=folder
      )
  np.save(workdir / f"{part}.npy", latents)
  figures = {"peak_mb": log.stages[0].peak_memory_mb}
  (workdir / f"{part}.json").write_text(json.dumps(figures))
  return 0


if __name__ == "__main__":
  program.run(main)
