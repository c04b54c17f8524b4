"""The loader: same batches after a kill, on any number of processes."""

import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from sculpt4d_jax.data.loading import batches as record_batches
from sculpt4d_jax.data.loading import examples as record_examples
from sculpt4d_jax.data.loading import loader as record_loader
from tests import conftest
from tests.data import small_records

pytest.importorskip("array_record", reason="needs the extra `data`")
pytest.importorskip("grain", reason="needs the extra `data`")


@pytest.fixture(scope="module", name="folder")
def _folder(tmp_path_factory):
  return small_records.make(
    tmp_path_factory.mktemp("data") / "spheres", num_clips=5
  )


def _config(**changes):
  example = record_examples.ExampleConfig(
    contents=("geometry", "images"), num_frames=2, image_size=16
  )
  fields = dict(batch_size=4, seed=5, num_threads=1, example=example)
  return record_loader.LoaderConfig(**(fields | changes))


def _equal(a, b):
  return set(a) == set(b) and all(np.array_equal(a[k], b[k]) for k in a)


def test_a_step_can_be_asked_for_in_any_order(folder):
  batches = record_batches.RecordBatches(folder, _config(), num_frames=4)
  in_order = [batches.batch(step) for step in range(4)]
  again = record_batches.RecordBatches(folder, _config(), num_frames=4)
  assert _equal(again.batch(3), in_order[3])
  assert _equal(again.batch(1), in_order[1])
  assert _equal(again.batch(2), in_order[2])


def test_rows_are_those_of_the_whole_batch(folder):
  batches = record_batches.RecordBatches(folder, _config(), num_frames=4)
  rows = np.array([0, 3])  # As a mesh may want them: not side by side.
  whole, some = batches.batch(2), batches.batch(2, rows)
  assert _equal({k: x[rows] for k, x in whole.items()}, some)


def test_epochs_hold_every_clip_once_and_differ(folder):
  loader = record_loader.RecordLoader(folder, "train", _config(batch_size=5))
  epochs = [[c.clip for c in loader.clips(step)] for step in range(3)]
  assert all(sorted(e) == sorted(epochs[0]) for e in epochs)
  assert len(set(map(tuple, epochs))) > 1
  assert "sphere" in record_batches.RecordBatches(
    folder, _config(), num_frames=4
  ).describe(0)


def test_several_data_sets_are_one(folder, tmp_path):
  other = small_records.make(tmp_path / "other", num_clips=2, num_test=1)
  reader = record_loader.open_split([folder, other], "train", _config().example)
  assert len(reader) == 7
  held_out = record_batches.RecordBatches(
    [folder, other], _config(), num_frames=4
  )
  assert held_out.num_held_out == 3
  first, again = held_out.held_out(2), held_out.held_out(2)
  assert _equal(first, again) and first["surface"].shape[:2] == (1, 4)


def test_bad_requests_say_so(folder):
  with pytest.raises(ValueError, match="Unknown split"):
    record_loader.open_split(folder, "validation", _config().example)
  with pytest.raises(ValueError, match="docs/data.md"):
    record_loader.open_split(folder / "none", "train", _config().example)
  with pytest.raises(ValueError, match="num_threads"):
    _config(num_threads=0)


@pytest.mark.slow  # Workers are processes that import everything anew.
def test_worker_processes_give_the_batches_of_threads(folder):
  loaders = [
    record_loader.RecordLoader(folder, "train", _config(num_workers=workers))
    for workers in (0, 1, 2)
  ]
  iterators = [loader.iterator(first_step=3) for loader in loaders]
  for _ in range(4):
    threads, *workers = [next(iterator) for iterator in iterators]
    assert all(_equal(threads, batch) for batch in workers)


@pytest.mark.slow  # Starts a process or two, three times over.
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_processes_go_on_with_the_same_batches(
  folder, tmp_path, processes
):
  steps = 40
  logs = [tmp_path / f"killed{i}.log" for i in range(processes)]
  for stay_at in (7, 16):  # The last saves are those after steps 5 and 14.
    running = [
      _start(folder, log, i, processes, steps, stay_at)
      for i, log in enumerate(logs)
    ]
    _wait_until(
      lambda: all(
        _lines(log)[-1:] and _lines(log)[-1].startswith(f"{stay_at} ")
        for log in logs
      )
    )
    for process in running:
      process.send_signal(signal.SIGKILL)
      assert process.wait(60) == -signal.SIGKILL
  running = [
    _start(folder, log, i, processes, steps) for i, log in enumerate(logs)
  ]
  whole = [tmp_path / f"whole{i}.log" for i in range(processes)]
  running += [
    _start(folder, log, i, processes, steps) for i, log in enumerate(whole)
  ]
  assert [process.wait(300) for process in running] == [0] * len(running)
  for log, expected in zip(logs, whole):
    assert len(_lines(expected)) == steps
    # A step that was seen twice was the same both times.
    assert set(_lines(log)) == set(_lines(expected))
    assert len(_lines(log)) == steps + 4


def _start(folder, log, number, processes, steps, stay_at=-1):
  return subprocess.Popen(
    [
      sys.executable,
      "-m",
      "tests.data.loading.loader_process",
      str(folder),
      str(log),
      str(number),
      str(processes),
      str(steps),
      str(stay_at),
    ],
    cwd=conftest.ROOT,
  )


def _lines(log):
  return log.read_text().splitlines() if log.is_file() else []


def _wait_until(condition, seconds=240):
  end = time.monotonic() + seconds
  while not condition():
    assert time.monotonic() < end, "the processes read nothing"
    time.sleep(0.05)
