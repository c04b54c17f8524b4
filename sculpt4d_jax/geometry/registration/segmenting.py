"""Gives runs of frames a topology each where one cannot show them all.

First where the number of connected parts changes. Then where frames have failed
all the same: legs that are fused in some frames and apart in others are one
part throughout, yet no single topology shows both. A frame inside a failed run
is registered to its neighbourhood, and its mesh is shown where it is clearly
better; before and after, the earlier mesh is shown again.
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from sculpt4d_jax.geometry.registration import frames as frames_lib
from sculpt4d_jax.geometry.registration import result

# Registers frames first..last alone, from a key frame among them or a chosen
# one; frames are counted from `first`.
RegisterPart = Callable[[int, int, int | None], result.Registered]

_REACH = 3  # Frames around a failed run to which its topology is tried.
_CLEARLY = 0.7  # Share of the earlier HD99 below which a frame is better.
_MOST_LOST = 0.5  # Share of the key's gain that a neighbour may lose.
_LEAST_FRAMES = 2  # A single frame is not worth another topology.


@dataclasses.dataclass(frozen=True)
class _Shown:
  """The mesh that shows a frame.

  Attributes:
    topology: Number of the mesh.
    vertices: Positions [V, 3].
    report: Checks of the frame.
  """

  topology: int
  vertices: np.ndarray
  report: result.FrameReport

  @property
  def has_failed(self) -> bool:
    """Whether the mesh does not show the frame."""
    return self.report.verdict == result.Verdict.FAILED


def by_parts(
  found: result.Registered,
  frames: frames_lib.Frames,
  register_part: RegisterPart,
) -> result.Registered:
  """Adds a topology for each run of frames with the same number of parts."""
  runs = runs_of_parts([frames.num_parts(i) for i in range(len(frames))])
  if len(runs) < 2:
    return found
  segments, reports = [], []
  for first, last in runs:
    if frames.part(first, last).usable():
      piece = register_part(first, last, None)
      segments.append(result.Segment(first, last, piece.mesh))
      reports += _moved(piece.reports, first)
    else:
      kept = found.mesh.vertices[first : last + 1]
      mesh = dataclasses.replace(found.mesh, vertices=kept)
      segments.append(result.Segment(first, last, mesh))
      reports += found.reports[first : last + 1]
  return dataclasses.replace(
    found, segments=tuple(segments), segment_reports=tuple(reports)
  )


def by_failures(
  found: result.Registered,
  frames: frames_lib.Frames,
  register_part: RegisterPart,
  most: int,
) -> result.Registered:
  """Adds topologies for runs of frames that have failed.

  Args:
    found: The registration, perhaps with segments.
    frames: The sequence.
    register_part: Registers a run of frames.
    most: Largest number of topologies that are added.

  Returns:
    The registration with further segments, or `found` if none helps.
  """
  meshes = [segment.mesh for segment in found.segments]
  shown = _shown(found)
  tried: set[int] = set()
  for _ in range(2 * most):
    run = _worst_run(shown, frames, tried)
    if run is None or len(meshes) == len(found.segments) + most:
      break
    # Surface is lost where parts touch; the frame with most of it has them
    # apart.
    key = max(run, key=frames.area)
    tried.add(key)
    first = max(0, run[0] - _REACH)
    last = min(len(frames) - 1, run[-1] + _REACH)
    piece = register_part(first, last, key - first)
    reports = _moved(piece.reports, first)
    chosen = _where_better(reports, shown[first : last + 1], key)
    if len(chosen) < _LEAST_FRAMES:
      continue
    for frame in chosen:
      vertices = piece.mesh.vertices[frame - first]
      shown[frame] = _Shown(len(meshes), vertices, reports[frame - first])
    meshes.append(piece.mesh)
  if len(meshes) == len(found.segments):
    return found
  segments = []
  for first, last in _runs([one.topology for one in shown]):
    vertices = np.stack([one.vertices for one in shown[first : last + 1]])
    mesh = dataclasses.replace(meshes[shown[first].topology], vertices=vertices)
    segments.append(result.Segment(first, last, mesh))
  return dataclasses.replace(
    found,
    segments=tuple(segments),
    segment_reports=tuple(one.report for one in shown),
  )


def runs_of_parts(counts: Sequence[int]) -> list[tuple[int, int]]:
  """Runs (first, last) of frames with equally many parts.

  A single frame that differs is added to the previous run: it is not worth
  another topology.
  """
  merged: list[list[int]] = []
  for first, last in _runs(counts):
    single = first == last
    same = bool(merged) and counts[merged[-1][0]] == counts[first]
    if merged and (single or same or merged[-1][0] == merged[-1][1]):
      merged[-1][1] = last
    else:
      merged.append([first, last])
  return [(first, last) for first, last in merged]


def _runs(values: Sequence[int]) -> list[tuple[int, int]]:
  """Runs (first, last) of equal values."""
  runs: list[list[int]] = []
  for index, value in enumerate(values):
    if runs and values[runs[-1][0]] == value:
      runs[-1][1] = index
    else:
      runs.append([index, index])
  return [(first, last) for first, last in runs]


def _shown(found: result.Registered) -> list[_Shown]:
  reports = iter(found.segment_reports)
  return [
    _Shown(number, vertices, next(reports))
    for number, segment in enumerate(found.segments)
    for vertices in segment.mesh.vertices
  ]


def _worst_run(
  shown: Sequence[_Shown], frames: frames_lib.Frames, tried: set[int]
) -> list[int] | None:
  """The frames of the failed run with the largest sum of HD99, or None."""
  usable = set(frames.usable()) - tried
  runs = []
  for first, last in _runs([int(one.has_failed) for one in shown]):
    run = [f for f in range(first, last + 1) if f in usable]
    if run and shown[first].has_failed:
      runs.append(run)
  return max(runs, key=lambda run: _total(shown, run), default=None)


def _total(shown: Sequence[_Shown], run: Sequence[int]) -> float:
  return sum(min(shown[frame].report.hausdorff99, 1.0) for frame in run)


def _where_better(
  reports: Sequence[result.FrameReport], shown: Sequence[_Shown], key: int
) -> list[int]:
  """Frames around the key in which a new mesh is better than the one shown."""
  first = reports[0].frame

  def gain(frame: int) -> float:
    earlier = shown[frame - first].report.hausdorff99
    return reports[frame - first].hausdorff99 - _CLEARLY * earlier

  chosen = [key]
  for step in (-1, 1):
    frame = key + step
    while 0 <= frame - first < len(reports) and gain(frame) < 0:
      chosen.append(frame)
      frame += step
  if len(chosen) == 1:
    # A neighbour that loses less than the key gains makes the run long enough.
    most = _MOST_LOST * shown[key - first].report.hausdorff99
    near = [
      frame
      for frame in (key - 1, key + 1)
      if 0 <= frame - first < len(reports)
      and reports[frame - first].verdict != result.Verdict.FAILED
      and gain(frame) < most
    ]
    chosen += sorted(near, key=gain)[:1]
  return sorted(chosen)


def _moved(
  reports: Sequence[result.FrameReport], first: int
) -> list[result.FrameReport]:
  """Reports of a part, with the numbers of the whole sequence."""
  return [
    dataclasses.replace(r, frame=r.frame + first, key=r.key + first)
    for r in reports
  ]
