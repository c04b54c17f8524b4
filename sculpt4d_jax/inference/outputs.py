"""Writes the files of a run: all of them, or none if something fails."""

from collections.abc import Callable, Mapping, Sequence
import concurrent.futures
import json
import os
from typing import Any

from absl import logging
import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import known
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import preview
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import output_checks
from sculpt4d_jax.io import paths
from sculpt4d_jax.io import staged
from sculpt4d_jax.io.matting import crop
from sculpt4d_jax.io.meshes import exporters
from sculpt4d_jax.io.viewer import page

GLB, USD = (exporters.EXPORTERS[name].file for name in ("glb", "usd"))
VIEWER, PREVIEW, RUN = "viewer.html", "preview.png", "run.json"
LATENTS = "latents.npz"


def write(
  folder: paths.PathLike,
  result: pipeline.Result,
  details: Mapping[str, Any],
  log: run_log.RunLog,
  *,
  formats: Sequence[str] | None = None,
  latents: bool = False,
) -> list[Any]:
  """Writes all results of a run.

  Files: the meshes in each format (by default frame_0000.ply and so on,
  animation.glb and animation.usdc), viewer.html, preview.png, run.json. They
  appear together when all are complete; meshes of an earlier run in the folder
  are replaced.

  Args:
    folder: Output folder; made if missing.
    result: Meshes and the clip they were made from.
    details: Further fields of run.json, besides stages and meshes.
    log: Times the stage; its stages go into run.json.
    formats: Names out of `exporters.EXPORTERS`. None takes the default ones; of
      these, one whose optional package is missing is left out, with a line in
      the log that names its extra.
    latents: Whether to write latents.npz too, from which later runs can take
      known frames.

  Returns:
    The paths.

  Raises:
    UserError: A format is unknown, or its optional package is missing.
    atomic.OutputError: The folder cannot be written to, or its disk is full.
  """
  names = exporters.DEFAULT if formats is None else exporters.check(formats)
  source = result.clip.source
  times = source.timestamps - source.timestamps[0]
  pictures = input_pictures(result.clip)
  made = [each.file for each in exporters.EXPORTERS.values()]
  with staged.staged_folder(folder, replaces=made) as staging:
    with log.stage("write files", len(names) + 2) as bar:
      for exporter in map(exporters.EXPORTERS.__getitem__, names):
        if exporter.is_available():
          path = staging / exporter.file
          exporter.write(path, result.meshes, source.fps, times=times)
        else:
          logging.warning("%s is left out. %s", exporter.file, exporter.need())
        bar.update()
      # Drawn together with the page, but not with the exporters: USD's library
      # gives the interpreter away while it is loaded, and waits for ever for it
      # if a thread that has it loads a library too, as the ray caster does.
      with concurrent.futures.ThreadPoolExecutor(1) as drawing:
        drawn = drawing.submit(
          preview.write_preview, staging / PREVIEW, result.meshes, pictures
        )
        text = viewer_page(result, details, pictures)
        atomic.write_bytes(staging / VIEWER, text.encode("utf-8"))
        bar.update()
        drawn.result()
        bar.update()
    record = dict(details) | {
      "meshes": [
        {"vertices": m.num_vertices, "faces": m.num_faces}
        for m in result.meshes
      ],
      "field_evaluations": result.num_evaluations,
      "stages": log.summary(),
    }
    atomic.write_bytes(
      staging / RUN, (json.dumps(record, indent=2) + "\n").encode()
    )
    if latents:
      known.write_latents(
        staging / LATENTS, result.latents, result.scale_factor
      )
    files = sorted(
      path.name for path in staging.iterdir() if path.name[0] != "."
    )
  return [paths.of(folder) / file for file in files]


def check_writable(folder: paths.PathLike) -> None:
  """Checks before the work that results can be written after it.

  Raises:
    ValueError: The folder is a file, or may not be written to; in a store, the
      bucket or the credentials may be missing.
  """
  folder = paths.of(folder)
  if paths.is_remote(folder):
    output_checks.check_folder(folder)
    return
  existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
  if not existing.is_dir():
    raise UserError(
      f"Cannot write to {folder}: {existing} is a file; choose a folder."
    )
  if not os.access(existing, os.W_OK | os.X_OK):
    raise UserError(
      f"Cannot write to {folder}: no permission to write in {existing};"
      " choose another folder."
    )
  made = (each.file for each in exporters.EXPORTERS.values())
  staged.check_ways(folder, (*made, VIEWER, PREVIEW, RUN))


def viewer_page(
  result: pipeline.Result,
  details: Mapping[str, Any],
  pictures: np.ndarray | None = None,
) -> str:
  """The page that plays a run's meshes next to its input, as HTML.

  Args:
    result: Meshes and the clip they were made from.
    details: Settings of the run, as `write` takes them.
    pictures: Result of `input_pictures`; None computes it.
  """
  if pictures is None:
    pictures = input_pictures(result.clip)
  source = result.clip.source
  return page.viewer_page(
    result.meshes,
    source.fps,
    pictures,
    times=source.timestamps - source.timestamps[0],
    title=source.name,
    details=_page_details(details),
  )


def write_optional(name: str, write_file: Callable[[], None]) -> None:
  """Writes a format with an optional package, or logs that it is missing."""
  try:
    write_file()
  except ImportError as error:
    logging.warning("%s is left out. %s", name, error)


def input_pictures(clip: pipeline.Clip, size: int = 384) -> np.ndarray:
  """The cropped input, enlarged for display: uint8 [F, S, S, 3]."""
  frames = clip.foreground.frames
  side = int(min(size, max(clip.box.side, clip.images.shape[1])))
  return crop.crop_clip(frames, side).images


def _page_details(details: Mapping[str, Any]) -> dict[str, Any]:
  """The few settings that the viewer page shows next to the mesh."""
  sampling = details.get("sampling", {})
  surface = details.get("surface", {})
  return {
    "Input": details.get("input", {}).get("name", ""),
    "Preset": details.get("preset", ""),
    "Seed": sampling.get("seed", ""),
    "Sampler": sampling.get("solver", ""),
    "Sampling steps": sampling.get("num_steps", ""),
    "Guidance scale": sampling.get("guidance_scale", ""),
    "Temporal attention": sampling.get("temporal_mode", ""),
    "Field resolution": surface.get("resolution", ""),
  }
