"""Paths of files and objects: on emulated stores, good and bad ones."""

import os
import pathlib
import time

import pytest

from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io import paths
from sculpt4d_jax.io import staged
from tests.io import emulated


def test_paths_of_this_machine_stay_what_they_were(tmp_path):
  assert paths.of("runs/tiny") == pathlib.Path("runs/tiny")
  assert paths.of(tmp_path) is tmp_path
  assert not paths.is_remote("runs/a:b/c")


def test_store_paths_behave_like_paths():
  path = paths.of("gs://bucket/runs//tiny/")
  assert str(path / "dit" / "metrics.jsonl") == (
    "gs://bucket/runs/tiny/dit/metrics.jsonl"
  )
  assert (path.name, path.parent.name, path.bucket) == (
    "tiny",
    "runs",
    "bucket",
  )
  assert (path / "a.tar.gz").suffix == ".gz"
  assert (path / "a/b.txt").relative_to(path).as_posix() == "a/b.txt"
  assert path == paths.of("gs://bucket/runs/tiny")
  # Functions for file systems must reject it, not write a folder "gs:".
  with pytest.raises(TypeError):
    os.fspath(path)


@pytest.mark.parametrize(
  "url", ["gs:/bucket/x", "http://a/b", "gs://", "s3:///x"]
)
def test_other_urls_are_refused(url):
  with pytest.raises(ValueError, match="expected|names no bucket"):
    paths.of(url)


def test_what_will_not_work_again_is_not_tried_again():
  def refuse():
    calls.append(1)
    raise PermissionError("no")

  calls = []
  with pytest.raises(paths.StoreError, match="no"):
    paths.retry(refuse, "gs://b/x")
  assert len(calls) == 1


def test_patience_ends_with_the_reason(monkeypatch):
  monkeypatch.setattr(paths, "PATIENCE", 0.0)

  def fail():
    raise ConnectionResetError("reset")

  with pytest.raises(paths.StoreError, match="could not be reached.*reset"):
    paths.retry(fail, "s3://b/x")


def test_what_must_be_on_a_disk_is_not_looked_for_elsewhere(tmp_path):
  assert paths.on_disk(str(tmp_path), "--input") == tmp_path
  with pytest.raises(ValueError, match="--input=gs://b/x must be on a disk"):
    paths.on_disk("gs://b/x", "--input")


@pytest.fixture(scope="module", params=["gs", "s3"])
def store(request):
  """A place in a store of which one request in ten goes wrong."""
  with emulated.store(request.param, one_in=10) as bucket:
    yield bucket / "tests"


def test_objects_are_written_and_read(store):
  path = store / "objects" / "a.bin"
  content = os.urandom(200_000)
  assert not path.exists()
  path.write_bytes(content)
  assert path.is_file() and not path.is_dir()
  assert path.parent.is_dir()
  assert path.stat().st_size == len(content)
  assert abs(path.stat().st_mtime_ns / 1e9 - time.time()) < 600
  assert path.read_bytes() == content
  assert path.read_range(1000, 5000) == content[1000:5000]
  (path.parent / "sub/b.json").write_text("{}")
  assert [p.name for p in sorted(path.parent.iterdir())] == ["a.bin", "sub"]
  assert [str(p) for p in path.parent.glob("*/*.json")] == [
    f"{path.parent}/sub/b.json"
  ]
  path.parent.rmtree()
  assert not path.exists() and not path.parent.exists()
  path.unlink(missing_ok=True)


def test_a_staged_folder_replaces_what_an_earlier_run_left(store):
  folder = store / "staged"
  for count in (3, 1):
    with staged.staged_folder(folder, replaces=["frame_*.ply"]) as staging:
      for number in range(count):
        (staging / f"frame_{number}.ply").write_text(str(count))
      (staging / "run.json").write_text("{}")
  assert sorted(p.name for p in folder.iterdir()) == ["frame_0.ply", "run.json"]
  assert (folder / "frame_0.ply").read_text() == "1"


def test_nothing_appears_if_writing_fails(store):
  with pytest.raises(RuntimeError):
    with atomic.atomic_write(store / "failed" / "x") as file:
      file.write(b"half")
      raise RuntimeError
  assert not (store / "failed").exists()


def test_local_copies_follow_the_store(store, tmp_path):
  folder = store / "copied"
  (folder / "a").write_text("1")
  (folder / "b").write_text("2")
  local = local_copies.fetch(folder, tmp_path)
  assert sorted(p.name for p in local.iterdir() if p.name[0] != ".") == [
    "a",
    "b",
  ]
  (folder / "a").write_text("33")
  (folder / "b").unlink()
  local = local_copies.fetch(folder, tmp_path)
  assert (local / "a").read_text() == "33"
  assert not (local / "b").exists()
  assert local_copies.fetch(folder / "a", tmp_path).read_text() == "33"
