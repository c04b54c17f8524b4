"""Checkpoints in an object store, written by TensorStore.

Orbax renames a finished checkpoint, or asks Google's client about the bucket,
and does not support S3. TensorStore is therefore used directly, in the same way
for both kinds of store. Every array is a zarr 3 array whose chunks are the
shards of the devices, each with a checksum:

  FOLDER/STEP.ATTEMPT/data/NUMBER/     the arrays
  FOLDER/STEP.ATTEMPT/arrays.json      their names, shapes, dtypes and chunks
  FOLDER/commits/STEP.ATTEMPT.PROCESS-of-PROCESSES
                                       one object a process, written last
  FOLDER/owner                         the start of the run that writes here

A checkpoint is complete when the objects of all processes exist; no process
waits for another, and nothing is renamed. ATTEMPT distinguishes what several
starts of a run wrote for one step.

A state is copied to the host and written by a thread. TensorStore retries for
minutes; a save that still fails costs that checkpoint, not the run.

A store has no locks, and a run that seems dead may still write. The newest start
therefore owns the folder: an older one finds another name in `owner` before it
commits, and ends.
"""

from collections.abc import Mapping
from concurrent import futures
import dataclasses
import functools
import json
import re
import secrets
import time
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import paths

_COMMIT = re.compile(r"(\d+)\.(\d+)\.(\d+)-of-(\d+)$")
_MAX_LISTED = 256  # Largest number of checkpoints in a broadcast listing.
_READ_AHEAD = 64  # Number of arrays that are read at once.
# TensorStore's retries of a request: more than a quarter of an hour in all.
_RETRIES = dict(max_retries=40, initial_delay="1s", max_delay="30s")


class TakenOverError(UserError):
  """Another run writes to the folder, and this one has to end."""


@dataclasses.dataclass(frozen=True)
class _Shards:
  """The shards of an array that this process holds, on the host.

  Attributes:
    shape: Shape of the whole array.
    dtype: Name of its dtype.
    chunk: Shape of a shard.
    parts: Indices into the whole array, and the numbers there.
  """

  shape: tuple[int, ...]
  dtype: str
  chunk: tuple[int, ...]
  parts: list[tuple[tuple[slice, ...], np.ndarray]]


class Manager:
  """The part of Orbax's CheckpointManager that `Checkpoints` uses."""

  def __init__(self, folder: paths.StorePath, max_to_keep: int | None):
    self._folder = folder
    self._max_to_keep = max_to_keep
    self._pool = futures.ThreadPoolExecutor(1, "checkpoints")
    self._pending: futures.Future | None = None
    # The start time of the run. All processes must write to the same place,
    # independent of their clocks. It fits into int32, JAX's default integer.
    self._attempt = int(_told(np.int32(int(time.time()) % 2**31)))
    self._steps: dict[int, int] = {}
    # Of the first process, which alone decides whether the run has to end.
    self._owner = f"{self._attempt}-{secrets.token_hex(8)}"
    self._is_taken_over = False
    if jax.process_index() == 0:
      (folder / "owner").write_text(self._owner)
    self.reload()
    # No save is in progress yet: what is not complete will never be.
    if jax.process_index() == 0:
      self._remove_partial()

  def reload(self) -> None:
    """Lists the store again; all processes get the first one's list."""
    # A broadcast needs the same shape on all processes: padded with -1.
    listed = np.full((_MAX_LISTED, 2), -1, np.int32)
    if jax.process_index() == 0:
      whole = sorted(self._whole())[-_MAX_LISTED:]
      listed[: len(whole)] = np.array(whole, np.int32).reshape(-1, 2)
    # The latest of several attempts at a step.
    self._steps = {int(s): int(a) for s, a in _told(listed) if s >= 0}

  def all_steps(self) -> list[int]:
    """Steps that were complete when the store was listed, or saved since."""
    return sorted(self._steps)

  def latest_step(self) -> int | None:
    """The newest of `all_steps`; None if there is none."""
    return max(self._steps, default=None)

  def save(self, step: int, args: Any, force: bool = True) -> None:
    """Copies a tree of arrays to the host and starts to write it.

    Raises:
      TakenOverError: Another run began to write to the folder.
    """
    del force
    self.settle()
    if bool(_told(np.int32(self._is_taken_over))):
      raise TakenOverError(
        f"Another run took over {self._folder}, and this one ends. A second"
        " run needs another --workdir."
      )
    arrays = {name: _to_host(x) for name, x in args.item.items()}
    self._pending = self._pool.submit(self._write, step, arrays)
    # Listed at once, so that the step is not saved twice; a failure removes it.
    self._steps[step] = self._attempt

  def settle(self) -> None:
    """Waits for the last save; a failure is logged and costs that save."""
    try:
      self.wait_until_finished()
    except Exception as error:
      logging.error("%s; the run continues without it.", error)

  def wait_until_finished(self) -> None:
    """Waits for the last save.

    Raises:
      StoreError: It could not be written.
    """
    pending, self._pending = self._pending, None
    if pending is not None:
      pending.result()

  def item_metadata(self, step: int) -> dict[str, Any]:
    """Shapes and dtypes of a checkpoint's arrays by name."""
    return {
      name: jax.ShapeDtypeStruct(tuple(entry["shape"]), entry["dtype"])
      for name, entry in self._arrays(step).items()
    }

  def restore(self, step: int, args: Any) -> dict[str, jax.Array]:
    """Arrays in the given shardings; each replica is read once.

    Raises:
      ValueError: A chunk is missing or damaged.
    """
    arrays = self._arrays(step)
    data = self._place(step) / "data"
    stores = {name: _open(data, arrays[name]) for name in args.item}
    readers = [
      _Reader(stores[name].result(), wanted)
      for name, wanted in args.item.items()
    ]
    restored = {}
    # A store takes long to answer, but answers many at once.
    for number, name in enumerate(args.item):
      for reader in readers[number : number + _READ_AHEAD]:
        reader.begin()
      restored[name] = readers[number].array()
      readers[number] = None  # Its numbers are on the device now.
    return restored

  def delete(self, step: int) -> None:
    """Removes a checkpoint."""
    attempt = self._steps.pop(step, None)
    if jax.process_index() == 0 and attempt is not None:
      self._remove(step, attempt)

  def put_aside(self, step: int) -> None:
    """Removes an unreadable checkpoint from the list; keeps its arrays."""
    attempt = self._steps.pop(step)
    if jax.process_index() == 0:
      for commit in self._commits(step, attempt):
        # A store cannot rename: without its commits a checkpoint is not listed.
        (self._folder / "unreadable" / commit.name).write_bytes(b"")
        commit.unlink(missing_ok=True)

  def reached_preemption(self, step: int) -> bool:
    """Whether the machines are preempted, told to all processes alike."""
    return multihost_utils.reached_preemption_sync_point(step)

  def close(self) -> None:
    """Waits for the last save, and stops the threads."""
    self.wait_until_finished()
    self._pool.shutdown()

  def _place(self, step: int, attempt: int | None = None) -> paths.StorePath:
    attempt = self._steps[step] if attempt is None else attempt
    return self._folder / f"{step}.{attempt}"

  def _arrays(self, step: int) -> dict[str, dict[str, Any]]:
    return json.loads((self._place(step) / "arrays.json").read_text())

  def _write(self, step: int, arrays: Mapping[str, _Shards]) -> None:
    try:
      self._write_arrays(step, arrays)
    except Exception as error:
      self._steps.pop(step, None)
      raise paths.StoreError(
        f"checkpoint {step} could not be written to {self._folder}:"
        f" {str(error).splitlines()[0][:300]}"
      ) from error

  def _write_arrays(self, step: int, arrays: Mapping[str, _Shards]) -> None:
    place = self._place(step, self._attempt)
    table = {
      name: dict(number=number, shape=a.shape, dtype=a.dtype, chunk=a.chunk)
      for number, (name, a) in enumerate(arrays.items())
    }
    is_first = jax.process_index() == 0
    opened = [_open(place / "data", entry) for entry in table.values()]
    writes = []
    # All arrays are opened, and all shards written, concurrently.
    for store, array in zip(opened, arrays.values()):
      target = store.result()
      if is_first:
        writes.append(_write_metadata(target))
      for index, numbers in array.parts:
        writes.append(target[index].write(numbers))
    for write in writes:
      write.result()
    if is_first:
      # Before the commit, because readers need the commit to find the table.
      (place / "arrays.json").write_text(json.dumps(table))
      if (self._folder / "owner").read_text() != self._owner:
        self._is_taken_over = True
        raise paths.StoreError("another run took over the folder")
    name = f"{step}.{self._attempt}"
    name += f".{jax.process_index()}-of-{jax.process_count()}"
    (self._folder / "commits" / name).write_bytes(b"")
    if is_first and self._max_to_keep is not None:
      self._remove_old()

  def _remove_old(self) -> None:
    whole = sorted(self._whole())
    for step, attempt in whole[: -self._max_to_keep]:
      self._steps.pop(step, None)
      self._remove(step, attempt)

  def _remove_partial(self) -> None:
    """Removes checkpoints that earlier starts of the run did not finish."""
    kept = {f"{step}.{attempt}" for step, attempt in self._steps.items()}
    kept |= {
      p.name.rpartition(".")[0] for p in (self._folder / "unreadable").iterdir()
    }
    for path in self._folder.iterdir():
      if re.fullmatch(r"\d+\.\d+", path.name) and path.name not in kept:
        step, attempt = map(int, path.name.split("."))
        self._remove(step, attempt)

  def _remove(self, step: int, attempt: int) -> None:
    for commit in self._commits(step, attempt):
      commit.unlink(missing_ok=True)
    # Commits went first: a removal that is interrupted leaves no checkpoint
    # that looks complete.
    self._place(step, attempt).rmtree()

  def _commits(self, step: int, attempt: int) -> list[paths.StorePath]:
    found = (self._folder / "commits").iterdir()
    return [p for p in found if p.name.startswith(f"{step}.{attempt}.")]

  def _whole(self) -> list[tuple[int, int]]:
    """Steps and attempts that all their processes have finished."""
    count: dict[tuple[int, int], int] = {}
    for path in (self._folder / "commits").iterdir():
      match = _COMMIT.match(path.name)
      if match is not None:
        step, attempt, _, total = map(int, match.groups())
        key = step, attempt
        # From the number of processes down; 0 is complete.
        count[key] = count.get(key, total) - 1
    return [key for key, missing in count.items() if missing == 0]


def _told(value: np.ndarray) -> np.ndarray:
  """The value of the first process, on all processes."""
  if jax.process_count() == 1:
    return value
  return np.asarray(multihost_utils.broadcast_one_to_all(value))


def _to_host(x: jax.Array) -> _Shards:
  """Copies the shards of an array that this process writes."""
  x = x if isinstance(x, jax.Array) else jax.numpy.asarray(x)
  parts = [
    # A copy, because the next step donates the buffer.
    (_full(shard.index, x.shape), np.array(shard.data))
    for shard in x.addressable_shards
    # Of several copies of a shard one is written.
    if shard.replica_id == 0
  ]
  chunk = x.sharding.shard_shape(x.shape)
  return _Shards(tuple(x.shape), x.dtype.name, tuple(chunk), parts)


def _full(index: tuple[slice, ...], shape: tuple[int, ...]):
  """An index with start and stop of every slice filled in."""
  return tuple(slice(*s.indices(size)[:2]) for s, size in zip(index, shape))


def _open(data: paths.StorePath, entry: Mapping[str, Any]):
  """Starts to open an array; reading a missing chunk is an error.

  The store is not asked: the table of arrays says what the array's own file
  says.
  """
  import tensorstore as ts  # A dependency of Orbax.

  spec = {
    "driver": "zarr3",
    "kvstore": paths.kvstore(data / f"{entry['number']:05d}"),
    "metadata": {
      "shape": list(entry["shape"]),
      "data_type": entry["dtype"],
      "chunk_grid": {
        "name": "regular",
        "configuration": {"chunk_shape": [max(n, 1) for n in entry["chunk"]]},
      },
      "codecs": [
        {"name": "bytes", "configuration": {"endian": "little"}},
        {"name": "crc32c"},
      ],
    },
    # Chunks of zeros must exist too, or a missing one could not be told from a
    # lost one.
    "store_data_equal_to_fill_value": True,
    "fill_missing_data_reads": False,
  }
  return ts.open(spec, open=True, context=_context(), assume_metadata=True)


def _write_metadata(store: Any):
  """Begins to write the file by which other programs know an array.

  TensorStore would first ask whether there is one, twice: two requests more for
  every array.
  """
  metadata = store.spec().to_json()["metadata"]
  return store.kvstore.write("zarr.json", json.dumps(metadata).encode())


@functools.cache
def _context():
  """What all arrays share: connections, and credentials that are found once."""
  import tensorstore as ts

  return ts.Context(
    {"gcs_request_retries": _RETRIES, "s3_request_retries": _RETRIES}
  )


class _Reader:
  """Reads what this process needs of an array, equal parts once.

  Where another row of a mesh axis holds copies, the first row's processes read,
  and the devices' network brings it to the others; see `_replica_axis`.
  """

  def __init__(self, store: Any, wanted: jax.ShapeDtypeStruct):
    self._store, self._wanted = store, wanted
    self._shape = tuple(wanted.shape)
    self._axis = _replica_axis(wanted.sharding)
    self._begun: dict[Any, Any] = {}

  def begin(self) -> None:
    """Begins all reads that have not begun."""
    sharding, shape = self._wanted.sharding, self._shape
    if self._axis is not None:
      sharding, shape = self._stacked()
    for index in sharding.addressable_devices_indices_map(shape).values():
      if self._axis is None:
        self._begin(index)
      elif self._is_first(index):
        self._begin(index[1:])

  def array(self) -> jax.Array:
    """The array in the wanted sharding.

    Raises:
      ValueError: A chunk is missing or damaged.
    """
    self.begin()
    if self._axis is not None:
      return self._broadcast()
    return jax.make_array_from_callback(
      self._shape, self._wanted.sharding, self._numbers
    )

  def _begin(self, index: tuple[slice, ...]) -> Any:
    index = _full(index, self._shape)
    key = tuple((s.start, s.stop) for s in index)
    if key not in self._begun:
      self._begun[key] = self._store[index].read()
    return self._begun[key]

  def _numbers(self, index: tuple[slice, ...]) -> np.ndarray:
    numbers = np.asarray(self._begin(index).result())
    return numbers.astype(self._wanted.dtype, copy=False)

  def _stacked(self) -> tuple[jax.sharding.NamedSharding, tuple[int, ...]]:
    """Sharding and shape of all copies, stacked along the axis."""
    mesh, spec = self._wanted.sharding.mesh, self._wanted.sharding.spec
    spec = jax.sharding.PartitionSpec(self._axis, *spec)
    sharding = jax.sharding.NamedSharding(mesh, spec)
    return sharding, (mesh.shape[self._axis], *self._shape)

  def _is_first(self, index: tuple[slice, ...]) -> bool:
    return not index[0].start

  def _broadcast(self) -> jax.Array:
    """Reads on the first row of the axis, and sums over it, zeros elsewhere.

    Numbers are summed as integers, so that every bit is preserved: floating
    point zeros would turn -0.0 into 0.0 and may change NaNs.
    """
    kind = np.dtype(self._wanted.dtype)
    bits = np.dtype(f"uint{8 * kind.itemsize}")

    def part(index: tuple[slice, ...]) -> np.ndarray:
      if self._is_first(index):
        return self._numbers(index[1:])[None].view(bits)
      full = _full(index[1:], self._shape)
      return np.zeros((1, *(s.stop - s.start for s in full)), bits)

    sharding, shape = self._stacked()
    rows = jax.make_array_from_callback(shape, sharding, part)

    def collect(x: jax.Array) -> jax.Array:
      return jax.lax.bitcast_convert_type(x.sum(0, dtype=bits), kind)

    return jax.jit(collect, out_shardings=self._wanted.sharding)(rows)


def _replica_axis(sharding: Any) -> str | None:
  """The mesh axis along which only the first row needs to read, if any.

  This applies if other processes than those of the first copy hold the other
  copies of the parameters: these receive it over the devices' network.
  """
  mesh = getattr(sharding, "mesh", None)
  if mesh is None or jax.process_count() == 1 or mesh.shape["data"] == 1:
    return None
  if "data" in jax.tree.leaves(tuple(sharding.spec)):
    return None
  rows = [{d.process_index for d in row.flat} for row in mesh.devices]
  return None if any(rows[0] & row for row in rows[1:]) else "data"
