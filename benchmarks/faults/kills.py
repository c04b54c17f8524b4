r"""Kills the sampler at random times and checks the remaining files.

  python -m benchmarks.faults.kills --signal=SIGKILL --count=200
  python -m benchmarks.faults.kills --signal=SIGINT --count=200
  python -m benchmarks.faults.kills --what=writer --count=200

`--what=writer` repeatedly kills a process that only writes results, because a
sampler moves files only during a thousandth of its run. All runs write to one
folder, so that each run also handles the remains of the previous one. After
every run the results must be those of a single run: run.json has the number of
frames, and the other files are compared with those of a complete run. A folder
without run.json was killed while files moved; the next run completes it; these
cases are counted. After a SIGINT the exit code must be 130 (0 if the run had
ended), with one line and no traceback. A final complete run must leave nothing
except its results.
"""

import hashlib
import json
import pathlib
import random
import re
import signal
import subprocess
import sys
import tempfile
import time

from absl import app
from absl import flags

_SIGNAL = flags.DEFINE_enum(
  "signal", "SIGKILL", ["SIGKILL", "SIGINT"], "Which."
)
_COUNT = flags.DEFINE_integer("count", 200, "Runs that are killed.")
_WHAT = flags.DEFINE_enum(
  "what", "sampler", ["sampler", "writer"], "Which program is killed."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the times.")

_ROOT = pathlib.Path(__file__).resolve().parents[2]
_LIMIT = 20.0  # Seconds from SIGINT to the end.
_FRAMES = (2, 3)  # Alternating, so that mixed results would be noticed.

_WRITER = """
import json, sys
from sculpt4d_jax.io import staged
folder, frames = sys.argv[1], int(sys.argv[2])
for _ in range(1 if "whole" in folder else 30):
  with staged.staged_folder(folder, replaces=["frame_*.ply"]) as staging:
    for index in range(frames):
      (staging / f"frame_{index:04d}.ply").write_text(str(frames) * 10000)
    for name in ("animation.glb", "viewer.html"):
      (staging / name).write_text(str(frames) * 10000)
    record = {"input": {"frames": frames}}
    (staging / "run.json").write_text(json.dumps(record))
"""


def _heed_interrupts() -> None:
  signal.signal(signal.SIGINT, signal.SIG_DFL)


def _start(folder: pathlib.Path, kind: int) -> subprocess.Popen:
  command = [
    sys.executable,
    "-m",
    "launch.sample",
    "--config=configs/tiny.py",
    "--input=demo/clip.mp4",
    f"--output={folder}",
    f"--config.sampling.num_frames={_FRAMES[kind]}",
    "--config.sampling.num_steps=8",
    "--config.surface.resolution=24",
  ]
  if _WHAT.value == "writer":
    command = [sys.executable, "-c", _WRITER, str(folder), str(_FRAMES[kind])]
  return subprocess.Popen(
    command,
    cwd=_ROOT,
    stdout=subprocess.DEVNULL,
    stderr=subprocess.PIPE,
    text=True,
    preexec_fn=_heed_interrupts,
  )


def _hashes(folder: pathlib.Path) -> dict[str, str]:
  """Hashes of the results that do not depend on the time of day."""
  names = [path.name for path in folder.iterdir() if path.name[0] != "."]
  return {
    name: hashlib.sha256((folder / name).read_bytes()).hexdigest()
    for name in sorted(names)
    if name != "run.json"
  }


def _state(folder: pathlib.Path, whole: list[dict[str, str]]) -> str:
  """State of a folder: "nothing", "one run", or a description of the fault."""
  shown = [p for p in folder.glob("*") if p.name[0] != "."]
  if not shown:
    return "nothing"
  try:
    record = json.loads((folder / "run.json").read_bytes())
  except FileNotFoundError:
    return "no run.json: killed while files moved"
  except (OSError, ValueError) as error:
    return f"no whole run.json ({error})"
  kind = _FRAMES.index(record["input"]["frames"])
  return "one run" if _hashes(folder) == whole[kind] else "files of two runs"


def _kill_once(
  folder: pathlib.Path, kind: int, delay: float
) -> tuple[str, float]:
  """Starts a run, sends the signal; returns a fault, and seconds to end."""
  process = _start(folder, kind)
  time.sleep(delay)
  number = getattr(signal, _SIGNAL.value)
  start = time.monotonic()
  process.send_signal(number)
  try:
    _, text = process.communicate(timeout=5 * _LIMIT)
  except subprocess.TimeoutExpired:
    process.kill()
    process.communicate()
    return "it did not end", 5 * _LIMIT
  seconds = time.monotonic() - start
  if number == signal.SIGKILL or process.returncode == 0:
    return "", seconds
  if process.returncode == -signal.SIGINT:
    return "before Python had started", seconds
  if "Traceback" in text:
    return "a traceback", seconds
  if process.returncode != 130:
    return f"exit code {process.returncode}", seconds
  lines = re.findall(r"^sample: .*$", text, re.MULTILINE)
  if lines != ["sample: Interrupted."]:
    return f"lines {lines}", seconds
  return ("", seconds) if seconds < _LIMIT else ("too slow", seconds)


def main(argv: list[str]) -> None:
  """Runs the program."""
  del argv
  rng = random.Random(_SEED.value)
  with tempfile.TemporaryDirectory() as name:
    base = pathlib.Path(name)
    whole, length = [], 0.0
    for kind in range(len(_FRAMES)):
      start = time.monotonic()
      process = _start(base / f"whole{kind}", kind)
      _, text = process.communicate()
      if process.returncode:
        raise app.UsageError(f"The sampler fails by itself: {text}")
      length = max(length, time.monotonic() - start)
      whole.append(_hashes(base / f"whole{kind}"))
    folder = base / "out"
    folder.mkdir()
    complaints: dict[str, int] = {}
    slowest = 0.0
    for index in range(_COUNT.value):
      delay = rng.uniform(0, 1.05 * length)
      said, seconds = _kill_once(folder, index % 2, delay)
      slowest = max(slowest, seconds)
      state = _state(folder, whole)
      for complaint in (said, "" if state in ("nothing", "one run") else state):
        if complaint:
          complaints[complaint] = complaints.get(complaint, 0) + 1
          print(f"run {index}, after {delay:.2f} s: {complaint}", flush=True)
    _start(folder, 0).communicate()
    left = [p.name for p in folder.glob(".*") if p.name != ".sculpt4d-files"]
    print(
      f"{_COUNT.value} times {_SIGNAL.value} within {length:.1f} s:"
      f" {complaints or 'no complaint'}; slowest end {slowest:.1f} s; left after"
      f" a whole run: {left or 'nothing'};"
      f" results of it: {_state(folder, whole)}"
    )


if __name__ == "__main__":
  app.run(main)
