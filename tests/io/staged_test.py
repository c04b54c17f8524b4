"""Folders whose files appear together, or not at all."""

import contextlib
import errno
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import staged


def _full_disk(*_, **__):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_staged_files_arrive_together(tmp_path):
  folder = tmp_path / "run"
  with staged.staged_folder(folder) as staging:
    (staging / "a.txt").write_text("a")
    (staging / "deep").mkdir()
    (staging / "deep" / "b.txt").write_text("b")
    assert sorted(p.name for p in folder.iterdir()) == [staging.name]
  assert (folder / "a.txt").read_text() == "a"
  assert (folder / "deep" / "b.txt").read_text() == "b"
  assert sorted(os.listdir(folder)) == ["a.txt", "deep"]


def test_a_failing_stage_leaves_no_file_and_no_folder(tmp_path):
  with pytest.raises(KeyboardInterrupt):
    with staged.staged_folder(tmp_path / "new" / "run") as staging:
      (staging / "a.txt").write_text("a")
      raise KeyboardInterrupt
  assert not os.listdir(tmp_path)


def test_a_failing_stage_keeps_what_was_in_the_folder(tmp_path):
  (tmp_path / "frame_0000.ply").write_text("old")
  with pytest.raises(RuntimeError):
    with staged.staged_folder(tmp_path, replaces=["*.ply"]) as staging:
      (staging / "frame_0000.ply").write_text("new")
      raise RuntimeError
  assert (tmp_path / "frame_0000.ply").read_text() == "old"
  assert os.listdir(tmp_path) == ["frame_0000.ply"]


def write(folder, content, count, replaces=("frame_*.ply",)):
  with staged.staged_folder(folder, replaces=replaces) as staging:
    for index in range(count):
      (staging / f"frame_{index:04d}.ply").write_text(content)


def shown(folder):
  return sorted(name for name in os.listdir(folder) if name[0] != ".")


def test_a_shorter_run_removes_the_tail_of_a_longer_one(tmp_path):
  (tmp_path / "notes.txt").write_text("mine")
  write(tmp_path, "old", 3)
  write(tmp_path, "new", 1)
  assert shown(tmp_path) == ["frame_0000.ply", "notes.txt"]
  assert (tmp_path / "frame_0000.ply").read_text() == "new"


def test_files_of_a_user_are_never_lost(tmp_path, caplog):
  (tmp_path / "frame_0007.ply").write_text("mine")
  (tmp_path / "frame_0001.ply").write_text("mine, too")
  write(tmp_path, "one", 3)
  (tmp_path / "frame_0002.ply").write_text("changed by hand")
  write(tmp_path, "two", 1)
  left = {n: (tmp_path / n).read_text() for n in shown(tmp_path)}
  assert left == {
    "frame_0000.ply": "two",
    "frame_0001.kept1.ply": "mine, too",
    "frame_0002.ply": "changed by hand",
    "frame_0007.ply": "mine",
  }
  assert "kept as frame_0001.kept1.ply" in caplog.text
  assert "they stay" in caplog.text


def test_a_folder_in_the_way_is_found_before_a_file_moves(tmp_path):
  write(tmp_path, "old", 3)
  (tmp_path / "frame_0003.ply").mkdir()
  with pytest.raises(atomic.OutputError, match="frame_0003.ply.*in the way"):
    write(tmp_path, "new", 5)
  assert shown(tmp_path) == [f"frame_000{i}.ply" for i in range(4)]
  assert (tmp_path / "frame_0000.ply").read_text() == "old"


def run_and_kill(folder, when, count=4, calls=("replace",)):
  """Writes in a process that is killed at one of its calls.

  Returns:
    Whether it made as many calls; else it ended by itself.
  """
  code = (
    "import os, pathlib, sys\n"
    "from sculpt4d_jax.io import staged\n"
    "left = int(sys.argv[2])\n"
    "def counted(call):\n"
    "  def counting(*arguments, **options):\n"
    "    global left\n"
    "    left -= 1\n"
    "    if left < 0: os._exit(9)\n"
    "    return call(*arguments, **options)\n"
    "  return counting\n"
    "for name in sys.argv[4:]: setattr(os, name, counted(getattr(os, name)))\n"
    "with staged.staged_folder(sys.argv[1], replaces=['frame_*.ply']) as s:\n"
    "  for index in range(int(sys.argv[3])):\n"
    "    (s / f'frame_{index:04d}.ply').write_text('killed')\n"
  )
  root = pathlib.Path(__file__).resolve().parents[2]
  result = subprocess.run(
    [sys.executable, "-c", code, str(folder), str(when), str(count), *calls],
    env={**os.environ, "PYTHONPATH": str(root)},
    check=False,
  )
  assert result.returncode in (0, 9)
  return result.returncode == 9


@pytest.mark.parametrize("when", [0, 1, 3])
def test_the_next_run_clears_up_after_a_killed_one(tmp_path, when):
  write(tmp_path, "old", 2)
  assert run_and_kill(tmp_path, when)
  (tmp_path / ".partial-0123abcd").mkdir()  # Of a run killed long ago.
  write(tmp_path, "new", 3)
  assert shown(tmp_path) == [f"frame_000{i}.ply" for i in range(3)]
  assert {(tmp_path / n).read_text() for n in shown(tmp_path)} == {"new"}
  hidden = [name for name in os.listdir(tmp_path) if name[0] == "."]
  assert hidden == [staged.LIST]


@pytest.mark.parametrize("when", [3, 4, 5])
def test_a_killed_move_is_completed_even_if_the_next_run_fails(tmp_path, when):
  write(tmp_path, "old", 2)
  assert run_and_kill(tmp_path, when)
  with pytest.raises(RuntimeError):
    with staged.staged_folder(tmp_path, replaces=["frame_*.ply"]):
      raise RuntimeError
  assert shown(tmp_path) == [f"frame_000{i}.ply" for i in range(4)]
  assert {(tmp_path / n).read_text() for n in shown(tmp_path)} == {"killed"}


def test_a_kill_at_any_call_leaves_no_file_of_another_run(tmp_path):
  """Of a run that is shorter than the one before it."""
  for when in range(40):
    folder = tmp_path / str(when)
    write(folder, "old", 4)
    was_killed = run_and_kill(folder, when, 2, ("replace", "unlink", "rmdir"))
    with pytest.raises(RuntimeError):
      with staged.staged_folder(folder, replaces=["frame_*.ply"]):
        raise RuntimeError
    contents = [(folder / name).read_text() for name in shown(folder)]
    assert contents in (["old"] * 4, ["killed"] * 2), when
    hidden = [name for name in os.listdir(folder) if name[0] == "."]
    assert hidden == [staged.LIST]
    if not was_killed:
      break
  assert not was_killed and when > 8


@pytest.mark.parametrize("when", range(8))
def test_an_interrupted_move_is_completed_or_not_begun(
  tmp_path, monkeypatch, when
):
  write(tmp_path, "old", 2)
  replace, calls = os.replace, []

  def interrupted(source, target):
    calls.append(target)
    if len(calls) == when + 1:
      raise KeyboardInterrupt
    replace(source, target)

  monkeypatch.setattr(os, "replace", interrupted)
  try:
    write(tmp_path, "new", 4)
  except KeyboardInterrupt:
    pass
  files = shown(tmp_path)
  contents = [(tmp_path / name).read_text() for name in files]
  assert contents in (["old"] * 2, ["new"] * 4)
  assert (contents[0] == "old") == (when == 0)
  hidden = [name for name in os.listdir(tmp_path) if name[0] == "."]
  assert hidden == [staged.LIST]


def failing_replace(monkeypatch, fails):
  """Lets os.replace fail where `fails(number of the call, target)`."""
  replace, calls = os.replace, []

  def failing(source, target):
    calls.append(target)
    if fails(len(calls) - 1, pathlib.Path(target)):
      raise OSError(errno.EACCES, os.strerror(errno.EACCES))
    replace(source, target)

  monkeypatch.setattr(os, "replace", failing)


@pytest.mark.parametrize("when", range(8))
def test_a_file_that_moves_at_the_second_try(tmp_path, monkeypatch, when):
  write(tmp_path, "old", 2)
  with monkeypatch.context() as context:
    failing_replace(context, lambda number, _: number == when)
    try:
      write(tmp_path, "new", 4)
    except atomic.OutputError:
      pass
  contents = [(tmp_path / name).read_text() for name in shown(tmp_path)]
  # Before the first file moves, nothing has changed and the run fails.
  assert contents in (["old"] * 2, ["new"] * 4)
  assert (contents[0] == "old") == (when <= 1)
  hidden = [name for name in os.listdir(tmp_path) if name[0] == "."]
  assert hidden == [staged.LIST]


@pytest.mark.parametrize("blocked", range(4))
def test_files_that_cannot_be_moved_are_kept_for_the_next_run(
  tmp_path, monkeypatch, blocked
):
  write(tmp_path, "old", 2)
  name = f"frame_{blocked:04d}.ply"
  with monkeypatch.context() as context:
    failing_replace(context, lambda _, target: target == tmp_path / name)
    with pytest.raises(atomic.OutputError, match="Nothing is lost") as caught:
      write(tmp_path, "new", 4)
    assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(atomic.OutputError, match="Nothing is lost"):
      write(tmp_path, "newer", 3)  # As long as the cause remains.
  with pytest.raises(RuntimeError):
    with staged.staged_folder(tmp_path, replaces=["frame_*.ply"]):
      raise RuntimeError
  contents = [(tmp_path / name).read_text() for name in shown(tmp_path)]
  assert contents == ["new"] * 4
  hidden = [name for name in os.listdir(tmp_path) if name[0] == "."]
  assert hidden == [staged.LIST]


def test_folders_of_runs_that_are_alive_stay(tmp_path):
  with staged.staged_folder(tmp_path, replaces=["*.ply"]) as first:
    (first / "frame_0000.ply").write_text("first")
    write(tmp_path, "second", 2)
    assert (first / "frame_0000.ply").exists()
  assert shown(tmp_path) == ["frame_0000.ply"]
  assert (tmp_path / "frame_0000.ply").read_text() == "first"


def test_runs_that_end_together_do_not_mix(tmp_path):
  """Several threads, each its own descriptors: flock keeps them apart."""

  def work(number):
    for _ in range(8):
      write(tmp_path, str(number), 2 + number)

  threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  contents = {(tmp_path / name).read_text() for name in shown(tmp_path)}
  assert len(contents) == 1
  assert len(shown(tmp_path)) == 2 + int(contents.pop())


def test_errors_in_a_stage_name_the_final_place(tmp_path):
  with pytest.raises(atomic.OutputError) as caught:
    with staged.staged_folder(tmp_path) as staging:
      with atomic.output_errors(staging / "mesh.ply"):
        _full_disk()
  assert caught.value.path == pathlib.Path(tmp_path / "mesh.ply")
  assert caught.value.errno == errno.ENOSPC
  assert ".partial" not in str(caught.value)


def test_the_end_of_the_process_removes_what_other_threads_write(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(staged, "_IS_ENDING", threading.Event())
  monkeypatch.setattr(staged, "_TURN", threading.Lock())
  is_open, may_go_on, ends = threading.Event(), threading.Event(), []

  def write(folder):
    try:
      with staged.staged_folder(folder) as staging:
        (staging / "a.txt").write_text("a")
        is_open.set()
        may_go_on.wait()
        (staging / "b.txt").write_text("b")
    except BaseException as error:
      ends.append(type(error))

  thread = threading.Thread(target=write, args=[tmp_path / "first"])
  thread.start()
  is_open.wait()
  staged.discard_open()
  assert not os.listdir(tmp_path / "first")
  may_go_on.set()
  thread.join()
  write(tmp_path / "second")  # None may begin any more.
  assert ends == [atomic.OutputError, KeyboardInterrupt]
  found = [path for path in tmp_path.rglob("*") if path.is_file()]
  assert not found


def test_no_thread_holds_a_lock_when_the_process_ends(tmp_path, monkeypatch):
  monkeypatch.setattr(staged, "_IS_ENDING", threading.Event())
  monkeypatch.setattr(staged, "_TURN", threading.Lock())
  has_lock, may_continue = threading.Event(), threading.Event()

  def clear(folder, replaces):
    del folder, replaces
    has_lock.set()
    may_continue.wait()

  monkeypatch.setattr(staged, "_clear_abandoned", clear)

  def write():
    with contextlib.suppress(KeyboardInterrupt, atomic.OutputError):
      with staged.staged_folder(tmp_path):
        pass

  thread = threading.Thread(target=write)
  thread.start()
  has_lock.wait()
  end = threading.Thread(target=staged.discard_open)
  end.start()
  while not staged._IS_ENDING.is_set():
    time.sleep(0.001)
  assert end.is_alive()  # It waits for the lock's holder.
  may_continue.set()
  end.join()
  assert not os.listdir(tmp_path)
  thread.join()
