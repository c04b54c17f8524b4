r"""Reads damaged clips and pictures, and counts the outcomes.

  python -m benchmarks.faults.fuzz_clips --count=3000

Each case is a small valid file (from tests/data/clips, or written here) of
which bytes are changed, cut off, repeated or zeroed, depending on its seed. A
process with limits on memory and time reads it and cuts out its object, as the
programs do. Allowed results are frames or an InputError. A traceback, a crash,
more than `--seconds` or more memory than `--gigabytes` is a fault; the file is
kept in `--keep`.
"""

import collections
import logging
import multiprocessing
import os
import pathlib
import random
import resource
import tempfile
import time
from typing import Any

from absl import app
from absl import flags
from absl import logging as absl_logging
import numpy as np
from PIL import Image

from sculpt4d_jax.io.matting import foreground
from sculpt4d_jax.io.video import reader
from sculpt4d_jax.io.video import writer

_COUNT = flags.DEFINE_integer("count", 3000, "Cases.")
_FIRST = flags.DEFINE_integer("first", 0, "First seed.")
_SECONDS = flags.DEFINE_float("seconds", 20.0, "Limit of a case.")
_GIGABYTES = flags.DEFINE_float("gigabytes", 4.0, "Address space of a process.")
_KEEP = flags.DEFINE_string("keep", None, "Folder for files that show faults.")

_CLIPS = pathlib.Path(__file__).resolve().parents[2] / "tests/data/clips"
_LARGEST = 60_000  # Bytes; larger files take too long.


def _whole_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """Small valid files of every supported format."""
  rows, columns = np.mgrid[:48, :64]
  frames = np.zeros((6, 48, 64, 4), np.uint8)
  for index in range(6):
    inside = np.hypot(rows - 24, columns - 22 - 4 * index) < 14
    frames[index] = np.where(inside[..., None], (200, 60, 40, 255), 0)
  for name in ("a.mp4", "a.webm", "a.mov", "a.gif"):
    writer.write_video(folder / name, frames, fps=8)
  pictures = [Image.fromarray(frame) for frame in frames]
  for name in ("a.png", "a.webp", "a.avif", "a.tif"):
    pictures[0].save(folder / name, save_all=True, append_images=pictures[1:])
  for name in ("b.jpg", "b.bmp", "b.ppm"):
    pictures[0].convert("RGB").save(folder / name)
  made = [path for path in folder.iterdir() if path.is_file()]
  shipped = [
    path
    for path in _CLIPS.iterdir()
    if path.suffix != ".md" and path.stat().st_size < _LARGEST
  ]
  return sorted(made) + sorted(shipped)


def damage(content: bytes, rng: random.Random) -> bytes:
  """A damaged copy of a file."""
  data = bytearray(content)
  kind = rng.choice(
    ["bytes", "header", "bits", "cut", "zero", "repeat", "swap"]
  )
  place = rng.randrange(len(data))
  length = min(len(data) - place, int(2 ** rng.uniform(0, 12)))
  if kind == "cut":
    return bytes(data[:place])
  if kind == "zero":
    data[place : place + length] = bytes(length)
  elif kind == "repeat":
    data[place:place] = data[place : place + length]
  elif kind == "swap":
    other = rng.randrange(len(data))
    part = data[other : other + length]
    data[place : place + len(part)] = part
  elif kind == "bits":
    for _ in range(rng.choice([1, 4, 16])):
      data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
  else:
    end = len(data) if kind == "bytes" else min(len(data), 300)
    for _ in range(rng.choice([1, 3, 20])):
      data[rng.randrange(end)] = rng.choice([0, 1, 127, 128, 255])
  return bytes(data)


def _work(pipe: Any, gigabytes: float) -> None:
  """Reads files by request and reports the outcomes."""
  limit = int(gigabytes * 2**30)
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  absl_logging.set_verbosity(absl_logging.FATAL)
  logging.disable(logging.CRITICAL)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  while True:
    path = pipe.recv()
    try:
      clip = reader.read_frames(path, num_frames=4, max_side=96)
      foreground.extract(clip)
      answer = "frames"
    except reader.InputError:
      answer = "message"
    except Exception as error:
      answer = f"{type(error).__name__}: {str(error)[:80]}"
    pipe.send(answer)


class _Worker:
  """A process that reads files, restarted after a crash or a hang."""

  def __init__(self, gigabytes: float):
    self._gigabytes = gigabytes
    self._process = None

  def read(self, path: pathlib.Path, seconds: float) -> str:
    if self._process is None or not self._process.is_alive():
      context = multiprocessing.get_context("spawn")
      self._pipe, other = context.Pipe()
      self._process = context.Process(
        target=_work, args=(other, self._gigabytes), daemon=True
      )
      self._process.start()
      other.close()
      seconds += 60  # Imports.
    self._pipe.send(str(path))
    try:
      if self._pipe.poll(seconds):
        return self._pipe.recv()
      self._process.kill()
      self._process.join()
      return f"hang: more than {seconds:g} s"
    except (EOFError, OSError):
      self._process.join()
      return f"crash: exit code {self._process.exitcode}"


def main(argv):
  """Runs the program."""
  del argv
  counts: collections.Counter[str] = collections.Counter()
  slowest = 0.0
  worker = _Worker(_GIGABYTES.value)
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    files = _whole_files(folder)
    worker.read(files[0], _SECONDS.value)
    for seed in range(_FIRST.value, _FIRST.value + _COUNT.value):
      rng = random.Random(seed)
      whole = rng.choice(files)
      path = folder / f"case{whole.suffix}"
      path.write_bytes(damage(whole.read_bytes(), rng))
      start = time.monotonic()
      answer = worker.read(path, _SECONDS.value)
      slowest = max(slowest, time.monotonic() - start)
      counts[answer] += 1
      if answer not in ("frames", "message"):
        print(f"seed {seed}, {whole.name}: {answer}", flush=True)
        if _KEEP.value:
          kept = pathlib.Path(_KEEP.value) / f"{seed}{whole.suffix}"
          kept.parent.mkdir(parents=True, exist_ok=True)
          kept.write_bytes(path.read_bytes())
  print(f"{_COUNT.value} files: {dict(counts)}; slowest {slowest:.1f} s")


if __name__ == "__main__":
  app.run(main)
