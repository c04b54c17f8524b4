"""Shards: the ArrayRecord files that records are kept in.

A shard holds all accepted clips of ONE unit of work (clips of an asset, or some
procedural clips), so that remaking a shard touches no other and any number of
workers can write independently. Its last entry is a table of contents; a shard
appears complete or not at all. Entries are stored one by one and
uncompressed: pictures are already compressed, and points in float16 hardly
compress.

Needs the package array-record, which only this file imports.
"""

import collections
from collections.abc import Iterable, Mapping
import json
import os
import threading
import types
from typing import TYPE_CHECKING, Any

from sculpt4d_jax.data.records import schema
from sculpt4d_jax.data.records import shard_ranges
from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io import paths

if TYPE_CHECKING:
  from array_record.python import array_record_module

RecordError = schema.RecordError

SUFFIX = ".arrayrecord"
# One entry a chunk: reading an entry then reads no other. `shard_ranges` relies
# on it, as it does on chunks without compression.
_WRITE_OPTIONS = "group_size:1,uncompressed"
# Random access: reading ahead would fetch entries that are not wanted.
_READ_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_MAX_OPEN = 64

Entry = tuple[str, str, int, bytes]  # Clip, kind, part, content.


def write_shard(
  path: paths.PathLike, entries: Iterable[Entry], details: Mapping[str, Any]
) -> int:
  """Writes a shard.

  Args:
    path: Output file, ending in .arrayrecord.
    entries: Iterator of entries; they need not fit into memory. Parts of a kind
      are numbered from 0.
    details: Clip -> JSON values that its table of contents holds besides the
      places of its entries. Read after all entries are written.

  Returns:
    Bytes of all entries.

  Raises:
    RecordError: The parts of a kind do not count from 0.
    OutputError: The file cannot be written.
  """
  module = _array_record()
  clips: dict[str, dict[str, list[int]]] = {}
  count = size = 0
  with atomic.atomic_path(path) as temporary:
    writer = module.ArrayRecordWriter(os.fspath(temporary), _WRITE_OPTIONS)
    try:
      for clip, kind, part, content in entries:
        places = clips.setdefault(clip, {}).setdefault(kind, [])
        if part != len(places):
          raise RecordError(
            f"{clip}: part {part} of {kind} follows {len(places)} others."
          )
        places.append(count)
        writer.write(content)
        count, size = count + 1, size + len(content)
      # Last, because places are known only when all entries are written.
      contents = {
        "version": schema.VERSION,
        "clips": {
          clip: {"entries": places, "details": details.get(clip, {})}
          for clip, places in clips.items()
        },
      }
      writer.write(json.dumps(contents).encode())
    finally:
      writer.close()
  return size


class ShardReader:
  """Reads entries of many shards; keeps the most recent ones open.

  May be pickled, and used by several threads; each process opens its own files.
  Shards in a store are read by ranges, or copied to a disk first.
  """

  def __init__(self, folder: paths.PathLike, cache: str = ""):
    """Opens no shard yet.

    Args:
      folder: Folder of the shards.
      cache: Folder on a disk that shards of a store are copied to when they
        are first needed; "" reads ranges of them instead.
    """
    self.folder = paths.of(folder)
    self._cache = cache
    self._reset()

  def _reset(self) -> None:
    self._open: collections.OrderedDict[str, Any] = collections.OrderedDict()
    self._contents: dict[str, dict[str, Any]] = {}
    self._lock = threading.Lock()

  # Open files and locks cannot be pickled.
  def __getstate__(self) -> dict[str, Any]:
    return {"folder": self.folder, "cache": self._cache}

  def __setstate__(self, state: dict[str, Any]) -> None:
    self.folder, self._cache = state["folder"], state["cache"]
    self._reset()

  def read(self, shard: str, position: int) -> bytes:
    """The bytes of an entry.

    Raises:
      RecordError: The shard is missing or damaged.
    """
    with self._lock:
      reader = self._reader(shard)
      if not isinstance(reader, shard_ranges.RangeReader):
        return self._read_file(reader, shard, position)
    return reader.read(position)  # Without the lock: ranges are independent.

  def _read_file(
    self,
    reader: "array_record_module.ArrayRecordReader",
    shard: str,
    position: int,
  ) -> bytes:
    try:
      return reader.read([position])[0]
    except Exception as error:  # Exceptions of the reader's C++ vary.
      raise RecordError(
        f"{self.folder / shard} is damaged: entry {position} cannot be read"
        f" ({str(error)[:200]})."
      ) from error

  def contents(self, shard: str) -> dict[str, Any]:
    """The table of contents: by clip, places of entries and details.

    It is read once and cached.

    Raises:
      RecordError: The shard is missing, damaged or of another version.
    """
    if shard in self._contents:
      return self._contents[shard]
    with self._lock:
      count = self._reader(shard).num_records()
    if not count:
      raise RecordError(f"{self.folder / shard} is empty.")
    try:
      contents = json.loads(self.read(shard, count - 1))
      version, clips = contents["version"], contents["clips"]
    except (ValueError, KeyError, TypeError) as error:
      raise RecordError(
        f"{self.folder / shard} has no table of contents; it was not written"
        " by this program."
      ) from error
    if version != schema.VERSION:
      raise RecordError(
        f"{self.folder / shard} is of version {version}, expected"
        f" {schema.VERSION}; prepare the assets again."
      )
    self._contents[shard] = clips
    return clips

  def close(self) -> None:
    """Closes all shards; a later read opens its shard again."""
    with self._lock:
      for reader in self._open.values():
        reader.close()
      self._open.clear()

  def _reader(
    self, shard: str
  ) -> "array_record_module.ArrayRecordReader | shard_ranges.RangeReader":
    if shard in self._open:
      self._open.move_to_end(shard)
      return self._open[shard]
    path = self.folder / shard
    if not path.is_file():
      raise RecordError(f"there is no shard {path}.")
    reader = self._open_path(path)
    self._open[shard] = reader
    # Processes may open about a thousand files, and a data set has many shards.
    if len(self._open) > _MAX_OPEN:
      _, oldest = self._open.popitem(last=False)
      oldest.close()
    return reader

  def _open_path(
    self, path: paths.LocalPath | paths.StorePath
  ) -> "array_record_module.ArrayRecordReader | shard_ranges.RangeReader":
    if paths.is_remote(path):
      if not self._cache:
        return shard_ranges.RangeReader(path)
      path = local_copies.fetch(path, self._cache)
    try:
      reader = _array_record().ArrayRecordReader(os.fspath(path), _READ_OPTIONS)
      is_whole = reader.ok()
    except ImportError:
      raise
    except Exception as error:
      raise RecordError(
        f"{path} is no ArrayRecord file ({str(error)[:200]})."
      ) from error
    if not is_whole:
      raise RecordError(f"{path} is no ArrayRecord file, or cut off.")
    return reader


def _array_record() -> types.ModuleType:
  try:
    from array_record.python import array_record_module
  except ImportError as error:
    raise MissingPackageError(
      "Records need the package array-record: pip install"
      " 'sculpt4d-jax[data]' or pip install array-record grain."
    ) from error
  return array_record_module
