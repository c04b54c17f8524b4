"""Paths of files and objects: on emulated stores, good and bad ones."""

import os
import pathlib
import sys
import time

import pytest

from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io import output_checks
from sculpt4d_jax.io import paths
from sculpt4d_jax.io import retries
from sculpt4d_jax.io import staged
from sculpt4d_jax.io import uploads
from tests.io import emulated
from tests.io import stores


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
  assert path / "." == paths.of("gs://bucket/./runs/tiny") == path
  # Functions for file systems must reject it, not write a folder "gs:".
  with pytest.raises(TypeError):
    os.fspath(path)


@pytest.mark.parametrize(
  "url",
  [
    "gs:/bucket/x",
    "gs:bucket/x",
    " gs://bucket/x",
    "GS://bucket/x",
    "gcs://bucket/x",
    "http://a/b",
    "gs://",
    "s3:///x",
    "s3://no bucket/x",
    "gs://bucket/a/../b",
    pathlib.Path("gs://bucket/x"),
  ],
)
def test_other_urls_are_refused(url):
  """Or they would be folders called "gs:", or keys that mean another object."""
  with pytest.raises(
    ValueError, match="expected|names no bucket|a bucket's name|'..'|as text"
  ):
    paths.of(url)


@pytest.mark.parametrize("url", ["file:///tmp/x", "file:/tmp/x"])
def test_urls_of_files_are_paths(url):
  assert paths.of(url) == pathlib.Path("/tmp/x")


def test_what_must_be_on_a_disk_is_not_looked_for_elsewhere(tmp_path):
  assert paths.on_disk(str(tmp_path), "--input") == tmp_path
  with pytest.raises(ValueError, match="--input=gs://b/x must be on a disk"):
    paths.on_disk("gs://b/x", "--input")


@pytest.fixture(scope="module", params=["gs", "s3"])
def store(request):
  """A place in a store of which one request in ten goes wrong."""
  with emulated.store(request.param, one_in=10) as bucket:
    yield bucket / "tests"


@pytest.mark.parametrize("folder", ["objects", "two words/ü ✓ [1] #%&+?"])
def test_objects_are_written_and_read(store, folder):
  path = store / folder / "a.bin"
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
      (staging / ".zarray").write_text("{}")
      (staging / "run.json").write_text("{}")
  assert sorted(p.name for p in folder.iterdir()) == [
    ".zarray",
    "frame_0.ply",
    "run.json",
  ]
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


def test_folders_that_a_console_made_are_no_files(store, tmp_path):
  folder = store / "console"
  system = paths.file_system(store.scheme)
  for name in ("", "sub/"):
    retries.retry(lambda: system.pipe_file(f"{folder.key}/{name}", b""), "x")
  (folder / "sub" / "a").write_text("1")
  assert [path.name for path, _ in folder.walk()] == ["a"]
  assert folder.is_dir() and not folder.is_file()
  local = local_copies.fetch(folder, tmp_path)
  assert (local / "sub" / "a").read_text() == "1"


def test_a_bucket_that_is_missing_is_named(store):
  missing = paths.of(f"{store.scheme}://sculpt4d-no-such-bucket/x/y")
  assert not missing.exists() and not list(missing.iterdir())
  with pytest.raises(paths.StoreError, match="is there a bucket sculpt4d-no-"):
    missing.write_bytes(b"1")
  with pytest.raises(atomic.OutputError, match=f"^cannot write {missing}: "):
    output_checks.check_folder(missing)
  with pytest.raises(FileNotFoundError, match=f"{missing}"):
    missing.read_bytes()
  with pytest.raises(ValueError, match=f"{missing}: there is no such object"):
    local_copies.fetch(missing)


def test_what_is_in_the_way_of_results_is_told_before_the_work(store):
  (store / "way" / "object").write_text("1")
  with pytest.raises(atomic.OutputError, match="it is an object"):
    output_checks.check_folder(store / "way" / "object")
  with pytest.raises(atomic.OutputError, match="it is an object"):
    with staged.staged_folder(store / "way" / "object"):
      pass
  with pytest.raises(atomic.OutputError, match="it is a folder"):
    output_checks.check_file(store / "way")
  with pytest.raises(ValueError, match="is a bucket; name an object"):
    output_checks.check_file(f"{store.scheme}://{store.bucket}")
  output_checks.check_file(store / "way" / "object")  # It is replaced.
  output_checks.check_folder(store / "way")
  assert [path.name for path in (store / "way").iterdir()] == ["object"]


def test_two_runs_into_one_folder_leave_no_mark(store, tmp_path, monkeypatch):
  folder = store / "shared"
  for name in ("a.ply", "b.ply", "run.json"):
    (tmp_path / name).write_text("first")
  upload = paths.StorePath.upload

  def upload_while_another_writes(path, file):
    info = upload(path, file)
    (folder / "a.ply").write_text("second")
    return info

  monkeypatch.setattr(paths.StorePath, "upload", upload_while_another_writes)
  with pytest.raises(paths.StoreError, match="another run wrote .*a.ply"):
    uploads.upload_folder(tmp_path, folder, last=atomic.DESCRIPTIONS)
  assert not (folder / "run.json").exists()
  assert (folder / "b.ply").exists()


def test_an_object_that_shrank_is_not_waited_for(store):
  path = store / "short"
  path.write_bytes(b"123")
  with pytest.raises(paths.StoreError, match="it has 3 bytes, and 10"):
    path.read_range(0, 10)


@pytest.mark.parametrize("scheme", ["gs", "s3"])
@pytest.mark.parametrize(
  "status,reason", [(403, "no permission"), (401, "no valid credentials")]
)
def test_a_store_that_refuses_is_not_asked_again(scheme, status, reason):
  with emulated.refusing(scheme, status) as bucket:
    began = time.monotonic()
    for operation in (
      lambda: (bucket / "x").read_bytes(),
      lambda: (bucket / "x").write_bytes(b"1"),
      lambda: (bucket / "x").exists(),
      lambda: list((bucket / "x").iterdir()),
      lambda: (bucket / "x").unlink(missing_ok=True),
      lambda: output_checks.check_folder(bucket / "x"),
    ):
      with pytest.raises((paths.StoreError, atomic.OutputError), match=reason):
        operation()
    # Retries would take a quarter of an hour.
    assert time.monotonic() - began < 240


def test_without_credentials_a_line_says_how_to_get_some(monkeypatch, tmp_path):
  stores.skip_without("s3")
  for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
  for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
    monkeypatch.setenv(name, str(tmp_path / "none"))
  paths.file_system("s3").clear_instance_cache()
  with pytest.raises(paths.StoreError, match="no valid credentials.*aws conf"):
    paths.of("s3://bucket/x").read_bytes()
  paths.file_system("s3").clear_instance_cache()


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "fsspec", None)
  with pytest.raises(ImportError, match=r"pip install 'sculpt4d-jax\[gcs\]'"):
    paths.of("gs://bucket/x").read_bytes()
