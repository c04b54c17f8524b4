"""Prepares one unit: writes its clips to a shard, its verdicts to a file.

shards/ID.arrayrecord   the accepted clips
previews/ID/N.jpg       three pictures of each clip that got so far
verdicts/ID.json        the outcome of all clips; written last, so a unit with
verdicts is done
"""

from collections.abc import Iterator
import dataclasses
import importlib.metadata
import io
import json
import platform
from typing import Any

import numpy as np
from PIL import Image

from sculpt4d_jax.data.preparation import isolation
from sculpt4d_jax.data.preparation import prepare as preparation
from sculpt4d_jax.data.preparation import units as asset_units
from sculpt4d_jax.data.records import schema
from sculpt4d_jax.data.records import shards
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths
from sculpt4d_jax.io.assets import asset_files

AssetError = asset_files.AssetError
Unit = asset_units.Unit

_PACKAGES = (
  "numpy",
  "scipy",
  "libigl",
  "embreex",
  "scikit-image",
  "trimesh",
  "jax",
)
_PREVIEW_SIZE = 144
_PAPER = (238, 238, 236)


def verdict_path(output: paths.PathLike, unit: Unit) -> Any:
  """The file of a unit's verdict."""
  return paths.of(output) / "verdicts" / f"{unit.id}.json"


def prepare_isolated(
  unit: Unit,
  settings: preparation.PreparationSettings,
  limits: asset_files.AssetLimits,
  output: str,
  bounds: dict[str, Any],
) -> dict[str, Any]:
  """Prepares a unit in an isolated process, unless it is done.

  Args:
    unit: The clips.
    settings: Settings of the records.
    limits: Limits on an asset's size.
    output: The folder of the data set.
    bounds: Limits of the process: memory_bytes, seconds, threads.

  Returns:
    Content of the unit's verdict file.

  Raises:
    OutputError: The folder cannot be written to.
  """
  path = verdict_path(output, unit)
  if path.is_file():
    return json.loads(path.read_text())
  outcome = isolation.run(prepare, unit, settings, limits, output, **bounds)
  return _write_verdict(unit, outcome, output)


def reject(unit: Unit, outcome: isolation.Outcome, output: str) -> None:
  """Records that an asset cannot be used."""
  _write_verdict(unit, outcome, output)


def _write_verdict(
  unit: Unit, outcome: isolation.Outcome, output: paths.PathLike
) -> dict[str, Any]:
  result = outcome.value or {"clips": [], "shard": "", "bytes": 0}
  result |= {
    "unit": unit.id,
    "asset_name": unit.name,
    "content_hash": unit.content,
    "credit": dataclasses.asdict(unit.credit),
    "error": outcome.error,
    "seconds": round(outcome.seconds, 3),
    "cpu_seconds": round(outcome.cpu_seconds, 3),
    "peak_bytes": outcome.peak_bytes,
    "versions": versions(),
  }
  path = verdict_path(output, unit)
  atomic.write_bytes(path, json.dumps(result, indent=1).encode())
  return result


def prepare(
  unit: Unit,
  settings: preparation.PreparationSettings,
  limits: asset_files.AssetLimits,
  output: str,
) -> dict[str, Any]:
  """Prepares a unit in this process; see `prepare_isolated`.

  A clip that cannot be played is rejected and the next one follows.

  Raises:
    AssetError: The asset cannot be opened.
    OutputError: The folder cannot be written to.
  """
  folder = paths.of(output)
  clips: list[dict[str, Any]] = []
  shard = f"{unit.id}{shards.SUFFIX}"
  path = folder / "shards" / shard
  details: dict[str, Any] = {}

  # A generator: one clip is in memory at a time. It fills `details` and `clips`
  # while the shard is written.
  def entries() -> Iterator[shards.Entry]:
    for number, job in enumerate(asset_units.jobs(unit, settings, limits)):
      prepared = _prepare_job(job, settings)
      left_out = job.left_out()
      details[job.clip] = asset_units.details(unit, job) | {
        "measures": _rounded(prepared.verdict.measures),
      }
      clips.append(
        {
          "clip": job.clip,
          "asset": job.asset,
          "name": job.name,
          "start": round(float(job.times[0]), 6),
          "end": round(float(job.times[-1]), 6),
          "accepted": prepared.verdict.accepted,
          "reasons": prepared.verdict.reasons,
          "left_out": [dataclasses.asdict(part) for part in left_out],
          "measures": _rounded(prepared.verdict.measures),
          "seconds": prepared.verdict.seconds,
          "preview": _write_preview(folder, unit, number, prepared.preview),
        }
      )
      for kind, part, content in prepared.entries:
        yield job.clip, kind, part, content

  (folder / "shards").mkdir(parents=True, exist_ok=True)
  size = shards.write_shard(path, entries(), details)
  if not any(clip["accepted"] for clip in clips):
    # An empty shard would only be opened in vain.
    path.unlink()
    shard = ""
  return {"clips": clips, "shard": shard, "bytes": size}


def versions() -> dict[str, str]:
  """Versions of everything that influences a record."""
  found = {
    "python": platform.python_version(),
    "schema": str(schema.VERSION),
  }
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "not installed"
  return found


def _prepare_job(
  job: asset_units.ClipJob, settings: preparation.PreparationSettings
) -> preparation.PreparedClip:
  try:
    mesh = job.play()
    share = sum(part.share or 0.0 for part in job.left_out())
    return preparation.prepare_clip(
      mesh, job.clip, settings, job.seed, left_out=share
    )
  except AssetError as error:
    verdict = preparation.Verdict([str(error)], {}, {})
    return preparation.PreparedClip([], verdict, [])


def _rounded(measures: dict[str, float]) -> dict[str, float]:
  return {name: float(f"{value:.5g}") for name, value in measures.items()}


def _write_preview(
  folder: paths.LocalPath | paths.StorePath,
  unit: Unit,
  number: int,
  pictures: list[bytes],
) -> str:
  """One strip of a clip's pictures; returns its path in the data set."""
  if not pictures:
    return ""
  size, images = _PREVIEW_SIZE, []
  for content in pictures:
    with Image.open(io.BytesIO(content)) as image:
      images.append(image.convert("RGBA"))
  strip = Image.new("RGB", (size * len(pictures), size), _PAPER)
  for column, image in enumerate(_cropped(images)):
    image = image.resize((size, size), Image.Resampling.LANCZOS)
    strip.paste(image, (column * size, 0), image)
  stream = io.BytesIO()
  strip.save(stream, "JPEG", quality=85)
  name = f"previews/{unit.id}/{number}.jpg"
  atomic.write_bytes(folder / name, stream.getvalue())
  return name


def _cropped(images: list[Image.Image]) -> list[Image.Image]:
  """Crops around the middle, to the object's extent in all of them."""
  alpha = np.max([np.asarray(image)[..., 3] for image in images], axis=0)
  middle = images[0].width / 2
  rows, columns = np.nonzero(alpha)
  if not len(rows):
    return images
  reach = max(np.abs(np.r_[rows, columns] + 0.5 - middle).max(), 8) + 2
  box = (middle - reach, middle - reach, middle + reach, middle + reach)
  return [image.crop(tuple(int(round(x)) for x in box)) for image in images]
