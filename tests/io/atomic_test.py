import errno
import os
import subprocess

import pytest

from sculpt4d_jax.io import atomic


def _full_disk(*_, **__):
  raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_finished_file_has_the_content_and_no_neighbours(tmp_path):
  path = tmp_path / "new" / "folder" / "file.bin"
  with atomic.atomic_write(path) as file:
    file.write(b"one")
    file.write(b"two")
  assert path.read_bytes() == b"onetwo"
  assert os.listdir(path.parent) == ["file.bin"]


def test_the_file_does_not_appear_before_the_end(tmp_path):
  path = tmp_path / "file.bin"
  path.write_bytes(b"old")
  with atomic.atomic_write(path) as file:
    file.write(b"new")
    file.flush()
    assert path.read_bytes() == b"old"
  assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_block_leaves_the_old_file_and_nothing_else(tmp_path, error):
  path = tmp_path / "file.bin"
  path.write_bytes(b"old")
  with pytest.raises(error):
    with atomic.atomic_write(path) as file:
      file.write(b"half")
      raise error
  assert path.read_bytes() == b"old"
  assert os.listdir(tmp_path) == ["file.bin"]


def test_folders_made_for_a_failing_file_go_again(tmp_path):
  with pytest.raises(RuntimeError):
    with atomic.atomic_write(tmp_path / "a" / "b" / "file.bin"):
      raise RuntimeError
  assert not os.listdir(tmp_path)


def test_a_full_disk_names_path_and_reason_and_leaves_nothing(
  tmp_path, monkeypatch
):
  monkeypatch.setattr(os, "fsync", _full_disk)
  path = tmp_path / "mesh.ply"
  with pytest.raises(atomic.OutputError) as caught:
    atomic.write_bytes(path, b"content")
  assert str(path) in str(caught.value)
  assert "No space left on device" in str(caught.value)
  assert "free some space" in str(caught.value)
  assert not os.listdir(tmp_path)


def test_a_disk_that_is_really_full_leaves_nothing(tiny_disk):
  with pytest.raises(atomic.OutputError, match="No space left"):
    atomic.write_bytes(tiny_disk / "large.bin", bytes(1 << 20))
  assert not os.listdir(tiny_disk)
  atomic.write_bytes(tiny_disk / "small.bin", bytes(1 << 10))
  assert os.listdir(tiny_disk) == ["small.bin"]


def test_a_folder_without_write_permission_is_named(tmp_path):
  folder = tmp_path / "locked"
  folder.mkdir()
  folder.chmod(0o500)
  if os.access(folder, os.W_OK):
    pytest.skip("this user may write to read-only folders.")
  with pytest.raises(atomic.OutputError, match="Permission denied.*may write"):
    atomic.write_bytes(folder / "file.bin", b"content")


def test_a_read_only_file_system_is_named(tiny_disk):
  remount = ["mount", "-o", "remount,ro", str(tiny_disk)]
  subprocess.run(remount, check=True)
  with pytest.raises(atomic.OutputError, match="Read-only file system"):
    atomic.write_bytes(tiny_disk / "file.bin", b"content")


def test_a_file_where_a_folder_should_be_is_named(tmp_path):
  (tmp_path / "file").write_bytes(b"")
  with pytest.raises(atomic.OutputError, match="choose another folder"):
    atomic.write_bytes(tmp_path / "file" / "mesh.ply", b"content")


def test_permissions_follow_the_umask(tmp_path):
  mask = os.umask(0o022)
  try:
    atomic.write_bytes(tmp_path / "file.bin", b"content")
  finally:
    os.umask(mask)
  assert (tmp_path / "file.bin").stat().st_mode & 0o777 == 0o644


def test_a_new_folder_appears_when_it_is_whole(tmp_path):
  folder = tmp_path / "deep" / "result"
  with atomic.new_folder(folder) as staging:
    (staging / "part").mkdir()
    (staging / "part" / "file").write_text("one")
    assert not folder.exists()
  assert (folder / "part" / "file").read_text() == "one"
  assert os.listdir(folder.parent) == ["result"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failing_new_folder_leaves_nothing_or_the_old_one(tmp_path, error):
  with pytest.raises(error):
    with atomic.new_folder(tmp_path / "a" / "result") as staging:
      (staging / "file").write_text("half")
      raise error
  assert not (tmp_path / "a").exists()
  old = tmp_path / "old"
  old.mkdir()
  (old / "file").write_text("old")
  with pytest.raises(atomic.OutputError, match="not empty"):
    with atomic.new_folder(old):
      pass
  with pytest.raises(error):
    with atomic.new_folder(old, replace=True) as staging:
      (staging / "file").write_text("half")
      raise error
  assert (old / "file").read_text() == "old"
  with atomic.new_folder(old, replace=True) as staging:
    (staging / "other").write_text("new")
  assert os.listdir(old) == ["other"]
  assert os.listdir(tmp_path) == ["old"]
