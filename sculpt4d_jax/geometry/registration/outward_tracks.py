"""Tracks of the frames' own meshes, each outwards from its frame.

Choosing a key frame, further keys and segments ask for the same tracks: a track
through a part of the sequence is a part of the track through all of it, because
a pose depends on the frames between it and the key alone. So each fit is made
once.
"""

from collections.abc import Callable, Iterable, Iterator
import dataclasses

import numpy as np

from sculpt4d_jax.geometry.registration import checks
from sculpt4d_jax.geometry.registration import frames as frames_lib
from sculpt4d_jax.geometry.registration import graph as graph_lib
from sculpt4d_jax.geometry.registration import settings as settings_lib
from sculpt4d_jax.geometry.registration import surfaces
from sculpt4d_jax.geometry.registration import tracker as tracker_lib

Track = tracker_lib.Track
Tracker = tracker_lib.Tracker


@dataclasses.dataclass
class _OneWay:
  """The poses on one side of a key frame as far as they were asked for."""

  fits: Iterator[graph_lib.Pose]
  found: list[tuple[graph_lib.Pose, checks.Check]]


class _FromKey:
  """What is known of the mesh of one frame."""

  def __init__(
    self, frames: frames_lib.Frames, key: int, settings: settings_lib.Settings
  ):
    mesh = frames.meshes[key]
    model = surfaces.Model.of(mesh.vertices, mesh.faces)
    self.tracker = Tracker(model, frames, settings.graph, settings.fine)
    self._key = key
    self._sides = {
      direction: _OneWay(self.tracker.outward(key, direction), [])
      for direction in (1, -1)
    }

  def at(self, frame: int) -> tuple[graph_lib.Pose, checks.Check]:
    """Pose in another frame and its check; fits the frames on the way."""
    direction = 1 if frame > self._key else -1
    side = self._sides[direction]
    while len(side.found) < abs(frame - self._key):
      pose = next(side.fits)
      reached = self._key + direction * (len(side.found) + 1)
      vertices = self.tracker.graph.blend(pose)
      side.found.append((pose, self.tracker.check(vertices, reached)))
    return side.found[abs(frame - self._key) - 1]


class OutwardTracks:
  """Gives tracks through a sequence or a part of it.

  Attributes:
    frames: Frames of the part; frames are counted from its first one.
  """

  def __init__(
    self, frames: frames_lib.Frames, settings: settings_lib.Settings
  ):
    self.frames = frames
    self._whole, self._first, self._settings = frames, 0, settings
    self._known: dict[int, _FromKey] = {}

  def part(self, first: int, last: int) -> "OutwardTracks":
    """The tracks through the frames first..last; shares what is known."""
    part = OutwardTracks(self.frames.part(first, last), self._settings)
    part._whole, part._known = self._whole, self._known
    part._first = self._first + first
    return part

  def track(
    self,
    key: int,
    others: Iterable[int] | None = None,
    on_frame: Callable[[], None] = lambda: None,
    give_up: float = np.inf,
  ) -> tuple[Tracker, Track, bool]:
    """A new track of a frame's mesh, without the frames that are not reached.

    Args:
      key: The frame.
      others: Frames that are wanted; all by default.
      on_frame: Called after each frame.
      give_up: Sum of HD99 above which it stops.

    Returns:
      The mesh's tracker, the track and whether all frames were reached.
    """
    known = self._of(key)
    tracker = known.tracker.seen_through(self.frames)
    track = tracker.start(key)
    wanted = set(range(len(self.frames)) if others is None else others)
    later = [f for f in sorted(wanted) if f > key]
    earlier = [f for f in sorted(wanted, reverse=True) if f < key]
    total = 0.0
    for frame in later + earlier:
      pose, check = known.at(self._first + frame)
      track.poses[frame], track.checks[frame] = pose, check
      track.vertices[frame] = tracker.graph.blend(pose)
      total += min(check.hausdorff99, 1.0)
      on_frame()
      if total > give_up:
        return tracker, track, False
    return tracker, track, True

  def _of(self, key: int) -> _FromKey:
    at = self._first + key
    if at not in self._known:
      self._known[at] = _FromKey(self._whole, at, self._settings)
    return self._known[at]
