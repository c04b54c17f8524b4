"""safetensors, shards, folders and repositories."""

import json
import struct

import numpy as np
import pytest
import safetensors.numpy

from sculpt4d_jax.weights.tensor_files import hub
from sculpt4d_jax.weights.tensor_files import open_file
from sculpt4d_jax.weights.tensor_files import safetensors_file
from sculpt4d_jax.weights.tensor_files import tensor_file
from tests.weights import hunyuan_checkpoints as checkpoints

TENSORS = {
  "a": np.arange(24, dtype=np.float32).reshape(2, 3, 4),
  "b": np.ones((3,), np.float16),
}


def write(path, tensors=None):
  safetensors.numpy.save_file(tensors or TENSORS, path)
  return path


def refused(path, match):
  with pytest.raises(tensor_file.CheckpointError, match=match):
    open_file.open_file(path)


def shards(folder, names=("one.safetensors", "two.safetensors")):
  for name, (key, array) in zip(names, TENSORS.items()):
    write(folder / name, {key: array})
  index = folder / "model.safetensors.index.json"
  index.write_text(json.dumps({"weight_map": dict(zip(TENSORS, names))}))
  return index


def test_reads_safetensors(tmp_path):
  file = open_file.open_file(write(tmp_path / "x.safetensors"))
  for name, array in TENSORS.items():
    np.testing.assert_array_equal(file.read(name), array)
  np.testing.assert_array_equal(file.read_slice("a", (1, 2)), [20, 21, 22, 23])


def test_writes_what_the_library_reads(tmp_path):
  path = tmp_path / "x.safetensors"
  infos = {
    n: tensor_file.TensorInfo(a.shape, a.dtype.name) for n, a in TENSORS.items()
  }
  with open(path, "wb") as file:
    # The order of the values need not be that of the header.
    safetensors_file.write(
      file, infos, reversed(TENSORS.items()), {"who": "tests"}
    )
  loaded = safetensors.numpy.load_file(path)
  for name, array in TENSORS.items():
    np.testing.assert_array_equal(loaded[name], array)
  with open(path, "wb") as file:
    with pytest.raises(ValueError, match="did not come"):
      safetensors_file.write(file, infos, [("a", TENSORS["a"])])
  with open(path, "wb") as file:
    with pytest.raises(ValueError, match="announced"):
      safetensors_file.write(file, infos, [("a", TENSORS["b"])])


@pytest.mark.parametrize("lost", [1, 50, 110, 10**6])
def test_truncated(tmp_path, lost):
  path = write(tmp_path / "x.safetensors")
  path.write_bytes(path.read_bytes()[:-lost])
  refused(path, "truncated")


@pytest.mark.parametrize(
  "header, reason",
  [
    (b"not json", "header"),
    (b"[1, 2]", "header"),
    (b'{"a": {"dtype": "F32"}}', "header"),
    (
      b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
      "has 4 bytes",
    ),
  ],
)
def test_damaged(tmp_path, header, reason):
  path = tmp_path / "x.safetensors"
  path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0" * 8)
  refused(path, reason)
  path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
  refused(path, "no safetensors")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_any_damage_is_refused_or_harmless(tmp_path, suffix):
  """Random bytes changed or cut off: a message, never another error."""
  shapes = {"model.a": (2, 3), "b": (4,)}
  path = tmp_path / f"x{suffix}"
  if suffix == ".pt":
    checkpoints.write_torch(path, shapes, checkpoints.values(shapes))
  else:
    write(path)
  content, rng, refusals = path.read_bytes(), np.random.default_rng(0), 0
  for _ in range(300):
    damaged = bytearray(content)
    for at in rng.integers(len(content), size=3):
      damaged[at] = rng.integers(256)
    if rng.random() < 0.2:
      damaged = damaged[: rng.integers(len(damaged))]
    path.write_bytes(damaged)
    try:
      file = open_file.open_file(path)
      for name in file.tensors:
        file.read(name)
    except tensor_file.CheckpointError:
      refusals += 1
  assert refusals > 150


def test_shards_are_one_file(tmp_path):
  file = open_file.open_file(shards(tmp_path))
  for name, array in TENSORS.items():
    np.testing.assert_array_equal(file.read(name), array)
  # A folder's index stands for its shards.
  assert open_file.find_files(tmp_path) == [file.path]


def test_missing_shards_are_named(tmp_path):
  index = shards(tmp_path)
  (tmp_path / "two.safetensors").unlink()
  refused(index, "missing: two.safetensors")
  shards(tmp_path)
  write(tmp_path / "two.safetensors", {"c": np.zeros(1)})
  refused(index, "promises tensors.*b")
  index.write_text("{}")
  refused(index, "no index")
  index.write_text('{"weight_map": {"a": "../../etc/passwd"}}')
  refused(index, "next to the index")


def test_what_is_taken_of_a_folder(tmp_path):
  with pytest.raises(tensor_file.CheckpointError, match="holds no checkpoint"):
    open_file.find_files(tmp_path)
  (tmp_path / "sub").mkdir()
  for name in ("model.bin", "sub/other.ckpt"):
    (tmp_path / name).write_bytes(b"x" * 1000)
  write(tmp_path / "model.safetensors")
  # A pickle next to a safetensors file mostly holds the same.
  names = [p.name for p in open_file.find_files(tmp_path)]
  assert names == ["other.ckpt", "model.safetensors"]


def test_unfinished_downloads_are_refused(tmp_path):
  write(tmp_path / "model.safetensors")
  (tmp_path / "more.safetensors").symlink_to(tmp_path / "blobs" / "gone")
  with pytest.raises(tensor_file.CheckpointError, match="not finished"):
    open_file.find_files(tmp_path)
  refused(tmp_path / "more.safetensors", "not finished")


def test_what_exists_is_a_path_and_other_names_are_explained(tmp_path):
  path = write(tmp_path / "model.safetensors")
  assert hub.resolve(str(path)) == [path]
  assert hub.resolve(str(tmp_path)) == [path]
  with pytest.raises(tensor_file.CheckpointError, match="OWNER/NAME"):
    hub.resolve(str(tmp_path / "none" / "at.all"))
  refused(tmp_path / "none.safetensors", "no checkpoint at")
  (tmp_path / "a.txt").write_text("x")
  refused(tmp_path / "a.txt", "expected a file that ends in")


def cache(folder, repo="facebook/dinov2-large"):
  """A repository as huggingface_hub keeps it, without the network."""
  place = folder / ("models--" + repo.replace("/", "--"))
  snapshot = place / "snapshots" / ("0" * 40)
  snapshot.mkdir(parents=True)
  (place / "blobs").mkdir()
  (place / "refs").mkdir()
  (place / "refs" / "main").write_text("0" * 40)
  write(place / "blobs" / "aa")
  (snapshot / "model.safetensors").symlink_to("../../blobs/aa")
  return place


def test_downloads_made_before_are_used_offline(tmp_path):
  pytest.importorskip("huggingface_hub", reason="huggingface_hub is missing")
  place = cache(tmp_path)
  options = dict(cache=str(tmp_path), offline=True)
  (path,) = hub.resolve("facebook/dinov2-large", **options)
  np.testing.assert_array_equal(open_file.open_file(path).read("b"), [1, 1, 1])
  with pytest.raises(tensor_file.CheckpointError, match="not in the cache"):
    hub.resolve("tencent/Hunyuan3D-2.1", **options)
  (place / "blobs" / "bb.incomplete").write_bytes(b"half")
  with pytest.raises(tensor_file.CheckpointError, match="was not finished"):
    hub.resolve("facebook/dinov2-large", **options)


def test_a_cache_without_its_blob_is_refused(tmp_path):
  pytest.importorskip("huggingface_hub", reason="huggingface_hub is missing")
  place = cache(tmp_path)
  (place / "blobs" / "aa").unlink()
  with pytest.raises(tensor_file.CheckpointError, match="not finished"):
    hub.resolve("facebook/dinov2-large", cache=str(tmp_path), offline=True)


def test_the_missing_package_is_named(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
  with pytest.raises(ImportError, match="extra 'hub'"):
    hub.resolve("owner/name")


def test_shards_without_an_index_are_joined(tmp_path):
  names = ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors")
  shards(tmp_path, names).unlink()
  # Any of them stands for all, and a folder has one checkpoint.
  assert open_file.find_files(tmp_path) == [tmp_path / names[0]]
  for name in names:
    file = open_file.open_file(tmp_path / name)
    for key, array in TENSORS.items():
      np.testing.assert_array_equal(file.read(key), array)
  write(tmp_path / names[1], TENSORS)
  refused(tmp_path / names[0], "both hold 'a'")
  (tmp_path / names[1]).unlink()
  refused(tmp_path / names[0], "1 are missing: m-00002-of-00002")


def test_a_shard_with_its_index_opens_the_whole(tmp_path):
  names = ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors")
  index = shards(tmp_path, names)
  index = index.rename(tmp_path / "m.safetensors.index.json")
  assert open_file.open_file(tmp_path / names[1]).path == index
