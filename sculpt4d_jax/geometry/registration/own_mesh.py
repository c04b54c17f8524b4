"""Registers a user's mesh to a sequence and keeps its topology.

The mesh is aligned with the sequence, then its graph is fitted to the key frame
and from there to the others. Only the graph moves it: the fine fit would
flatten an artist's details onto the smoother surfaces of the sequence.

Artists' meshes are split at seams of texture coordinates and made of many
bodies. Vertices at the same position are welded, and bodies are connected by
edges of the graph, so that seams stay closed and eyes follow the head.
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry.registration import alignment
from sculpt4d_jax.geometry.registration import frames as frames_lib
from sculpt4d_jax.geometry.registration import graph as graph_lib
from sculpt4d_jax.geometry.registration import joining
from sculpt4d_jax.geometry.registration import result
from sculpt4d_jax.geometry.registration import sequence
from sculpt4d_jax.geometry.registration import settings as settings_lib
from sculpt4d_jax.geometry.registration import surfaces
from sculpt4d_jax.geometry.registration import tracker as tracker_lib

TriangleMesh = mesh_lib.TriangleMesh

_NUM_POINTS = 800
# The first fit may start from a very different pose: begin stiff, with a large
# gate.
_FIRST_ROUNDS = (
  settings_lib.Round(10.0, 0.6, 10),
  settings_lib.Round(3.0, 0.42, 10),
  *settings_lib.ROUNDS,
)


def register_mesh(
  mesh: TriangleMesh,
  meshes: Sequence[TriangleMesh],
  settings: settings_lib.Settings = settings_lib.Settings(),
  *,
  key: int | None = None,
  observer: sequence.Observer | None = None,
) -> result.Registered:
  """Registers one mesh to all frames.

  Args:
    mesh: The mesh, of any size, position and orientation.
    meshes: One mesh a frame; frames may be empty.
    settings: Settings of all stages; those of the fine fit are not used.
    key: Frame that is fitted first; by default the candidate that the mesh fits
      best.
    observer: Called with a stage's name after each frame of it.

  Returns:
    The mesh in all frames, in the sequence's units, vertices and faces in
    their order; its rest pose is the one in the key frame.

  Raises:
    ValueError: See `sequence.register`; or the mesh has no surface.
  """
  if mesh.is_empty or not np.isfinite(mesh.vertices).all():
    raise UserError("the mesh has no faces, or positions that are not finite.")
  frames = frames_lib.Frames.of(meshes, settings.graph)
  if key is not None and key not in frames.usable():
    raise UserError(
      f"key={key} is not the number of a frame with a surface; choose one of"
      f" 0..{len(frames) - 1}."
    )
  keys = [key]
  if key is None:
    keys = joining.key_candidates(frames, settings.num_candidates)
  best = min(
    (_fit_key(mesh, frames, candidate, settings) for candidate in keys),
    key=lambda fitted: fitted[1].checks[fitted[2]].hausdorff99,
  )
  tracker, track, key = best
  tracker.follow(
    track, key, on_frame=lambda: observer("graph") if observer else None
  )
  if joining.bad_runs(track, settings.limits.registered):
    joining.sweep_back(tracker, track, key, settings.limits.registered)
  _, rows = mesh.welded()
  return sequence.finish(
    tracker, track, key, settings, faces=mesh.faces, rows=rows
  )


def _fit_key(
  mesh: TriangleMesh,
  frames: frames_lib.Frames,
  key: int,
  settings: settings_lib.Settings,
) -> tuple[tracker_lib.Tracker, tracker_lib.Track, int]:
  joined, _ = mesh.welded()
  target = frames.targets[key]
  points, _, _ = surfaces.sample(
    joined.vertices.astype(np.float64),
    joined.faces,
    _NUM_POINTS,
    np.random.default_rng(0),
  )
  similarity = alignment.align(points, target.points[:_NUM_POINTS])
  placed = similarity.apply(joined.vertices.astype(np.float64))
  model = surfaces.Model.of(placed, joined.faces)
  graph_settings = dataclasses.replace(settings.graph, rounds=_FIRST_ROUNDS)
  first = tracker_lib.Tracker(model, frames, graph_settings, settings.fine)
  rest = graph_lib.Pose.at_rest(first.graph.num_nodes)
  pose = first.fitter.fit(target, rest)
  tracker = tracker_lib.Tracker(model, frames, settings.graph, settings.fine)
  return tracker, tracker.start(key, pose), key
