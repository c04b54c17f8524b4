"""Units of work: a few clips of one asset, or of the procedural source.

A unit is named by the hash of its asset's content, so finished work is
recognised wherever the asset is stored. It is a small value that can be pickled
and sent to any machine that sees the same files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import fnmatch
import json
import os
import pathlib
from typing import Any

import numpy as np

from sculpt4d_jax.data.preparation import prepare
from sculpt4d_jax.data.preparation import windows as windows_lib
from sculpt4d_jax.data.procedural import meshes as procedural_meshes
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.io import paths
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import asset_files

AssetLimits = animated_assets.AssetLimits
PathLike = str | os.PathLike

CREDITS_FILE = "sources.json"
PROCEDURAL = "procedural"
# 24 hexadecimal digits are 96 bits: no two assets collide.
_ID_DIGITS = 24


@dataclasses.dataclass(frozen=True)
class Credit:
  """Source and licence of an asset.

  Attributes:
    licence: SPDX name, for instance "CC0-1.0"; "" if unknown.
    source: A repository or package, with its version.
    authors: Names to credit.
    object: Name shared by assets of the same object (the same character in two
      formats), which are kept on one side of the split; "" makes the asset a
      separate object.
  """

  licence: str = ""
  source: str = ""
  authors: str = ""
  object: str = ""


@dataclasses.dataclass(frozen=True)
class Unit:
  """Some clips to prepare.

  Attributes:
    name: Display name: the asset's path in its folder.
    location: The asset's path, or `PROCEDURAL`.
    content: Hash of the asset's content.
    first: The first of the clips that are taken, or the first seed.
    count: Number of clips in this unit.
    credit: Credit of the asset.
  """

  name: str
  location: str
  content: str
  first: int
  count: int
  credit: Credit = Credit()

  @property
  def id(self) -> str:
    """Name of the unit's files."""
    return f"{self.content[:_ID_DIGITS]}-{self.first:06d}-{self.count}"


@dataclasses.dataclass(frozen=True)
class ClipJob:
  """One record to make.

  Attributes:
    clip: Identity of the clip.
    asset: Identity of its asset, by which the data is split.
    name: Display name.
    times: Times of the frames, seconds.
    seed: Seed of all random draws.
    play: Gives the animation.
    left_out: Gives the meshes that were no part of it, once it was played.
  """

  clip: str
  asset: str
  name: str
  times: np.ndarray
  seed: int
  play: Callable[[], deforming_mesh.DeformingMesh]
  left_out: Callable[[], Sequence[asset_files.LeftOut]] = tuple


def read_credits(folder: PathLike) -> dict[str, Credit]:
  """Credits of a folder of assets, by patterns of their names.

  They are in its `sources.json`: a list of objects with "files" (a pattern, as
  "kaykit/*.glb"), "licence", "source", "authors" and "object"; see `Credit`.

  Raises:
    ValueError: The file is malformed.
  """
  path = pathlib.Path(folder) / CREDITS_FILE
  if not path.is_file():
    return {}
  try:
    return {
      str(row["files"]): Credit(
        **{
          key: str(row.get(key, ""))
          for key in ("licence", "source", "authors", "object")
        }
      )
      for row in json.loads(path.read_text())
    }
  except (ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(
      f"{path} must be a list of objects with files, licence, source and"
      f" authors ({type(error).__name__}: {error})."
    ) from error


def credit_of(name: str, credits: Mapping[str, Credit]) -> Credit:
  """The credit of the first pattern that a name matches."""
  for pattern, credit in credits.items():
    if fnmatch.fnmatchcase(name, pattern):
      return credit
  return Credit()


def procedural_units(
  first_seed: int, num_clips: int, clips_per_unit: int
) -> list[Unit]:
  """Units of the procedural source; every seed is a separate asset."""
  credit = Credit(
    "Apache-2.0", "sculpt4d_jax.data.procedural.solids", "this project"
  )
  last = first_seed + num_clips
  return [
    Unit(
      name=f"procedural {seed}",
      location=PROCEDURAL,
      content=PROCEDURAL,
      first=seed,
      count=min(clips_per_unit, last - seed),
      credit=credit,
    )
    for seed in range(first_seed, last, clips_per_unit)
  ]


def plan_asset(
  asset: Unit,
  settings: prepare.PreparationSettings,
  limits: AssetLimits,
  clips_per_unit: int,
) -> list[Unit]:
  """The units of an asset.

  Args:
    asset: A unit whose clips are not known yet.
    settings: Settings; they decide which clips are taken.
    limits: Limits on the asset's size.
    clips_per_unit: Largest number of clips in a unit.

  Raises:
    AssetError: The asset cannot be used.
  """
  opened = animated_assets.AnimatedAsset(
    asset.location, limits, settings.attachments
  )
  count = len(windows_lib.choose_clips(len(opened.clips), settings))
  return [
    dataclasses.replace(
      asset, first=first, count=min(clips_per_unit, count - first)
    )
    for first in range(0, count, clips_per_unit)
  ]


def jobs(
  unit: Unit,
  settings: prepare.PreparationSettings,
  limits: AssetLimits,
) -> Iterator[ClipJob]:
  """The records of a unit.

  Raises:
    AssetError: The asset cannot be used.
  """
  if unit.location == PROCEDURAL:
    for seed in range(unit.first, unit.first + unit.count):
      yield _procedural_job(seed, settings)
    return
  asset = animated_assets.AnimatedAsset(
    unit.location, limits, settings.attachments
  )
  chosen = windows_lib.choose_clips(len(asset.clips), settings)
  for number in chosen[unit.first : unit.first + unit.count]:
    clip = asset.clips[number]
    windows = windows_lib.window_times(clip.start, clip.end, settings)
    for window, times in enumerate(windows):
      identity = f"{unit.content[:_ID_DIGITS]}/{clip.index}/{window}"
      yield ClipJob(
        clip=identity,
        asset=unit.content[:_ID_DIGITS],
        name=clip.name,
        times=times,
        seed=_seed(unit.content, clip.index, window),
        # Played only when the unit gets to it; defaults bind the loop's
        # variables.
        play=lambda clip=clip, times=times: asset.play(clip, times),
        left_out=lambda: asset.left_out,
      )


def details(unit: Unit, job: ClipJob) -> dict[str, Any]:
  """Provenance of a record."""
  return {
    "asset": job.asset,
    "asset_name": unit.name,
    "content_hash": unit.content,
    "clip_name": job.name,
    "start": round(float(job.times[0]), 6),
    "end": round(float(job.times[-1]), 6),
    **dataclasses.asdict(unit.credit),
  }


def _procedural_job(
  seed: int, settings: prepare.PreparationSettings
) -> ClipJob:
  clip = solids.make_clip(seed, settings.num_frames)
  identity = f"{PROCEDURAL}-{seed}"
  return ClipJob(
    clip=f"{identity}/0/0",
    asset=identity,
    name=clip.family,
    times=np.arange(settings.num_frames) / settings.num_frames,
    seed=seed,
    play=lambda: procedural_meshes.deforming_clip(clip),
  )


def _seed(content: str, clip: int, window: int) -> int:
  """Seed of a record: the same on every machine."""
  # From content and indices alone. Python's hash() differs between processes.
  return (int(content[:12], 16) * 1_000_003 + clip * 1009 + window) % 2**62


def find_assets(folders: Sequence[PathLike]) -> list[Unit]:
  """All assets under some folders, without duplicates; clips not yet known.

  Raises:
    ValueError: A folder does not exist or its credits are malformed.
  """
  units: dict[str, Unit] = {}
  for folder in folders:
    folder = paths.on_disk(folder, "--assets")
    credits = read_credits(folder)
    for path in animated_assets.find_assets(folder):
      name = path.relative_to(folder).as_posix()
      content = animated_assets.content_hash(path)
      # The first file of equal content counts; copies are ignored.
      units.setdefault(
        content,
        Unit(name, os.fspath(path), content, 0, 0, credit_of(name, credits)),
      )
  return list(units.values())
