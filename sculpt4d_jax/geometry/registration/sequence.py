"""Registers a sequence of meshes: one topology for all frames.

1. graph stage from a key frame outwards, for each key frame that is tried
2. bad frames again: from the other side, then through further key frames
3. fine fit, every vertex free
4. smoothing over time, along the surface
5. verdicts; where one topology cannot show all frames, segments with a topology
   each
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry.registration import frames as frames_lib
from sculpt4d_jax.geometry.registration import graph_motion
from sculpt4d_jax.geometry.registration import joining
from sculpt4d_jax.geometry.registration import outward_tracks
from sculpt4d_jax.geometry.registration import result
from sculpt4d_jax.geometry.registration import segmenting
from sculpt4d_jax.geometry.registration import settings as settings_lib
from sculpt4d_jax.geometry.registration import smoothing
from sculpt4d_jax.geometry.registration import tracker as tracker_lib
from sculpt4d_jax.geometry.registration import verdicts

DeformingMesh = deforming_mesh.DeformingMesh
Frames = frames_lib.Frames
Observer = Callable[[str], None]
Settings = settings_lib.Settings
Track = tracker_lib.Track
Tracker = tracker_lib.Tracker
TriangleMesh = mesh_lib.TriangleMesh

# If the first key's worst frame is below this share of the limit for a
# registered frame, no other key is tried.
_GOOD_ENOUGH = 0.7
# Growth of a frame's HD99 that smoothing may cost.
_SMOOTHING_COST = 1.1


def register(
  meshes: Sequence[TriangleMesh],
  settings: Settings = settings_lib.Settings(),
  *,
  key: int | None = None,
  observer: Observer | None = None,
) -> result.Registered:
  """Registers the mesh of a key frame to all frames.

  Args:
    meshes: One mesh a frame, wound counter-clockwise seen from outside;
      topologies may differ and frames may be empty.
    settings: Settings of all stages.
    key: Number of the key frame; by default it is chosen.
    observer: Called with a stage's name after each frame of it.

  Returns:
    One mesh in all frames, in the input's units. A frame that could not be
    registered contains the best attempt, and its report has the reason.

  Raises:
    ValueError: No frame has a surface, a position is not finite, or `key` is
      not a frame with a surface.
  """
  frames = Frames.of(meshes, settings.graph)
  if key is not None and key not in frames.usable():
    raise UserError(
      f"key={key} is not the number of a frame with a surface; choose one of"
      f" 0..{len(frames) - 1}."
    )
  tracks = outward_tracks.OutwardTracks(frames, settings)
  found = _register(tracks, settings, key, observer or _ignore)
  bad = [r for r in found.reports if r.verdict != result.Verdict.REGISTERED]
  if bad and settings.find_segments:
    return _with_segments(found, tracks, settings, observer or _ignore)
  return found


def finish(
  tracker: Tracker,
  track: Track,
  key: int,
  settings: Settings,
  *,
  faces: np.ndarray | None = None,
  rows: np.ndarray | None = None,
) -> result.Registered:
  """Smooths a track and builds the result.

  Args:
    tracker: The mesh and its frames.
    track: Positions in all frames.
    key: Number of the key frame.
    settings: Settings of all stages.
    faces: Faces of the result, if they are not the tracker's mesh's.
    rows: Vertex of the tracker's mesh for each vertex of the result [V].
  """
  smooth(tracker, track, key, settings)
  frames, model = tracker.frames, tracker.model
  rest = track.vertices[key]
  vertices = frames.to_input(track.vertices)
  rows = np.arange(len(rest)) if rows is None else rows
  trajectory = result.fit_trajectory(
    vertices, frames.to_input(rest), model.vertex_areas() + 1e-12
  )
  mesh = DeformingMesh(
    vertices[:, rows],
    model.faces if faces is None else faces,
    frames.to_input(rest)[rows],
  )
  reports = tuple(
    verdicts.report(frame, track.keys[frame], check, settings.limits)
    for frame, check in enumerate(track.checks)
  )
  return result.Registered(
    mesh,
    key,
    reports,
    trajectory,
    result.one_segment(mesh),
    graph=graph_motion.GraphMotion.of(tracker.graph, track.poses, frames, rows),
  )


def smooth(
  tracker: Tracker, track: Track, key: int, settings: Settings
) -> None:
  """Smooths runs of frames that have not failed; the key frame is unchanged.

  A frame that becomes worse keeps its positions.
  """
  if not settings.smoothing_window:
    return
  bad = joining.bad_runs(track, settings.limits.doubtful)
  edges = [-1, *(edge for run in bad for edge in run), len(track.checks)]
  for before, after in zip(edges[::2], edges[1::2]):
    run = slice(before + 1, after)
    normals = np.array([tracker.model.normals(v) for v in track.vertices[run]])
    if not len(normals):
      continue
    moved = smoothing.smooth(
      track.vertices[run], normals, settings.smoothing_window
    )
    for frame, vertices in zip(range(before + 1, after), moved):
      if frame == key:
        continue
      check = tracker.check(vertices, frame)
      # Between frames reached through different keys, apparent jitter may be
      # the seam between both paths.
      if check.hausdorff99 <= _SMOOTHING_COST * track.checks[frame].hausdorff99:
        track.vertices[frame], track.checks[frame] = vertices, check


def _register(
  tracks: outward_tracks.OutwardTracks,
  settings: Settings,
  key: int | None,
  observer: Observer,
) -> result.Registered:
  frames, limit = tracks.frames, settings.limits.registered
  candidates = [key]
  if key is None:
    candidates = joining.key_candidates(frames, settings.num_candidates)
  best = None
  for candidate in candidates:
    bound = np.inf if best is None else best[1].score() * len(frames)
    tracker, track, whole = tracks.track(
      candidate, on_frame=lambda: observer("graph"), give_up=bound
    )
    if best is None or (whole and track.score() < best[1].score()):
      best = tracker, track, candidate
    if track.worst() < _GOOD_ENOUGH * limit:
      break
  tracker, track, key = best
  if joining.bad_runs(track, limit):
    joining.sweep_back(tracker, track, key, limit)
  if joining.bad_runs(track, limit):
    joining.add_keys(tracks, tracker, track, limit, settings.max_extra_keys)
  for frame in range(len(frames)):
    if frame != key:
      tracker.polish(track, frame)
      observer("fine fit")
  return finish(tracker, track, key, settings)


def _with_segments(
  found: result.Registered,
  tracks: outward_tracks.OutwardTracks,
  settings: Settings,
  observer: Observer,
) -> result.Registered:
  """Adds topologies where one is not sufficient."""
  alone = dataclasses.replace(settings, max_extra_keys=0)

  def register_part(
    first: int, last: int, key: int | None
  ) -> result.Registered:
    # A given key is there for the frames around it alone.
    chosen = settings if key is None else alone
    return _register(tracks.part(first, last), chosen, key, observer)

  found = segmenting.by_parts(found, tracks.frames, register_part)
  return segmenting.by_failures(
    found, tracks.frames, register_part, settings.max_added_topologies
  )


def _ignore(stage: str) -> None:
  """Observes nothing."""
