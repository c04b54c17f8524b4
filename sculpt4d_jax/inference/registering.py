"""From a sequence of meshes to one animated mesh, and its files.

  registered.glb     morph targets, one a frame; a mesh a segment
  registered.usdc    one mesh with time samples
  vertices.npz       vertices [F, V, 3], faces [T, 3], rest [V, 3], trajectory
                     [F, 4, 4]; with several segments also segment_0_vertices
                     and so on
  registration.json  key frame, checks and verdict of every frame, segments

All of them appear together, or none does.
"""

from collections.abc import Sequence
import dataclasses
import json
import math
import os
from typing import Any

import numpy as np

from sculpt4d_jax.geometry import cleanup
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import textured_mesh
from sculpt4d_jax.geometry.registration import own_mesh
from sculpt4d_jax.geometry.registration import result
from sculpt4d_jax.geometry.registration import sequence
from sculpt4d_jax.geometry.registration import settings as settings_lib
from sculpt4d_jax.inference import given_files
from sculpt4d_jax.inference import outputs
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths
from sculpt4d_jax.io import staged
from sculpt4d_jax.io.assets import given_asset
from sculpt4d_jax.io.meshes import sequence_input
from sculpt4d_jax.io.meshes import textured_glb
from sculpt4d_jax.io.meshes import usd

MeshSequence = sequence_input.MeshSequence
Registered = result.Registered
Settings = settings_lib.Settings
TriangleMesh = mesh_lib.TriangleMesh
PathLike = str | os.PathLike

GLB, USD = "registered.glb", "registered.usdc"
VERTICES, RECORD = "vertices.npz", "registration.json"


def register(
  meshes: Sequence[TriangleMesh],
  *,
  key: int | None = None,
  mesh: TriangleMesh | None = None,
  max_faces: int | None = None,
  settings: Settings = settings_lib.Settings(),
  log: run_log.RunLog | None = None,
) -> Registered:
  """Registers one mesh to a sequence.

  Args:
    meshes: One mesh a frame; frames may be empty.
    key: Number of the key frame; chosen by default.
    mesh: A mesh whose topology is kept, in place of a frame's.
    max_faces: Face budget of the frames, from which the result's topology
      comes; None keeps them.
    settings: Settings of all stages.
    log: Shows and times the stage.

  Raises:
    ValueError: See `sequence.register` and `own_mesh.register_mesh`.
  """
  log = log or run_log.RunLog(progress=False)
  frames = [_tidy(frame, max_faces) for frame in meshes]
  total = max(2 * len(frames) - 2, 1)
  with log.stage("register", total) as bar:

    def observer(stage: str) -> None:
      del stage
      # More steps than these where further key frames are tried.
      if bar.n + 1 < total:
        bar.update()

    if mesh is not None:
      return own_mesh.register_mesh(
        mesh, frames, settings, key=key, observer=observer
      )
    return sequence.register(frames, settings, key=key, observer=observer)


def write(
  folder: PathLike,
  registered: Registered,
  source: MeshSequence,
  log: run_log.RunLog | None = None,
  given: given_asset.GivenAsset | None = None,
) -> list[paths.StorePath]:
  """Writes the files of a registration.

  Args:
    folder: Output folder; made if missing. Files that an earlier run did not
      write stay.
    registered: Result of the registration.
    source: Sequence that was registered; gives the times.
    log: Its stages go into registration.json.
    given: The asset whose mesh was registered; its materials and skeleton are
      kept, and a skeleton gives registered_skin.glb too.

  Returns:
    The paths.

  Raises:
    OutputError: The folder cannot be written to, or its disk is full.
  """
  log = log or run_log.RunLog(progress=False)
  with staged.staged_folder(folder, replaces=["registered.*"]) as staging:
    with log.stage("write registration", 3) as bar:
      details = _write_glb(staging, registered, source, given)
      bar.update()
      outputs.write_optional(
        USD,
        lambda: usd.write_animated_usd(
          staging / USD,
          shown_frames(registered),
          source.fps,
          times=source.times,
        ),
      )
      bar.update()
      with atomic.atomic_write(staging / VERTICES) as file:
        np.savez(file, **arrays(registered))
    content = record(registered, source, log) | details
    content = json.dumps(content, indent=2) + "\n"
    atomic.write_bytes(staging / RECORD, content.encode())
    names = sorted(
      path.name for path in staging.iterdir() if path.name[0] != "."
    )
  return [paths.of(folder) / name for name in names]


def _write_glb(
  staging: paths.PathLike,
  registered: Registered,
  source: MeshSequence,
  given: given_asset.GivenAsset | None,
) -> dict[str, Any]:
  """Writes the GLB files; returns what the record says about them."""
  if given is not None:
    return given_files.write(
      staging,
      given,
      registered,
      source.fps,
      times=source.times,
      name=source.name,
    )
  textured_glb.write_morph(
    paths.of(staging) / GLB,
    plain_parts(registered),
    source.fps,
    times=source.times,
    name=source.name,
  )
  return {}


def plain_parts(
  registered: Registered,
) -> tuple[textured_mesh.TexturedMesh, ...]:
  """The runs of frames of one topology, without a texture."""
  return tuple(
    textured_mesh.TexturedMesh(segment.mesh, first_frame=segment.first_frame)
    for segment in registered.segments
  )


def shown_frames(registered: Registered) -> list[TriangleMesh]:
  """The mesh of each frame, from the segment that shows it."""
  return [
    frame for segment in registered.segments for frame in segment.mesh.frames()
  ]


def arrays(registered: Registered) -> dict[str, np.ndarray]:
  """The arrays of vertices.npz."""
  mesh = registered.mesh
  found = {
    "vertices": mesh.vertices,
    "faces": mesh.faces,
    "rest": mesh.rest,
    "trajectory": registered.trajectory,
  }
  if len(registered.segments) > 1:
    for index, segment in enumerate(registered.segments):
      found[f"segment_{index}_vertices"] = segment.mesh.vertices
      found[f"segment_{index}_faces"] = segment.mesh.faces
  return found


def record(
  registered: Registered, source: MeshSequence, log: run_log.RunLog
) -> dict[str, Any]:
  """The content of registration.json; lengths are shares of the box."""
  return {
    "input": {
      "name": source.name,
      "frames": registered.num_frames,
      "fps": source.fps,
    },
    "key": registered.key,
    "vertices": registered.mesh.num_vertices,
    "faces": registered.mesh.num_faces,
    "verdicts": {
      str(verdict): len(registered.frames_with(verdict))
      for verdict in result.Verdict
    },
    "frames": [_report(report) for report in registered.reports],
    "segments": [
      {
        "first_frame": segment.first_frame,
        "last_frame": segment.last_frame,
        "vertices": segment.mesh.num_vertices,
        "faces": segment.mesh.num_faces,
      }
      for segment in registered.segments
    ],
    "segment_frames": [
      _report(report)
      for report in registered.segment_reports
      if len(registered.segments) > 1
    ],
    "stages": log.summary(),
  }


def summary(registered: Registered) -> str:
  """One sentence that summarises the result."""
  counts = {v: registered.frames_with(v) for v in result.Verdict}
  text = (
    f"Key frame {registered.key};"
    f" {len(counts[result.Verdict.REGISTERED])} of {registered.num_frames}"
    " frames registered"
  )
  for verdict in (result.Verdict.DOUBTFUL, result.Verdict.FAILED):
    if counts[verdict]:
      text += f", {verdict}: {', '.join(map(str, counts[verdict]))}"
  if len(registered.segments) > 1:
    text += (
      f"; {len(registered.segments)} segments with"
      f" {registered.num_topologies} topologies"
    )
    failed = [
      report.frame
      for report in registered.segment_reports
      if report.verdict == result.Verdict.FAILED
    ]
    text += f", failed: {', '.join(map(str, failed)) or 'none'}"
  return text + "."


def _report(report: result.FrameReport) -> dict[str, Any]:
  values = dataclasses.asdict(report)
  return {
    name: None if isinstance(v, float) and not math.isfinite(v) else v
    for name, v in values.items()
  }


def _tidy(mesh: TriangleMesh, max_faces: int | None) -> TriangleMesh:
  """Joins corners at the same place; keeps a face budget."""
  if mesh.is_empty:
    return mesh
  joined, _ = mesh.welded()
  one, two, three = joined.faces.T
  whole = (one != two) & (two != three) & (three != one)
  joined = TriangleMesh(joined.vertices, joined.faces[whole])
  if max_faces is not None:
    joined = cleanup.simplify(joined, max_faces)
  return joined
