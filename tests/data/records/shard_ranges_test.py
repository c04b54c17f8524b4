"""Shards in a store, against ArrayRecord's own reader of files."""

import types

import numpy as np
import pytest

from sculpt4d_jax.data.loading import examples
from sculpt4d_jax.data.records import index as dataset_index
from sculpt4d_jax.data.records import shard_ranges
from sculpt4d_jax.data.records import shards
from tests.data import small_records
from tests.io import emulated

pytest.importorskip("array_record", reason="needs the extra `data`")


class _Bytes:
  """A path whose object is in memory, and which counts what is read."""

  def __init__(self, content):
    self.content = content
    self.requests = 0

  def stat(self):
    return types.SimpleNamespace(st_size=len(self.content))

  def read_range(self, begin, end):
    self.requests += 1
    return self.content[begin:end]


# Around a block of 65,536 bytes with a header of 24, a chunk's header of 40, and
# the sizes of one, two and three bytes that a record's own size takes.
_SIZES = [
  0,
  1,
  127,
  128,
  16_383,
  16_384,
  65_447,
  65_472,
  65_512,
  65_536,
  200_000,
]


def _shard(tmp_path, sizes):
  rng = np.random.default_rng(len(sizes))
  contents = [rng.bytes(size) for size in sizes]
  entries = (("clip", "view", i, x) for i, x in enumerate(contents))
  path = tmp_path / "x.arrayrecord"
  shards.write_shard(path, entries, {})
  return path, contents


@pytest.mark.parametrize("turn", range(len(_SIZES)))
def test_entries_of_awkward_sizes(tmp_path, turn):
  path, contents = _shard(tmp_path, _SIZES[turn:] + _SIZES[:turn])
  reader = shard_ranges.RangeReader(_Bytes(path.read_bytes()))
  assert reader.num_records() == len(contents) + 1  # Table of contents.
  for position in np.random.default_rng(0).permutation(len(contents)):
    assert reader.read(int(position)) == contents[position]


def test_neighbours_are_read_ahead(tmp_path):
  path, contents = _shard(tmp_path, [1000] * 100)
  source = _Bytes(path.read_bytes())
  reader = shard_ranges.RangeReader(source)
  opened = source.requests
  for position, content in enumerate(contents):
    assert reader.read(position) == content
  assert source.requests == opened + 1


def test_damage_is_told(tmp_path):
  path, _ = _shard(tmp_path, [1000, 1000])
  content = path.read_bytes()
  with pytest.raises(shards.RecordError, match="no shard, or cut off"):
    shard_ranges.RangeReader(_Bytes(content[:-1000]))
  with pytest.raises(shards.RecordError, match="no shard, or cut off"):
    shard_ranges.RangeReader(_Bytes(b"x" * 2**18))
  damaged = bytearray(content)
  damaged[64 + 8] ^= 0xFF  # The size of the first entry's chunk.
  with pytest.raises(shards.RecordError, match="entry 0 cannot be read"):
    shard_ranges.RangeReader(_Bytes(bytes(damaged))).read(0)


@pytest.mark.parametrize("scheme", ["gs", "s3"])
def test_examples_from_a_store_equal_those_from_a_disk(scheme, tmp_path):
  small_records.make(tmp_path / "local")
  with emulated.store(scheme, one_in=10) as bucket:
    small_records.make(bucket / "remote")
    read = {}
    for name, folder, cache in (
      ("local", tmp_path / "local", ""),
      ("ranges", bucket / "remote", ""),
      ("copies", bucket / "remote", str(tmp_path / "cache")),
    ):
      config = examples.ExampleConfig(
        contents=("geometry",), num_frames=3, num_parts=1, cache=cache
      )
      reader = examples.ExampleReader(
        dataset_index.read_index(folder), "train", config
      )
      read[name] = [
        reader.read(row, np.random.default_rng(row))
        for row in range(len(reader))
      ]
  for name in ("ranges", "copies"):
    for example, expected in zip(read[name], read["local"], strict=True):
      assert set(example) == set(expected)
      for key, value in expected.items():
        np.testing.assert_array_equal(example[key], value)
