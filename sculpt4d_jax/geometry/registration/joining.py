"""Repairs the frames that a single pass from one key frame does not reach.

First in the opposite direction: a limb that was lost between two frames may be
tracked backwards, from a later frame with a similar pose. If that fails,
another key frame inside the failed run is tracked to a good frame, and both
maps are composed: a vertex of the first mesh is attached to the second mesh
there and moved with it. The graph of the first mesh is initialised by these
positions and fitted again, so the rest shape remains the first key's.
"""

from collections.abc import Sequence

import igl
import numpy as np

from sculpt4d_jax.geometry.registration import frames as frames_lib
from sculpt4d_jax.geometry.registration import outward_tracks
from sculpt4d_jax.geometry.registration import surfaces
from sculpt4d_jax.geometry.registration import tracker as tracker_lib

Track = tracker_lib.Track
Tracker = tracker_lib.Tracker


def bad_runs(track: Track, limit: float) -> list[tuple[int, int]]:
  """Runs (first, last) of frames whose HD99 is above a limit."""
  bad = [check.hausdorff99 > limit for check in track.checks]
  runs: list[tuple[int, int]] = []
  for frame, is_bad in enumerate(bad):
    if is_bad and runs and runs[-1][1] == frame - 1:
      runs[-1] = (runs[-1][0], frame)
    elif is_bad:
      runs.append((frame, frame))
  return runs


def sweep_back(tracker: Tracker, track: Track, key: int, limit: float) -> None:
  """Refits bad frames from the neighbour that is farther from the key."""
  count = len(track.checks)
  for first, last in bad_runs(track, limit):
    ranges: list[tuple[Sequence[int], int]] = []
    if first > key and last + 1 < count:
      ranges.append((range(last, first - 1, -1), 1))
    elif last < key and first > 0:
      ranges.append((range(first, last + 1), -1))
    for frames, step in ranges:
      for frame in frames:
        pose = track.poses[frame + step]
        if pose is None or not tracker.retry(track, frame, pose, key):
          break
  for first, last in bad_runs(track, limit):
    _push_outwards(tracker, track, key, first, last)


def _push_outwards(
  tracker: Tracker, track: Track, key: int, first: int, last: int
) -> None:
  """Refits bad frames from neighbours that have improved."""
  frames = range(first, last + 1) if first > key else range(last, first - 1, -1)
  step = -1 if first > key else 1
  for frame in frames:
    inner = frame + step
    pose = track.poses[inner]
    better = track.checks[inner].hausdorff99 < track.checks[frame].hausdorff99
    if pose is not None and better:
      tracker.retry(track, frame, pose, key)


def add_keys(
  tracks: outward_tracks.OutwardTracks,
  tracker: Tracker,
  track: Track,
  limit: float,
  max_keys: int,
) -> None:
  """Repairs bad runs through other key frames.

  Args:
    tracks: Those of the frames' meshes.
    tracker: The first key frame's.
    track: Result of that tracker; improved in place.
    limit: HD99 above which a frame is bad.
    max_keys: Largest number of runs that are tried, the longest first.
  """
  runs = sorted(bad_runs(track, limit), key=lambda run: run[0] - run[1])
  for first, last in runs[:max_keys]:
    anchors = [
      frame
      for frame in (first - 1, last + 1)
      if 0 <= frame < len(track.checks)
      and track.checks[frame].hausdorff99 <= limit
    ]
    usable = [f for f in range(first, last + 1) if f in tracker.frames.usable()]
    if not anchors or not usable:
      continue
    second = max(usable, key=tracker.frames.area)
    other, through, _ = tracks.track(
      second, range(min(first, *anchors), max(last, *anchors) + 1)
    )
    anchor = min(anchors, key=lambda a: through.checks[a].hausdorff99)
    if through.checks[anchor].hausdorff99 > limit:
      continue
    carried = compose(
      track.vertices[anchor], through.vertices, other.model.faces, anchor
    )
    for frame in range(first, last + 1):
      if through.checks[frame].hausdorff99 <= track.checks[frame].hausdorff99:
        pose = tracker.graph.pose_of(carried[frame])
        tracker.retry(track, frame, pose, second, is_close=True)
    _fill_from_neighbours(tracker, track, limit)


def _fill_from_neighbours(tracker: Tracker, track: Track, limit: float) -> None:
  """Refits frames that are still bad from good neighbours."""
  for first, last in bad_runs(track, limit):
    for frames, step in (
      (range(first, last + 1), -1),
      (range(last, first - 1, -1), 1),
    ):
      for frame in frames:
        other = frame + step
        if not 0 <= other < len(track.checks):
          break
        if track.checks[other].hausdorff99 > limit:
          break
        pose = track.poses[other]
        if pose is not None:
          tracker.retry(track, frame, pose, track.keys[other])


def compose(
  vertices: np.ndarray, others: np.ndarray, faces: np.ndarray, anchor: int
) -> np.ndarray:
  """Moves points with a mesh.

  Args:
    vertices: Points [V, 3] in frame `anchor`.
    others: The mesh's vertices in all frames [F, U, 3].
    faces: Its faces [T, 3].
    anchor: Frame in which the points are attached.

  Returns:
    The points in all frames [F, V, 3]; a point keeps its barycentrics in the
    closest face and its height above it.
  """
  at = np.ascontiguousarray(others[anchor])
  _, face_ids, closest = igl.point_mesh_squared_distance(
    np.ascontiguousarray(vertices), at, np.ascontiguousarray(faces, np.int64)
  )
  corners = faces[face_ids]
  weights = igl.barycentric_coordinates(
    closest, *(np.ascontiguousarray(at[corners[:, c]]) for c in range(3))
  )
  normals = surfaces.unit(surfaces.cross_products(at, corners))
  heights = np.einsum("vx,vx->v", vertices - closest, normals)
  result = np.empty((len(others), *vertices.shape))
  for frame, moved in enumerate(others):
    normals = surfaces.unit(surfaces.cross_products(moved, corners))
    foot = np.einsum("vc,vcx->vx", weights, moved[corners])
    result[frame] = foot + heights[:, None] * normals
  return result


def key_candidates(frames: frames_lib.Frames, count: int) -> list[int]:
  """Candidates for the key frame: the first, then those with the largest area.

  Surface is lost where limbs touch or parts join. In frames with more surface
  and more parts, the object's parts are separate.
  """
  usable = frames.usable()
  parts = {frame: frames.num_parts(frame) for frame in usable}
  order = sorted(usable, key=lambda f: (-parts[f], -frames.area(f)))
  chosen = [usable[0]]
  apart = max(1, len(frames) // 8)
  for frame in order:
    if len(chosen) < count and all(abs(frame - c) >= apart for c in chosen):
      chosen.append(frame)
  return chosen[:count]
