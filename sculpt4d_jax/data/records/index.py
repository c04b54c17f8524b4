"""The index of a data set: its clips, their shards, and the split.

`dataset.json` is derived from the verdicts and the shards' tables of contents,
and can be rebuilt at any time. The hash of an asset decides whether it is on
the test side, with all its clips, and this does not change when the data set
grows. Assets of the same object (`units.Credit`) are split by the hash of its
name. Objects may also be put on the test side by name.
"""

from collections.abc import Collection, Iterable, Mapping
import dataclasses
import hashlib
import json
from typing import Any

from sculpt4d_jax.data.records import schema
from sculpt4d_jax.data.records import shards
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths

RecordError = schema.RecordError

FILE_NAME = "dataset.json"
SPLITS = ("train", "test")


@dataclasses.dataclass(frozen=True)
class IndexedClip:
  """A record of the data set.

  Attributes:
    clip: Identity of the clip.
    asset: Identity of its asset.
    shard: Name of its shard.
    entries: Kind -> positions of its entries in the shard.
    details: Provenance and measures.
  """

  clip: str
  asset: str
  shard: str
  entries: Mapping[str, list[int]]
  details: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class DatasetIndex:
  """Index of all records.

  Attributes:
    folder: Folder of the data set.
    settings: Settings of the preparation, as JSON.
    splits: Clips of "train" and of "test".
  """

  folder: Any
  settings: Mapping[str, Any]
  splits: Mapping[str, list[IndexedClip]]


def split_of(asset: str, test_fraction: float) -> str:
  """The side of an asset or object, by the hash of its identity."""
  digest = hashlib.sha256(asset.encode()).digest()
  share = int.from_bytes(digest[:8], "big") / 2**64
  return "test" if share < test_fraction else "train"


def read_verdicts(folder: paths.PathLike) -> list[dict[str, Any]]:
  """All verdicts of a data set, sorted by asset."""
  verdicts = [
    json.loads(path.read_text())
    for path in sorted((paths.of(folder) / "verdicts").glob("*.json"))
  ]
  return sorted(verdicts, key=lambda v: (v["asset_name"], v["unit"]))


def read_held_out(path: paths.PathLike) -> frozenset[str]:
  """Objects that a file puts on the test side.

  Args:
    path: A JSON file: {"held_out": [objects of the assets' sources.json]}.

  Raises:
    ValueError: There is no such file, or it is malformed.
  """
  try:
    names = json.loads(paths.of(path).read_text())["held_out"]
    if not isinstance(names, list) or not all(
      isinstance(name, str) and name for name in names
    ):
      raise TypeError("held_out is not a list of names")
  except (OSError, ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{path} must be a JSON file with a list of objects, held_out"
      f" ({type(error).__name__}: {error})."
    ) from error
  return frozenset(names)


def write_index(
  folder: paths.PathLike,
  verdicts: Iterable[Mapping[str, Any]],
  test_fraction: float,
  held_out: Collection[str] = (),
) -> DatasetIndex:
  """Indexes all finished shards.

  Args:
    folder: Folder of the data set.
    verdicts: Its verdicts, from `read_verdicts`. There is a file for each unit,
      which takes long to read from a store: read them once for all pages.
    test_fraction: Fraction of the assets that are held out for testing.
    held_out: Objects that are in the test split independent of their hash.

  Raises:
    ValueError: The fraction is out of range.
    RecordError: A shard is missing or damaged.
    OutputError: The index cannot be written.
  """
  if not 0 <= test_fraction < 1:
    raise UserError(f"test_fraction={test_fraction} must lie in [0, 1).")
  folder = paths.of(folder)
  reader = shards.ShardReader(folder / "shards")
  splits: dict[str, list[dict[str, Any]]] = {name: [] for name in SPLITS}
  for verdict in verdicts:
    if not verdict["shard"]:
      continue
    for clip, content in reader.contents(verdict["shard"]).items():
      asset = content["details"]["asset"]
      same = content["details"].get("object") or asset
      side = split_of(same, test_fraction)
      splits["test" if same in held_out else side].append(
        dataclasses.asdict(
          IndexedClip(
            clip,
            asset,
            verdict["shard"],
            content["entries"],
            content["details"],
          )
        )
      )
  reader.close()
  settings = json.loads((folder / "settings.json").read_text())
  document = {
    "version": schema.VERSION,
    "test_fraction": test_fraction,
    "held_out": sorted(held_out),
    "settings": settings,
    "splits": splits,
  }
  atomic.write_bytes(folder / FILE_NAME, json.dumps(document).encode())
  return read_index(folder)


def read_index(folder: paths.PathLike) -> DatasetIndex:
  """Reads the index of a data set.

  Raises:
    RecordError: There is none, or one of another version.
  """
  folder = paths.of(folder)
  path = folder / FILE_NAME
  if not path.is_file():
    raise RecordError(
      f"there is no data set at {folder}: {FILE_NAME} is missing."
      " docs/data.md says how one is made of assets."
    )
  try:
    document = json.loads(path.read_text())
    version = document["version"]
    splits = {
      name: [IndexedClip(**clip) for clip in document["splits"][name]]
      for name in SPLITS
    }
    settings = document["settings"]
  except (ValueError, KeyError, TypeError) as error:
    raise RecordError(f"{path} is damaged: {error}.") from error
  if version != schema.VERSION:
    raise RecordError(
      f"{path} is of version {version}, expected {schema.VERSION};"
      " prepare the assets again."
    )
  return DatasetIndex(folder, settings, splits)
