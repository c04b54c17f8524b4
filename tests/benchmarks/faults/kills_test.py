"""The judgement of what killed runs leave, and real kills of a writer."""

import json
import sys

import pytest

from benchmarks.faults import kills


def _write(folder, frames, **files):
  for name, text in files.items():
    (folder / f"{name}.ply").write_text(text)
  record = {"input": {"frames": frames}}
  (folder / "run.json").write_text(json.dumps(record))


@pytest.fixture
def whole(tmp_path):
  """Hashes of complete runs of two and three frames."""
  made = {}
  for frames in (2, 3):
    folder = tmp_path / f"whole{frames}"
    folder.mkdir()
    _write(folder, frames, a=str(frames), b=str(frames))
    made[frames] = kills.hashes(folder)
  return made


@pytest.fixture
def folder(tmp_path):
  path = tmp_path / "out"
  path.mkdir()
  return path


def test_a_folder_with_hidden_files_alone_holds_nothing(folder, whole):
  assert kills.state(folder / "missing", whole) == "nothing"
  (folder / ".partial-1").mkdir()
  assert kills.state(folder, whole) == "nothing"


def test_files_of_one_run(folder, whole):
  _write(folder, 3, a="3", b="3")
  assert kills.state(folder, whole) == "one run"


@pytest.mark.parametrize(
  "files", [{"a": "3", "b": "2"}, {"a": "3"}, {"a": "3", "b": "3", "c": "3"}]
)
def test_files_of_two_runs(folder, whole, files):
  _write(folder, 3, **files)
  assert kills.state(folder, whole) == "files of two runs"


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"input": 3}'])
def test_a_damaged_record(folder, whole, text):
  (folder / "run.json").write_text(text)
  assert kills.state(folder, whole).startswith("no whole record")


def test_files_without_a_record(folder, whole):
  (folder / "a.ply").write_text("2")
  assert kills.state(folder, whole) == "no record: killed while files moved"


@pytest.mark.parametrize(
  ("code", "text", "fault"),
  [
    (0, "", ""),
    (130, "sample: Interrupted.\n", ""),
    (-2, "Traceback\n  File site.py\nKeyboardInterrupt\n", ""),
    (-2, "Traceback\n  File launch/sample.py\n", "a traceback"),
    (130, "Traceback\nsample: Interrupted.\n", "a traceback"),
    (1, "", "exit code 1"),
    (130, "", "lines []"),
    (
      130,
      "sample: Interrupted.\nsample: Interrupted.\n",
      "lines ['sample: Interrupted.', 'sample: Interrupted.']",
    ),
  ],
)
def test_ends_after_an_interrupt(code, text, fault):
  assert kills.judge_end(code, text, "sample") == fault


def test_a_whole_run_is_timed_and_a_failing_one_is_an_error(tmp_path):
  out = tmp_path / "out"
  length = kills.whole_run(kills.writer(out, 2), out, tmp_path / "tmp")
  assert 0 <= length.writing <= length.all
  assert (out / "run.json").exists()
  failing = [sys.executable, "-c", "raise SystemExit(3)"]
  with pytest.raises(Exception, match="fails by itself"):
    kills.whole_run(failing, out, tmp_path / "tmp")


def test_a_batch_is_whole_clip_by_clip(tmp_path):
  folders = {frames: tmp_path / f"whole{frames}" for frames in (2, 3)}
  for frames, made in folders.items():
    for name in ("first", "second", "third"):
      (made / name).mkdir(parents=True)
      _write(made / name, frames, a=f"{name}{frames}")
  whole = {n: kills.hashes_of_clips(made) for n, made in folders.items()}
  out = tmp_path / "out"
  assert kills.state_of_clips(out, whole) == "nothing"
  for name, frames in {"first": 2, "third": 3}.items():
    (out / name).mkdir(parents=True)
    _write(out / name, frames, a=f"{name}{frames}")
  assert kills.state_of_clips(out, whole) == "one run"
  (out / "second").mkdir()
  _write(out / "second", 2, a="second2")
  assert kills.state_of_clips(out, whole) == "all"
  _write(out / "second", 2, a="first2")
  assert kills.state_of_clips(out, whole) == "second: files of two runs"
