r"""Measures the speed of reading records: batches against raw bytes.

  python -m benchmarks.loader --data=data/mine --num_parts=0
  python -m benchmarks.loader --data=gs://my-bucket/mine --cache=/tmp/records

Prints records and megabytes a second of the loader (read, checked, decoded,
augmented, batched), its processor seconds, and the same for only reading the
bytes of the same entries.
"""

import time

from absl import flags
import numpy as np

from launch import program
from sculpt4d_jax.data.loading import examples as record_examples
from sculpt4d_jax.data.loading import loader as record_loader
from sculpt4d_jax.data.records import index as dataset_index
from sculpt4d_jax.data.records import shards

_DATA = flags.DEFINE_string(
  "data", None, "Folder of the data set.", required=True
)
_PARTS = flags.DEFINE_integer(
  "num_parts", 0, "Parts of the surface read; 0 reads all.", lower_bound=0
)
_STEPS = flags.DEFINE_integer("num_steps", 10, "Records.", lower_bound=2)
_THREADS = flags.DEFINE_integer("num_threads", 2, "That read.", lower_bound=1)
_WORKERS = flags.DEFINE_integer("num_workers", 0, "Processes.", lower_bound=0)
_CACHE = flags.DEFINE_string(
  "cache", "", "Folder that shards of a bucket are copied to; as records.cache."
)
_CONTENTS = flags.DEFINE_list("contents", ["geometry", "images"], "Read.")


def main(argv: list[str]) -> None:
  """Runs the program."""
  del argv
  index = dataset_index.read_index(_DATA.value)
  settings = index.settings
  config = record_loader.LoaderConfig(
    batch_size=1,
    num_threads=_THREADS.value,
    num_workers=_WORKERS.value,
    prefetch=2,
    example=record_examples.ExampleConfig(
      contents=tuple(_CONTENTS.value),
      num_frames=settings["num_frames"],
      num_parts=_PARTS.value,
      image_size=settings["image_size"],
      cache=_CACHE.value,
    ),
  )
  size, raw = _read_raw(index, _STEPS.value)
  print(f"{size / 1e6:.1f} MB a record")
  _report("raw", size, *raw)
  iterator = record_loader.make_iterator(_DATA.value, "train", config)
  next(iterator)
  start = _times()
  for _ in range(_STEPS.value):
    next(iterator)
  _report("loader", size, *(_times() - start) / _STEPS.value)


def _times() -> np.ndarray:
  """Elapsed seconds, and processor seconds of this process."""
  return np.array([time.perf_counter(), time.process_time()])


def _report(
  name: str, size: float, seconds: float, processor_seconds: float
) -> None:
  line = (
    f"{name:8s} {1 / seconds:8.2f} records/s {size / seconds / 1e6:8.1f} MB/s"
  )
  if not _WORKERS.value or name == "raw":
    line += f" {processor_seconds:8.3f} processor seconds a record"
  print(line)


def _read_raw(
  index: dataset_index.DatasetIndex, steps: int
) -> tuple[float, np.ndarray]:
  """Bytes and times per record of reading an example's entries."""
  clips = index.splits["train"]
  reader = shards.ShardReader(index.folder / "shards", _CACHE.value)
  size, start = 0, _times()
  for step in range(steps):
    clip = clips[step % len(clips)]
    positions = []
    if "geometry" in _CONTENTS.value:
      positions += clip.entries["geometry"][: _PARTS.value or None]
    if "images" in _CONTENTS.value:
      positions.append(clip.entries["view"][step % len(clip.entries["view"])])
    size += sum(len(reader.read(clip.shard, place)) for place in positions)
  return size / steps, (_times() - start) / steps


if __name__ == "__main__":
  program.run(main)
