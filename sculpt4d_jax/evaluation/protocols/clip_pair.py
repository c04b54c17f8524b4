"""A predicted and a true clip, with values shared by several metrics.

Points are sampled once per frame and aligned once per clip. Their distances are
cached until another frame is requested, so metrics share them.
"""

from collections.abc import Sequence
import concurrent.futures
import dataclasses
import functools
import os
from typing import Any

import numpy as np
import trimesh

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation import gradient_alignment
from sculpt4d_jax.evaluation import nearest
from sculpt4d_jax.evaluation import sequences
from sculpt4d_jax.evaluation.protocols import alignments
from sculpt4d_jax.evaluation.protocols import conventions as conventions_lib
from sculpt4d_jax.evaluation.views import pictures
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import sampling

TriangleMesh = mesh_lib.TriangleMesh
ShapeSequence = sequences.ShapeSequence
Transform = alignments.Transform

_EMPTY = TriangleMesh(np.zeros((0, 3)), np.zeros((0, 3)))


class NotDefined(Exception):
  """A metric is undefined for a clip; the message gives the reason."""


@dataclasses.dataclass(frozen=True)
class Distances:
  """Nearest distances between two surfaces, in both directions.

  Attributes:
    to_truth: Distances of the prediction's query points, float64 [Q].
    to_prediction: Distances of the truth's query points, float64 [Q'].
  """

  to_truth: np.ndarray
  to_prediction: np.ndarray


class ClipPair:
  """See the module.

  Attributes:
    name: Name of the clip.
    conventions: Parameters of the protocol.
    prediction: Prediction before normalisation and alignment.
    truth: Truth before normalisation.
    memory: Cache of values that several metrics share.
  """

  def __init__(
    self,
    prediction: ShapeSequence | None,
    truth: ShapeSequence,
    conventions: conventions_lib.Conventions,
    *,
    name: str = "",
    workers: int = 1,
  ):
    """Pairs two sequences.

    Args:
      prediction: None if missing; then no frame has a surface.
      truth: True meshes, one a frame, each with a surface.
      conventions: Parameters of the protocol.
      name: Name of the clip, for messages.
      workers: Threads of nearest-neighbour searches; -1 is one a core.

    Raises:
      ValueError: The numbers of frames differ, or the truth lacks a surface.
    """
    self.name = name
    self.conventions = conventions
    self.truth, self.prediction = _matched(truth, prediction, conventions, name)
    self._workers = workers
    for frame, mesh in enumerate(self.truth.meshes):
      if not geometry_metrics.has_surface(mesh):
        raise UserError(
          f"{self._where}frame {frame} of the truth has no surface; there is"
          " nothing to compare with."
        )
    self.memory: dict[str, Any] = {}
    self._distances: dict[tuple[int, bool], Distances] = {}
    self._pictures: dict[str, tuple[np.ndarray, np.ndarray]] = {}

  @property
  def _where(self) -> str:
    return f"{self.name}: " if self.name else ""

  @property
  def num_frames(self) -> int:
    """Number of frames F, equal in the prediction and the truth."""
    return self.truth.num_frames

  @functools.cached_property
  def is_empty(self) -> np.ndarray:
    """Whether a predicted frame has no surface, bool [F]."""
    if self.prediction.cloud is not None:
      return np.zeros(self.num_frames, bool)
    return np.array(
      [not geometry_metrics.has_surface(m) for m in self.prediction.meshes]
    )

  @functools.cached_property
  def true_clouds(self) -> list[np.ndarray]:
    """Sampled points of the unaligned truth, [P, 3] per frame."""
    return [self._sample(self.truth, frame) for frame in range(self.num_frames)]

  @functools.cached_property
  def predicted_clouds(self) -> list[np.ndarray]:
    """Likewise of the prediction; [0, 3] without a surface."""
    return [
      self._sample(self.prediction, frame) for frame in range(self.num_frames)
    ]

  def points(
    self, frame: int, *, per_frame: bool = False
  ) -> tuple[np.ndarray, np.ndarray]:
    """Aligned points of prediction and truth.

    Args:
      frame: Number of the frame.
      per_frame: Whether this frame is aligned separately, which only alignment
        by gradient supports.
    """
    move, move_truth = self.transforms
    if per_frame and self.conventions.alignment == "gradient":
      move = self._frame_transforms[frame]
    return (
      move(self.predicted_clouds[frame]),
      move_truth(self.true_clouds[frame]),
    )

  def distances(self, frame: int, *, per_frame: bool = False) -> Distances:
    """Nearest distances of aligned points; for arguments see `points`."""
    key = (frame, per_frame)
    if key not in self._distances:
      if all(kept[0] != frame for kept in self._distances):
        self._distances.clear()
      self._distances[key] = self._measure(
        *self.points(frame, per_frame=per_frame)
      )
    return self._distances[key]

  def meshes(self, frame: int) -> tuple[TriangleMesh, TriangleMesh]:
    """Aligned meshes of prediction and truth.

    Raises:
      NotDefined: One side is a cloud of points.
    """
    moved = []
    for what, shapes, move in (
      ("prediction", self.prediction, self.transforms[0]),
      ("truth", self.truth, self.transforms[1]),
    ):
      if shapes.cloud is not None:
        raise NotDefined(f"the {what} has points and no meshes")
      mesh = shapes.meshes[frame]
      moved.append(TriangleMesh(move(mesh.vertices), mesh.faces))
    return tuple(moved)

  def pictures(self, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of prediction and truth, uint8 [views, F, S, S, 3] each.

    Args:
      kind: "shaded" or "normals".

    Raises:
      NotDefined: One side is a cloud of points.
    """
    if kind not in self._pictures:
      settings = self.conventions.views
      render = {"shaded": pictures.shaded, "normals": pictures.normal_maps}[
        kind
      ]
      sides = zip(*(self.meshes(frame) for frame in range(self.num_frames)))
      self._pictures[kind] = tuple(
        render(meshes, settings.size, settings.azimuths) for meshes in sides
      )
    return self._pictures[kind]

  @functools.cached_property
  def tracked(self) -> tuple[np.ndarray, np.ndarray]:
    """Aligned points fixed on the deforming surface, [F, P, 3] each.

    The prediction's are NaN in frames without a surface.

    Raises:
      NotDefined: The topology of a side changes.
    """
    seed, count = self.conventions.seed, self.conventions.num_points
    move, move_truth = self.transforms
    predicted = _tracked(self.prediction, count, seed, "the prediction")
    true = _tracked(self.truth, count, seed + 1, "the truth")
    return (
      np.stack([move(points) for points in predicted]),
      np.stack([move_truth(points) for points in true]),
    )

  @functools.cached_property
  def transforms(self) -> tuple[Transform, Transform]:
    """Transforms of the prediction and the truth, for the complete clip."""
    before, before_truth = self._normalisations
    present = np.flatnonzero(~self.is_empty)
    if not len(present):
      return before, before_truth
    kind = self.conventions.alignment
    after, after_truth = alignments.identity, alignments.identity
    if kind == "gradient":
      # Frame 0 cannot be aligned without a surface.
      after = self._gradient(int(present[0]))
    elif kind == "first_frame_icp":
      after, after_truth = self._first_frame_icp(int(present[0]))
    elif kind != "none":
      after = self._icp(present, with_pose=kind == "icp")
    return (
      alignments.compose(after, before),
      alignments.compose(after_truth, before_truth),
    )

  @functools.cached_property
  def _normalisations(self) -> tuple[Transform, Transform]:
    kind = self.conventions.normalisation
    if kind == "none":
      return alignments.identity, alignments.identity
    if kind == "clip_box":
      clouds = [_extent(self.prediction, f) for f in range(self.num_frames)]
      return alignments.to_cube(clouds), alignments.identity
    present = np.flatnonzero(~self.is_empty)
    first = int(present[0]) if len(present) else 0
    return (
      alignments.to_cube([_extent(self.prediction, first)]),
      alignments.to_cube([_extent(self.truth, 0)]),
    )

  @functools.cached_property
  def _frame_transforms(self) -> dict[int, Transform]:
    """Alignments of all frames with a surface, computed in parallel."""
    before = self._normalisations[0]
    frames = np.flatnonzero(~self.is_empty).tolist()
    _ = self.transforms, self.predicted_clouds, self.true_clouds
    rest = frames[1:]
    threads = os.cpu_count() or 1 if self._workers == -1 else self._workers
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
      found = list(pool.map(functools.partial(self._gradient, workers=1), rest))
    moves = [alignments.compose(move, before) for move in found]
    # The first frame's is the clip's.
    return {frames[0]: self.transforms[0], **dict(zip(rest, moves))}

  def _gradient(self, frame: int, workers: int | None = None) -> Transform:
    before, before_truth = self._normalisations
    count, seed = self.conventions.alignment_points, self.conventions.seed
    is_reference = self.conventions.is_reference
    return gradient_alignment.align(
      before(_subset(self.predicted_clouds[frame], count, seed)),
      before_truth(_subset(self.true_clouds[frame], count, seed)),
      gradient_alignment.REFERENCE
      if is_reference
      else gradient_alignment.COARSE_TO_FINE,
      workers=self._workers if workers is None else workers,
    )

  def _first_frame_icp(self, frame: int) -> tuple[Transform, Transform]:
    before, before_truth = self._normalisations
    true = self.true_clouds[frame]
    true = _subset(true, alignments.ICP_TRUTH_POINTS, self.conventions.seed)
    return alignments.first_frame_icp(
      before(_extent(self.prediction, frame)),
      before_truth(true),
      as_reference=self.conventions.is_reference,
    )

  def _icp(self, frames: np.ndarray, *, with_pose: bool) -> Transform:
    clouds = [
      [self._icp_points(shapes, int(frame)) for frame in frames]
      for shapes in (self.prediction, self.truth)
    ]
    return geometry_metrics.find_alignment(*clouds, with_pose=with_pose)

  def _icp_points(self, shapes: ShapeSequence, frame: int) -> np.ndarray:
    seed = self.conventions.seed
    count = min(self.conventions.num_points, geometry_metrics.ICP_POINTS)
    if shapes.cloud is not None:
      return _subset(shapes.cloud[frame], count, seed)
    return geometry_metrics.surface_points(shapes.meshes[frame], count, seed)

  def _measure(self, prediction: np.ndarray, truth: np.ndarray) -> Distances:
    count, seed = self.conventions.num_queries, self.conventions.seed
    queries = (prediction, truth)
    if count is not None:
      queries = (
        _subset(prediction, count, seed),
        _subset(truth, count, seed + 1),
      )
    return Distances(
      nearest.nearest(truth, queries[0], self._workers)[0],
      nearest.nearest(prediction, queries[1], self._workers)[0],
    )

  def _sample(self, shapes: ShapeSequence, frame: int) -> np.ndarray:
    count, seed = self.conventions.num_points, self.conventions.seed + frame
    if shapes.cloud is not None:
      # One permutation for all frames keeps the points tracked.
      return _subset(shapes.cloud[frame], count, self.conventions.seed)
    mesh = shapes.meshes[frame]
    if self.conventions.sampling == "paired":
      return geometry_metrics.surface_points(mesh, count, seed)
    if not geometry_metrics.has_surface(mesh):
      return np.zeros((0, 3), np.float32)
    points, _ = trimesh.sample.sample_surface(
      trimesh.Trimesh(mesh.vertices, mesh.faces, process=False),
      count,
      # Otherwise equal meshes would get the same points and a distance of 0.
      seed=seed + (shapes is self.truth) * 1000,
    )
    return np.asarray(points, np.float32)


def _matched(
  truth: ShapeSequence,
  prediction: ShapeSequence | None,
  conventions: conventions_lib.Conventions,
  name: str,
) -> tuple[ShapeSequence, ShapeSequence]:
  """Both sides with one number of frames."""
  where = f"{name}: " if name else ""
  if not truth.num_frames:
    raise UserError(f"{where}there are no frames to compare.")
  if prediction is None:
    return truth, ShapeSequence((_EMPTY,) * truth.num_frames, source="nothing")
  num_predicted, num_true = prediction.num_frames, truth.num_frames
  if num_predicted > num_true and conventions.repeats_last_truth:
    truth = _repeat_last(truth, num_predicted)
  elif num_predicted > num_true and conventions.takes_first_frames:
    prediction = prediction.first(num_true)
  if prediction.num_frames != truth.num_frames:
    raise UserError(
      f"{where}{num_predicted} predicted frames against {num_true} true"
      " ones; sample the video at the times of the truth."
    )
  return truth, prediction


def _repeat_last(shapes: ShapeSequence, num_frames: int) -> ShapeSequence:
  missing = num_frames - shapes.num_frames
  if shapes.cloud is None:
    meshes = shapes.meshes + (shapes.meshes[-1],) * missing
    return dataclasses.replace(shapes, meshes=meshes)
  cloud = np.concatenate([shapes.cloud] + [shapes.cloud[-1:]] * missing)
  return dataclasses.replace(shapes, cloud=cloud)


def _extent(shapes: ShapeSequence, frame: int) -> np.ndarray:
  """Points that span a frame's box: vertices used by faces."""
  if shapes.cloud is not None:
    return shapes.cloud[frame]
  mesh = shapes.meshes[frame]
  return mesh.vertices[np.unique(mesh.faces)]


def _tracked(
  shapes: ShapeSequence, count: int, seed: int, what: str
) -> Sequence[np.ndarray]:
  if shapes.cloud is not None:
    return _subset(shapes.cloud.swapaxes(0, 1), count, seed).swapaxes(0, 1)
  present = [m for m in shapes.meshes if geometry_metrics.has_surface(m)]
  if not present:
    return np.full((len(shapes.meshes), 1, 3), np.nan)
  first = present[0]
  for mesh in present[1:]:
    if mesh.num_vertices != first.num_vertices or not np.array_equal(
      mesh.faces, first.faces
    ):
      raise NotDefined(f"the topology of {what} changes")
  drawn = sampling.sample_surface(first, count, np.random.default_rng(seed))
  return np.stack(
    [
      sampling.points_at(mesh, drawn.face_ids, drawn.barycentrics).positions
      if geometry_metrics.has_surface(mesh)
      else np.full((count, 3), np.nan, np.float32)
      for mesh in shapes.meshes
    ]
  )


def _subset(points: np.ndarray, count: int, seed: int) -> np.ndarray:
  """The first `count` rows of a permutation that depends only on the seed."""
  if len(points) <= count:
    return points
  return points[np.random.RandomState(seed).permutation(len(points))[:count]]
