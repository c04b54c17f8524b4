r"""Reads batches as a training does, and writes down what each held.

  python -m tests.data.loading.loader_process DATA LOG PROCESS PROCESSES STEPS \
    STAY_AT

Every third step the position is saved; another start resumes from there. LOG
gets a line a step: its number and a digest of the batch. After step STAY_AT it
only waits for its end, so that a kill is known to come before the next save.
"""

import hashlib
import os
import pathlib
import sys
import time

import numpy as np

from sculpt4d_jax.data.loading import batches as record_batches
from sculpt4d_jax.data.loading import examples as record_examples
from sculpt4d_jax.data.loading import loader as record_loader
from sculpt4d_jax.io import atomic

BATCH = 4


def main(data, log, process, processes, steps, stay_at):
  config = record_loader.LoaderConfig(
    batch_size=BATCH,
    seed=3,
    num_threads=2,
    example=record_examples.ExampleConfig(
      contents=("geometry", "images"), num_frames=2, image_size=16
    ),
  )
  batches = record_batches.RecordBatches(data, config, num_frames=4)
  share = BATCH // processes
  rows = np.arange(process * share, (process + 1) * share)
  log = pathlib.Path(log)
  position = log.with_suffix(".step")
  first = int(position.read_text()) if position.is_file() else 0
  for step in range(first, steps):
    batch = batches.batch(step, rows)
    digest = hashlib.sha256()
    for name in sorted(batch):
      digest.update(np.ascontiguousarray(batch[name]).tobytes())
    with log.open("a") as file:
      file.write(f"{step} {digest.hexdigest()}\n")
      file.flush()
      os.fsync(file.fileno())
    if step == stay_at:
      time.sleep(600)
    if step % 3 == 2:
      atomic.write_bytes(position, str(step + 1).encode())


if __name__ == "__main__":
  main(*sys.argv[1:3], *map(int, sys.argv[3:]))
