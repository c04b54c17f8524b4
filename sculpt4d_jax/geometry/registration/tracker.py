"""Tracks one mesh through a sequence, from a key frame outwards.

Each frame starts from the pose of the previous frame plus a fraction of the
last step. Stiffness always refers to the rest shape, so errors do not
accumulate.

Surfaces that touch in the key frame are merged there, and the graph connects
them. Edges that stay stretched for two frames are cut from then on, unless this
would disconnect the graph: a limb is never cut off.
"""

from collections.abc import Callable, Iterator
import copy
import dataclasses

import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from sculpt4d_jax.geometry.registration import checks
from sculpt4d_jax.geometry.registration import fine_fit
from sculpt4d_jax.geometry.registration import frames as frames_lib
from sculpt4d_jax.geometry.registration import graph as graph_lib
from sculpt4d_jax.geometry.registration import graph_fit
from sculpt4d_jax.geometry.registration import settings as settings_lib
from sculpt4d_jax.geometry.registration import surfaces

_CUT_STRETCH = 1.6  # An edge longer than this many rest lengths is stretched.
_CUT_AFTER = 2  # Frames.


@dataclasses.dataclass
class Track:
  """Positions of a mesh in each frame; frames not reached yet have no pose.

  Attributes:
    poses: Pose of the graph in each frame, or None.
    vertices: Positions [F, V, 3].
    checks: Check of each frame.
    keys: Key frame that each frame was reached from.
  """

  poses: list[graph_lib.Pose | None]
  vertices: np.ndarray
  checks: list[checks.Check]
  keys: list[int]

  def score(self) -> float:
    """Mean HD99 of all frames."""
    return float(np.minimum([c.hausdorff99 for c in self.checks], 1.0).mean())

  def worst(self) -> float:
    """Largest HD99 of all frames."""
    return max(check.hausdorff99 for check in self.checks)


class Tracker:
  """Fits a mesh to the frames of a sequence."""

  def __init__(
    self,
    model: surfaces.Model,
    frames: frames_lib.Frames,
    graph_settings: settings_lib.GraphSettings,
    fine_settings: settings_lib.FineSettings,
  ):
    self.model, self.frames = model, frames
    self.checker = checks.Checker(model, frames_lib.BOX_SIDE)
    self.graph = graph_lib.Graph(model, graph_settings)
    rng = np.random.default_rng(0)
    self.fitter = graph_fit.GraphFit.of(self.graph, graph_settings, rng)
    self._settings, self._fine_settings = graph_settings, fine_settings
    self._fine: fine_fit.FineFit | None = None

  @property
  def fine(self) -> fine_fit.FineFit:
    """The fine fit, factorised on first use."""
    if self._fine is None:
      self._fine = fine_fit.FineFit(self.model, self._fine_settings)
    return self._fine

  def start(self, key: int, pose: graph_lib.Pose | None = None) -> Track:
    """A track with only the key frame; at rest by default."""
    pose = pose or graph_lib.Pose.at_rest(self.graph.num_nodes)
    count = len(self.frames)
    vertices = np.tile(self.graph.blend(pose), (count, 1, 1))
    track = Track(
      [None] * count, vertices, [checks.NOTHING] * count, [key] * count
    )
    self.place(track, key, pose, key)
    return track

  def place(
    self, track: Track, frame: int, pose: graph_lib.Pose, key: int
  ) -> None:
    """Sets the pose of a frame and checks it."""
    track.poses[frame] = pose
    track.vertices[frame] = self.graph.blend(pose)
    track.keys[frame] = key
    track.checks[frame] = self.check(track.vertices[frame], frame)

  def check(self, vertices: np.ndarray, frame: int) -> checks.Check:
    """Checks positions [V, 3] against a frame."""
    return self.checker.check(vertices, self.frames.references[frame])

  def seen_through(self, frames: frames_lib.Frames) -> "Tracker":
    """The same mesh with other frames."""
    other = copy.copy(self)
    other.frames = frames
    return other

  def outward(
    self, key: int, direction: int, start: graph_lib.Pose | None = None
  ) -> Iterator[graph_lib.Pose]:
    """Fits the graph to one frame after the other, away from the key frame.

    Args:
      key: Index of the key frame.
      direction: 1 for the later frames, -1 for the earlier ones.
      start: Pose in the key frame; at rest by default.

    Yields:
      The pose in each frame; one without a surface keeps that of the previous
      frame.
    """
    pose = before = start or graph_lib.Pose.at_rest(self.graph.num_nodes)
    fitter, long = self.fitter, np.zeros(len(self.graph.edges), int)
    frame = key + direction
    while 0 <= frame < len(self.frames):
      expected = pose.predicted(before, self._settings.prediction)
      before = pose
      target = self.frames.targets[frame]
      if target is not None:
        pose = fitter.fit(target, expected, expected)
      fitter, long = self._cut(fitter, pose, long)
      yield pose
      frame += direction

  def follow(
    self, track: Track, key: int, on_frame: Callable[[], None]
  ) -> None:
    """Fits the graph to all frames, outwards from the key frame.

    Args:
      track: Track with the key frame; the others are filled in.
      key: Index of the key frame.
      on_frame: Called after each frame.
    """
    for direction in (1, -1):
      frame = key
      for pose in self.outward(key, direction, track.poses[key]):
        frame += direction
        self.place(track, frame, pose, key)
        on_frame()

  def retry(
    self,
    track: Track,
    frame: int,
    start: graph_lib.Pose,
    key: int,
    *,
    is_close: bool = False,
  ) -> bool:
    """Fits a frame from another start; keeps the better result.

    Args:
      track: Track, improved in place.
      frame: Index of the frame.
      start: Initial deformation.
      key: Key frame that the start is from.
      is_close: Whether the start is already on the target; the stiff first
        rounds, which would undo it, are then left out.
    """
    target = self.frames.targets[frame]
    if target is None:
      return False
    rounds = self._settings.rounds
    pose = self.fitter.fit(
      target, start, start, rounds[-1:] if is_close else rounds
    )
    found = self.check(self.graph.blend(pose), frame)
    # Only a clear improvement is worth a change of key frame.
    if found.hausdorff99 >= 0.9 * track.checks[frame].hausdorff99:
      return False
    self.place(track, frame, pose, key)
    return True

  def polish(
    self,
    track: Track,
    frame: int,
    num_iterations: int | None = None,
  ) -> None:
    """Runs the fine fit on a frame, and checks it again."""
    target = self.frames.targets[frame]
    if target is None:
      return
    track.vertices[frame] = self.fine.fit(
      track.vertices[frame], target, num_iterations
    )
    track.checks[frame] = self.check(track.vertices[frame], frame)

  def _cut(
    self, fitter: graph_fit.GraphFit, pose: graph_lib.Pose, long: np.ndarray
  ) -> tuple[graph_fit.GraphFit, np.ndarray]:
    """Cuts edges that stay stretched; counts for how many frames they are."""
    graph = self.graph
    ends = (graph.places + pose.shifts)[graph.edges]
    lengths = np.linalg.norm(ends[:, 1] - ends[:, 0], axis=1)
    # One stretched frame may be an error of the fit.
    long = np.where(lengths > _CUT_STRETCH * graph.lengths, long + 1, 0)
    doomed = (long >= _CUT_AFTER) | (fitter.edge_weights == 0)
    if not doomed.any():
      return fitter, long
    whole = graph.edges[~doomed]
    links = sparse.csr_array(
      (np.ones(len(whole)), whole.T), shape=(graph.num_nodes,) * 2
    )
    _, part = csgraph.connected_components(links, directed=False)
    safe = part[graph.edges[:, 0]] == part[graph.edges[:, 1]]
    weights = np.where(doomed & safe, 0.0, 1.0)
    return dataclasses.replace(fitter, edge_weights=weights), long
