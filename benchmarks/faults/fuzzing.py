"""Damaged files, and processes with limits that read them one by one."""

import collections
from collections.abc import Callable, Sequence
import json
import logging
import multiprocessing
import os
import pathlib
import random
import resource
import struct
import tempfile
import time
from typing import Any

from absl import logging as absl_logging

# What a reader answers of a file: "read" or "message". Anything else is a
# fault.
Read = Callable[[str], str]

_REPORTED = 100  # Files between two lines of counts.
_ODD = (None, True, -1, 0, 1, 2**31, 1e308, "", "x" * 300, [], {}, [0], "NaN")


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


def damage_json(tree: Any, rng: random.Random) -> Any:
  """A JSON tree of which one to five values are lost or exchanged; changed."""
  for _ in range(rng.choice([1, 1, 2, 5])):
    node = tree
    while True:
      keys = list(node) if isinstance(node, dict) else list(range(len(node)))
      if not keys:
        break
      key = rng.choice(keys)
      child = node[key]
      if isinstance(child, dict | list) and child and rng.random() < 0.85:
        node = child
        continue
      if rng.random() < 0.2:
        del node[key]
      elif isinstance(child, int | float) and rng.random() < 0.6:
        node[key] = rng.choice([child + 1, child - 1, -child, child * 1000])
      else:
        node[key] = rng.choice(_ODD)
      break
  return tree


def damage_glb(content: bytes, rng: random.Random) -> bytes:
  """A GLB whose JSON is damaged and whose chunks are whole."""
  length = struct.unpack_from("<I", content, 12)[0]
  tree = damage_json(json.loads(content[20 : 20 + length]), rng)
  text = json.dumps(tree).encode()
  text += b" " * (-len(text) % 4)
  rest = content[20 + length :]
  head = struct.pack("<4sII", b"glTF", 2, 20 + len(text) + len(rest))
  return head + struct.pack("<I4s", len(text), b"JSON") + text + rest


def run(
  read: Read,
  files: Sequence[pathlib.Path],
  *,
  first: int,
  count: int,
  seconds: float,
  gigabytes: float,
  keep: str | None,
) -> tuple[dict[str, int], float]:
  """Reads damaged copies of files.

  Args:
    read: Reads a file and answers; a function of a module.
    files: Whole files.
    first: First seed.
    count: Number of cases.
    seconds: Limit of a case.
    gigabytes: Address space of the process that reads.
    keep: Folder for files that show faults.

  Returns:
    Number of cases by answer, and the longest time of one (s).
  """
  counts: collections.Counter[str] = collections.Counter()
  slowest, worker = 0.0, _Worker(read, gigabytes)
  with tempfile.TemporaryDirectory() as name:
    worker.read(files[0], seconds)
    for seed in range(first, first + count):
      rng = random.Random(seed)
      whole = rng.choice(files)
      content = whole.read_bytes()
      is_glb = whole.suffix == ".glb" and rng.random() < 0.6
      content = (damage_glb if is_glb else damage)(content, rng)
      # A new name each: USD keeps layers by their names.
      path = pathlib.Path(name) / f"{seed}{whole.suffix}"
      path.write_bytes(content)
      start = time.monotonic()
      answer = worker.read(path, seconds)
      slowest = max(slowest, time.monotonic() - start)
      counts[answer] += 1
      if answer not in ("read", "message"):
        print(f"seed {seed}, {whole.name}: {answer}", flush=True)
        if keep:
          kept = pathlib.Path(keep) / f"{seed}{whole.suffix}"
          kept.parent.mkdir(parents=True, exist_ok=True)
          kept.write_bytes(content)
      path.unlink()
      if (seed + 1 - first) % _REPORTED == 0:
        print(f"{seed + 1 - first} files: {dict(counts)}", flush=True)
  return dict(counts), slowest


def _work(pipe: Any, read: Read, gigabytes: float) -> None:
  """Reads the files that are named to it, and answers what happened."""
  limit = int(gigabytes * 2**30)
  resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
  absl_logging.set_verbosity(absl_logging.FATAL)
  logging.disable(logging.CRITICAL)
  os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
  while True:
    path = pipe.recv()
    try:
      answer = read(path)
    except Exception as error:
      answer = f"{type(error).__name__}: {str(error)[:80]}"
    pipe.send(answer)


class _Worker:
  """A process that reads files; a new one after a crash or a hang."""

  def __init__(self, read: Read, gigabytes: float):
    self._read = read
    self._gigabytes = gigabytes
    self._process = None

  def read(self, path: pathlib.Path, seconds: float) -> str:
    if self._process is None or not self._process.is_alive():
      context = multiprocessing.get_context("spawn")
      self._pipe, other = context.Pipe()
      self._process = context.Process(
        target=_work, args=(other, self._read, self._gigabytes), daemon=True
      )
      self._process.start()
      other.close()
      seconds += 300  # Imports, on a busy machine.
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
