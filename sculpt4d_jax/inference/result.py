"""The result for a clip: can be inspected, saved and shown in a notebook."""

from collections.abc import Mapping, Sequence
import dataclasses
import html
import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import jax
import numpy as np

from sculpt4d_jax.inference import outputs
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import run_log

_VERSIONS = ("jax", "jaxlib", "flax", "numpy", "scikit-image", "trimesh")
_VIEWER_HEIGHT = 560  # Pixels, in a notebook.


class Result:
  """Meshes of a clip; displayed as a viewer in a notebook.

  Attributes:
    meshes: One mesh a frame, in [-1, 1]^3 with y up; a frame without surface
      has no faces.
    clip: The input: frames, cut-out and crop.
    latents: float32 [F, N, C].
    details: Settings, input, device and versions, as run.json has them.
    stages: Seconds and peak memory of every stage.
  """

  def __init__(
    self,
    made: pipeline.Result,
    settings: Mapping[str, Any],
    stages: Sequence[run_log.Stage],
  ):
    self.meshes = made.meshes
    self.clip = made.clip
    self.latents = made.latents
    self.details = dict(settings) | _surroundings(made.clip)
    self.stages = list(stages)
    self._made = made

  @property
  def times(self) -> np.ndarray:
    """Seconds of the frames from the first frame of the source [F]."""
    return self.clip.source.timestamps

  @property
  def fps(self) -> float:
    """Rate at which the meshes play in real time."""
    return self.clip.source.fps

  def save(
    self,
    folder: str | os.PathLike,
    *,
    formats: Sequence[str] | None = None,
    latents: bool = False,
    progress: run_log.ProgressOption = True,
  ) -> list[pathlib.Path]:
    """Writes meshes, animations, the viewer page, a preview and run.json.

    Args:
      folder: Output folder; made if missing. Meshes of an earlier run in it are
        replaced.
      formats: Formats of the meshes: "ply", "obj", "glb", "usd", "usdz" (all of
        `exporters.EXPORTERS`). None takes ply, glb and usd; usd is left out,
        with a warning, where its package is missing.
      latents: Whether to write latents.npz too, from which later runs can take
        known frames.
      progress: See `Model.generate`.

    Returns:
      The paths of the files.

    Raises:
      UserError: A format is unknown, or its optional package is missing.
      atomic.OutputError: The folder cannot be written to.
    """
    log = run_log.RunLog(progress)
    log.stages += self.stages
    return outputs.write(
      folder, self._made, self.details, log, formats=formats, latents=latents
    )

  def viewer(self) -> str:
    """The page that plays the meshes next to the input, as HTML."""
    return outputs.viewer_page(self._made, self.details)

  def __len__(self) -> int:
    return len(self.meshes)

  def __repr__(self) -> str:
    faces = sum(mesh.num_faces for mesh in self.meshes)
    return (
      f"Result({self.clip.source.name!r}: {len(self)} meshes, {faces:,} faces,"
      f" {self.fps:.4g} fps)"
    )

  def _repr_html_(self) -> str:
    page = html.escape(self.viewer())
    return (
      f'<iframe srcdoc="{page}" width="100%" height="{_VIEWER_HEIGHT}"'
      ' style="border: 0" allow="fullscreen"></iframe>'
    )


def _surroundings(clip: pipeline.Clip) -> dict[str, Any]:
  """The parts of run.json other than settings: input, device, versions."""
  return {
    "input": {
      "name": clip.source.name,
      "frames": clip.source.num_frames,
      "fps": clip.source.fps,
      "timestamps": [round(float(t), 6) for t in clip.source.timestamps],
      "cut_out": clip.foreground.method,
      "cut_out_confidence": round(float(clip.foreground.confidence), 3),
      "cut_out_warnings": list(clip.foreground.warnings),
      "crop": dataclasses.asdict(clip.box),
    },
    "device": jax.devices()[0].device_kind,
    "versions": {"python": platform.python_version()}
    | {name: importlib.metadata.version(name) for name in _VERSIONS},
  }
