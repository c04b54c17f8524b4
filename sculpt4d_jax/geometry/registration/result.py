"""The result of a registration: one mesh in all frames, with its checks.

A sequence of independent meshes becomes one topology with moving vertices.
Lengths in reports are shares of the longest side of the box around all frames,
so that they do not depend on the units of the sequence.

It has three separate parts:

  mesh        vertices in the space of the input, global motion included;
  trajectory  the global motion alone, one rigid transform a frame; segments
  runs of frames that one topology can represent; several if parts split or
  join, otherwise one with all frames.
"""

from collections.abc import Sequence
import dataclasses
import enum
from typing import NamedTuple

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry.registration import graph_motion
from sculpt4d_jax.geometry.registration import rotations

DeformingMesh = deforming_mesh.DeformingMesh


class Verdict(enum.StrEnum):
  """The reliability of a frame's registration."""

  REGISTERED = "registered"
  DOUBTFUL = "doubtful"
  FAILED = "failed"


@dataclasses.dataclass(frozen=True)
class FrameReport:
  """Checks of one frame that need no true correspondences.

  Attributes:
    frame: Number of the frame.
    key: Key frame whose registration reached this frame.
    verdict: Summary of the checks.
    chamfer: Mean distance between the two surfaces, averaged over both
      directions; share of the box.
    hausdorff99: 99th percentile of these distances, the worse direction.
    turned: Share of the area whose normal points away from the target's.
    stretched: Share of the rest area stretched beyond 2 or below 1/2.
    reason: Reason if the frame is not "registered", otherwise empty.
  """

  frame: int
  key: int
  verdict: Verdict
  chamfer: float
  hausdorff99: float
  turned: float
  stretched: float
  reason: str = ""


class Segment(NamedTuple):
  """A run of frames with one topology.

  Attributes:
    first_frame: Number of its first frame in the sequence.
    last_frame: Number of its last frame, inclusive.
    mesh: The mesh in these frames; its frame 0 is `first_frame`.
  """

  first_frame: int
  last_frame: int
  mesh: DeformingMesh


@dataclasses.dataclass(frozen=True)
class Registered:
  """One mesh registered to a sequence.

  Attributes:
    mesh: Faces [T, 3] and vertices [F, V, 3]; its `rest` is the key frame's
      mesh, or the user's mesh as it stands in the key frame.
    key: Number of the key frame, whose shape is the rest shape.
    reports: One report a frame, in order.
    trajectory: Rigid transforms, float64 [F, 4, 4], that fit the rest shape to
      each frame by least squares; the identity in the key frame.
    segments: Runs that cover all frames in order, each with a topology; one run
      with `mesh` if that is sufficient. Several may have the same topology.
    segment_reports: One report a frame of the segments' meshes; those of
      `mesh` by default.
    graph: The deformation graph that moved `mesh` before every vertex was
      fitted; None if unknown.
  """

  mesh: DeformingMesh
  key: int
  reports: tuple[FrameReport, ...]
  trajectory: np.ndarray
  segments: tuple[Segment, ...]
  segment_reports: tuple[FrameReport, ...] = ()
  graph: graph_motion.GraphMotion | None = None

  def __post_init__(self):
    num_frames = self.mesh.num_frames
    trajectory = np.ascontiguousarray(self.trajectory, np.float64)
    if trajectory.shape != (num_frames, 4, 4):
      raise UserError(
        f"trajectory must be [{num_frames}, 4, 4], got {trajectory.shape}."
      )
    if not 0 <= self.key < num_frames:
      raise UserError(f"key={self.key} must lie in 0..{num_frames - 1}.")
    if [report.frame for report in self.reports] != list(range(num_frames)):
      raise UserError(f"expected one report for each of {num_frames} frames.")
    _check_segments(self.segments, num_frames)
    object.__setattr__(self, "trajectory", trajectory)
    object.__setattr__(self, "reports", tuple(self.reports))
    object.__setattr__(self, "segments", tuple(self.segments))
    object.__setattr__(
      self, "segment_reports", tuple(self.segment_reports or self.reports)
    )

  @property
  def num_frames(self) -> int:
    """Number of frames F."""
    return self.mesh.num_frames

  def deformation(self) -> DeformingMesh:
    """The mesh without its trajectory: every frame in the key's pose."""
    turn, shift = self.trajectory[:, :3, :3], self.trajectory[:, :3, 3]
    moved = self.mesh.vertices - shift[:, None]
    return dataclasses.replace(
      self.mesh, vertices=np.einsum("fyx,fvy->fvx", turn, moved)
    )

  @property
  def num_topologies(self) -> int:
    """Number of different meshes among the segments."""
    return len(groups_of(self.segments))

  def frames_with(self, verdict: Verdict) -> list[int]:
    """Numbers of the frames with a verdict."""
    return [r.frame for r in self.reports if r.verdict == verdict]


def one_segment(mesh: DeformingMesh) -> tuple[Segment, ...]:
  """The segments of a mesh that shows all frames."""
  return (Segment(0, mesh.num_frames - 1, mesh),)


def groups_of(segments: Sequence[Segment]) -> list[list[int]]:
  """Numbers of the segments by topology, in order of their first frames."""
  return deforming_mesh.by_topology([segment.mesh for segment in segments])


def fit_trajectory(
  vertices: np.ndarray, rest: np.ndarray, weights: np.ndarray | None = None
) -> np.ndarray:
  """Rigid transforms that fit `rest` to each frame by least squares.

  Args:
    vertices: Positions [F, V, 3].
    rest: Positions [V, 3].
    weights: Weights of the vertices [V], for instance their areas; equal ones
      by default.

  Returns:
    float64 [F, 4, 4]; rotations are proper.

  Source: Kabsch, A Solution for the Best Rotation to Relate Two Sets of
  Vectors, 1976.
  """
  rest = np.asarray(rest, np.float64)
  vertices = np.asarray(vertices, np.float64)
  weights = np.ones(len(rest)) if weights is None else np.asarray(weights)
  weights = weights / weights.sum()
  centre = weights @ rest
  centres = np.einsum("v,fvx->fx", weights, vertices)
  moments = np.einsum(
    "v,fvy,vx->fyx", weights, vertices - centres[:, None], rest - centre
  )
  transforms = np.tile(np.eye(4), (len(vertices), 1, 1))
  transforms[:, :3, :3] = rotations.nearest(moments)
  transforms[:, :3, 3] = centres - transforms[:, :3, :3] @ centre
  return transforms


def _check_segments(segments: Sequence[Segment], num_frames: int) -> None:
  expected = 0
  for first, last, mesh in segments:
    if first != expected or mesh.num_frames != last - first + 1:
      raise UserError(
        f"segment {first}..{last} with {mesh.num_frames} frames does not"
        f" continue at frame {expected}."
      )
    expected = last + 1
  if expected != num_frames:
    raise UserError(
      f"segments cover {expected} frames, the sequence has {num_frames}."
    )
