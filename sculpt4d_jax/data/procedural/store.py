"""Records of procedural clips on disk, as memory-mapped arrays.

A store is a folder with one `.npy` file a field, the clip as first axis, and
`store.json`, which records its settings and the number of finished clips. An
interrupted store resumes where it stopped; a finished one is extended if more
clips are requested.

Clip i of a split is made from the seed `first_seed + i`, so splits whose seeds
do not overlap share no clip.
"""

from collections.abc import Mapping
import dataclasses
import json
import pathlib
from typing import Any

from absl import logging
import numpy as np
import tqdm

from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import atomic

_FORMAT = 1
_FIELDS = {
  "surface": np.float16,
  "samples": np.float16,
  "images": np.uint8,
}
_SAVE_EVERY = 64


class OtherKindError(UserError):
  """The records of a folder were made with other settings."""


@dataclasses.dataclass(frozen=True)
class RecordStore:
  """Finished records of one split.

  Attributes:
    surface: xyz, normal, label; float16 [clips, F, P, 7].
    samples: xyz, signed distance; float16 [clips, F, Q, 4].
    images: RGB on white, uint8 [clips, F, S, S, 3].
    first_seed: Seed of clip 0.
  """

  surface: np.ndarray
  samples: np.ndarray
  images: np.ndarray
  first_seed: int

  @property
  def num_clips(self) -> int:
    """Number of finished clips."""
    return len(self.surface)

  @property
  def num_frames(self) -> int:
    """Number of frames F of every clip."""
    return self.surface.shape[1]


def open_or_make(
  folder: str | pathlib.Path,
  *,
  num_clips: int,
  num_frames: int,
  first_seed: int,
  sizes: clip_records.RecordSizes,
) -> RecordStore:
  """Opens a store, after making missing clips.

  Args:
    folder: Folder of the files, which may not exist yet.
    num_clips: Clips of the split.
    num_frames: Frames F of a clip.
    first_seed: Seed of clip 0.
    sizes: Sizes of a record.

  Raises:
    OtherKindError: The folder holds records of another kind.
    atomic.OutputError: It cannot be written.
  """
  folder = pathlib.Path(folder)
  kind = dict(
    format=_FORMAT,
    num_clips=num_clips,
    num_frames=num_frames,
    first_seed=first_seed,
    sizes=json.loads(json.dumps(dataclasses.asdict(sizes))),
  )
  with atomic.output_errors(folder):
    folder.mkdir(parents=True, exist_ok=True)
    arrays, done = _open_arrays(folder, kind)
    if done < num_clips:
      _make_clips(folder, kind, arrays, done, sizes)
  return RecordStore(first_seed=first_seed, **arrays)


def _open_arrays(
  folder: pathlib.Path, kind: dict[str, Any]
) -> tuple[dict[str, np.ndarray], int]:
  """Maps the arrays of a store, new or not, and counts its finished clips."""
  status = folder / "store.json"
  if status.exists():
    found = json.loads(status.read_text())
    done = found.pop("done")
    # A store that is older than a field has its default.
    defaults = dataclasses.asdict(clip_records.RecordSizes())
    found["sizes"] = json.loads(json.dumps(defaults)) | found["sizes"]
    if _is_smaller(found, kind) and done == found["num_clips"]:
      _grow(folder, kind, done)
      found = kind
    if found != kind:
      raise OtherKindError(
        f"{folder} holds records of another kind: found {found}, expected"
        f" {kind}. Choose another folder, or delete it to make them anew."
      )
    mode = "r" if done == kind["num_clips"] else "r+"
    return {
      # An interrupted extension may have left larger arrays.
      name: np.load(folder / f"{name}.npy", mmap_mode=mode)[: kind["num_clips"]]
      for name in _FIELDS
    }, done
  arrays = {
    name: np.lib.format.open_memmap(
      folder / f"{name}.npy",
      mode="w+",
      dtype=_FIELDS[name],
      shape=(kind["num_clips"], *shape),
    )
    for name, shape in _shapes(kind).items()
  }
  _save_status(folder, kind, 0)
  return arrays, 0


def _is_smaller(found: Mapping, kind: Mapping) -> bool:
  """Whether stores differ only in their numbers of clips."""
  same = {**found, "num_clips": kind["num_clips"]} == kind
  return same and found["num_clips"] < kind["num_clips"]


def _grow(folder: pathlib.Path, kind: Mapping, done: int) -> None:
  """Copies the arrays of a finished store into larger ones."""
  for name, shape in _shapes(kind).items():
    path, larger = folder / f"{name}.npy", folder / f"{name}.larger.npy"
    old = np.load(path, mmap_mode="r")
    new = np.lib.format.open_memmap(
      larger, mode="w+", dtype=old.dtype, shape=(kind["num_clips"], *shape)
    )
    for clip in range(done):
      new[clip] = old[clip]
    new.flush()
    del old, new
  # The status is written last: until then, the store has its old size, with
  # files of either size.
  for name in _FIELDS:
    (folder / f"{name}.larger.npy").replace(folder / f"{name}.npy")
  _save_status(folder, kind, done)


def _shapes(kind: Mapping) -> dict[str, tuple[int, ...]]:
  sizes, frames = kind["sizes"], kind["num_frames"]
  points = sizes["num_uniform"] + sizes["num_sharp"]
  samples = sizes["num_near"] + sizes["num_volume"]
  side = sizes["image_size"]
  return {
    "surface": (frames, points, 7),
    "samples": (frames, samples, 4),
    "images": (frames, side, side, 3),
  }


def _make_clips(
  folder: pathlib.Path,
  kind: dict[str, Any],
  arrays: Mapping[str, np.ndarray],
  done: int,
  sizes: clip_records.RecordSizes,
) -> None:
  num_clips = kind["num_clips"]
  logging.info("Making clips %d to %d in %s.", done, num_clips, folder)
  progress = tqdm.tqdm(
    range(done, num_clips), initial=done, total=num_clips, desc="records"
  )
  for index in progress:
    clip = sizes.make_clip(kind["first_seed"] + index, kind["num_frames"])
    record = clip_records.make_record(clip, sizes)
    for name, array in arrays.items():
      array[index] = getattr(record, name)
    if (index + 1) % _SAVE_EVERY == 0 or index + 1 == num_clips:
      for array in arrays.values():
        array.flush()
      _save_status(folder, kind, index + 1)


def _save_status(folder: pathlib.Path, kind: dict[str, Any], done: int) -> None:
  atomic.write_bytes(
    folder / "store.json", json.dumps(kind | {"done": done}).encode()
  )
