"""Reads entries of a shard in a store by byte ranges.

ArrayRecord's reader only supports files. The output of `shards.write_shard` is
simple enough to read without it: every entry is an uncompressed chunk, and the
file's last block points to the table of chunks.

  A file is divided into blocks of 64 KiB that begin with a header of 24 bytes,
  also within chunks. A chunk is a header of 40 bytes and its data: a
  compression type (0 is none), the length of the sizes, the sizes, and the
  records. Chunk positions are offsets in the file, including block headers. The
  last block's chunk has the position of the table: a chunk whose records are
  protocol buffers, the first one about the file, each other one with the
  position of a chunk.

Up to `READ_AHEAD` bytes are read at once, because a clip's entries are
consecutive.

Source: google/riegeli, doc/riegeli_records_file_format.md; google/array_record,
cpp/layout.proto.
"""

import struct
import threading

from sculpt4d_jax.data.records import schema
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import paths

RecordError = schema.RecordError

READ_AHEAD = 4 << 20  # Bytes.
_BLOCK, _BLOCK_HEADER = 1 << 16, 24
_CHUNK_HEADER = struct.Struct("<QQQQQ")


class RangeReader:
  """Reads entries of one shard; may be used by several threads."""

  def __init__(self, path: paths.StorePath):
    """Reads the table of chunks: two small ranges.

    Raises:
      RecordError: The object is not a shard written by `write_shard`.
    """
    self._path = path
    self._lock = threading.Lock()
    self._span = (0, b"")  # Its offset in the file, and its bytes.
    size = path.stat().st_size
    try:
      if size < 2 * _BLOCK or size % _BLOCK:
        raise UserError(f"{size} bytes are no whole number of blocks")
      end = _records(path.read_range(size - _BLOCK, size), size - _BLOCK)
      self._end = _field_1(end[0])
      table = _records(path.read_range(self._end, size - _BLOCK), self._end)
      self._begins = [_field_1(record) for record in table[1:]]
    except (ValueError, IndexError, struct.error) as error:
      raise RecordError(f"{path} is no shard, or cut off ({error}).") from error

  def num_records(self) -> int:
    """Number of entries, the table of contents included."""
    return len(self._begins)

  def read(self, position: int) -> bytes:
    """The bytes of an entry.

    Raises:
      RecordError: It is damaged.
    """
    if not 0 <= position < len(self._begins):
      raise RecordError(
        f"{self._path} has {len(self._begins)} entries, not an entry"
        f" {position}."
      )
    bounds = [*self._begins, self._end]
    begin, end = bounds[position], bounds[position + 1]
    try:
      (record,) = _records(self._range(begin, end), begin)
    except (ValueError, IndexError, struct.error) as error:
      raise RecordError(
        f"{self._path} is damaged: entry {position} cannot be read ({error})."
      ) from error
    return record

  def close(self) -> None:
    """Frees the bytes read ahead; the reader can still be used."""
    self._span = (0, b"")

  def _range(self, begin: int, end: int) -> bytes:
    with self._lock:
      first, content = self._span
    if not (first <= begin and end <= first + len(content)):
      first = begin
      content = self._path.read_range(
        begin, min(max(end, begin + READ_AHEAD), self._end)
      )
      with self._lock:
        self._span = first, content
    return content[begin - first : end - first]


def _records(content: bytes, begin: int) -> list[bytes]:
  """The records of the chunk at the beginning of a range of the file."""
  data = _without_block_headers(content, begin)
  _, size, _, kind, decoded = _CHUNK_HEADER.unpack_from(data)
  if kind & 0xFF != ord("r"):
    raise UserError("there is no chunk of records")
  data = data[_CHUNK_HEADER.size : _CHUNK_HEADER.size + size]
  if len(data) != size or data[0] != 0:
    raise UserError("the chunk is cut off or compressed")
  length, place = _varint(data, 1)
  records, begin = [], place + length
  for _ in range(kind >> 8):
    size, place = _varint(data, place)
    records.append(data[begin : begin + size])
    begin += size
  if begin != len(data) or sum(map(len, records)) != decoded:
    raise UserError("sizes do not add up")
  return records


def _without_block_headers(content: bytes, begin: int) -> bytes:
  parts, position = [], 0
  while position < len(content):
    offset = (begin + position) % _BLOCK
    skipped = max(_BLOCK_HEADER - offset, 0)
    length = _BLOCK - offset
    parts.append(content[position + skipped : position + length])
    position += length
  return b"".join(parts)


def _varint(data: bytes, place: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = data[place]
    value, shift, place = value | (byte & 0x7F) << shift, shift + 7, place + 1
    if byte < 0x80:
      return value, place


def _field_1(message: bytes) -> int:
  """The integer in field 1 of a protocol buffer."""
  if message[:1] != b"\x08":
    raise UserError("a position is missing")
  return _varint(message, 1)[0]
