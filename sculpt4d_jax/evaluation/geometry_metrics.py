"""Measures of a predicted mesh sequence against the true one.

Lengths are in the units of the meshes, which lie in [-1, 1]^3.

  chamfer  (mean distance prediction -> truth + mean distance truth ->
           prediction) / 2 between points sampled uniformly on both surfaces
           with the same seed; Euclidean distances, not squared. Zero for equal
           files. For two tessellations of one surface of area A it is about 0.5
           sqrt(A / P), the floor for P points.
  f_score  Harmonic mean of precision (share of the prediction's points closer
           to the truth's points than the threshold) and recall (the reverse).
  iou      Volume inside both over volume inside either, on the cell centres of
           a grid over [-1, 1]^3. A point is inside if the generalised winding
  number exceeds 1/2: exact for closed meshes, the union for overlapping closed
  parts, and a reasonable fill for surfaces with holes. A mesh wound inside out
  is reversed first.
  jitter   Change of motion from frame to frame that the truth does not have,
           in length per frame squared. With f the truncated signed distance,
           jitter = mean |D(f_prediction - f_truth)|, where D g = g[t-1] - 2
           g[t] + g[t+1], over the grid points whose distance to either surface
           is below the truncation in one of these three frames. It needs no
           correspondence: near a surface, f changes by the surface's motion
           along its normal. A constant offset or a steady drift scores zero; an
           alternating offset of +-a from frame to frame scores slightly less
           than 4 a.
  acceleration, truth_acceleration
           The same mean over |D f_prediction| and |D f_truth| alone, for
           reading the jitter as well.

A predicted frame without a surface gets the worst scores: the diagonal of the
cube as Chamfer distance, F-Score 0 and IoU 0; for the jitter its distance is
truncated everywhere. A true frame without a surface is an error in the data.

Sources: Knapitsch et al., Tanks and Temples, 2017 (F-Score); Barill et al.,
Fast Winding Numbers for Soups and Clouds, 2018; Besl and McKay, A Method for
Registration of 3-D Shapes, 1992 (ICP).
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools

import numpy as np
from scipy import spatial

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import nearest as nearest_lib
from sculpt4d_jax.geometry import grid_winding
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import mesh_distance
from sculpt4d_jax.geometry import sampling

TriangleMesh = mesh_lib.TriangleMesh

ALIGNMENTS = ("none", "scale_translation", "icp")

# The largest distance in [-1, 1]^3.
WORST_CHAMFER = 2.0 * 3.0**0.5

ICP_POINTS = 2000  # Per frame.
_ICP_ITERATIONS = 50
_ICP_TOLERANCE = 1e-7


@dataclasses.dataclass(frozen=True)
class Conventions:
  """Parameters of the metrics; quote them with the scores.

  Attributes:
    num_points: Points sampled on each surface for Chamfer and F-Score.
    f_score_threshold: Distance below which a point counts as matched.
    iou_resolution: Cells along an axis of the occupancy grid.
    jitter_resolution: Points along an axis of the grid of distances.
    truncation: Largest absolute distance, for the jitter.
    alignment: Transform that is removed from the prediction before the
      comparison, found once for the whole sequence: "none";
      "scale_translation", which matches the centroid and the root-mean-square
      radius of the truth's points; "icp", which starts from there and finds the
      nearest rigid pose.
    seed: Seed of the sampled points.
  """

  num_points: int = 30_000
  f_score_threshold: float = 0.05
  iou_resolution: int = 64
  jitter_resolution: int = 32
  truncation: float = 0.1
  alignment: str = "none"
  seed: int = 0

  def __post_init__(self):
    for name in ("num_points", "iou_resolution", "jitter_resolution"):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
    for name in ("f_score_threshold", "truncation"):
      if not 0.0 < getattr(self, name) <= WORST_CHAMFER:
        raise UserError(
          f"{name}={getattr(self, name)} must lie in (0,"
          f" {WORST_CHAMFER:.2f}], lengths in [-1, 1]^3."
        )
    if self.alignment not in ALIGNMENTS:
      raise UserError(
        f"alignment={self.alignment!r} is unknown; choose one of"
        f" {', '.join(ALIGNMENTS)}."
      )

  def describe(self) -> str:
    """One line of text for a table."""
    return (
      f"{self.num_points} points a surface, Chamfer = mean of both one-way"
      f" mean distances, F-Score at {self.f_score_threshold:g}, IoU on"
      f" {self.iou_resolution}^3 cells, jitter on"
      f" {self.jitter_resolution}^3 points truncated at {self.truncation:g},"
      f" all in [-1, 1]^3; alignment {self.alignment}; seed {self.seed}"
    )


@dataclasses.dataclass(frozen=True)
class SurfaceScores:
  """Distances between two surfaces as single numbers."""

  chamfer: float
  f_score: float


@dataclasses.dataclass(frozen=True)
class Motion:
  """Second differences in time; NaN for fewer than three frames."""

  jitter: float
  acceleration: float
  truth_acceleration: float


def has_surface(mesh: TriangleMesh) -> bool:
  """Whether any face has a positive area.

  Raises:
    ValueError: A vertex is not finite.
  """
  if not np.isfinite(mesh.vertices).all():
    raise UserError(
      "A mesh has vertices that are not finite; they have no distance to"
      " anything."
    )
  return mesh.has_area


def surface_points(
  mesh: TriangleMesh, num_points: int, seed: int
) -> np.ndarray:
  """Positions [P, 3] sampled uniformly; [0, 3] without a surface."""
  if not has_surface(mesh):
    return np.zeros([0, 3], np.float32)
  rng = np.random.default_rng(seed)
  return sampling.sample_surface(mesh, num_points, rng).positions


def surface_scores(
  prediction: np.ndarray, truth: np.ndarray, threshold: float
) -> SurfaceScores:
  """Chamfer distance and F-Score of two point sets.

  Args:
    prediction: Points [P, 3]; P may be 0.
    truth: Points [P', 3].
    threshold: Distance threshold of the F-Score.
  """
  if not len(truth):
    raise UserError("The truth has no points to compare with.")
  if not len(prediction):
    return SurfaceScores(chamfer=WORST_CHAMFER, f_score=0.0)
  to_truth, _ = nearest_lib.nearest(truth, prediction, workers=-1)
  to_prediction, _ = nearest_lib.nearest(prediction, truth, workers=-1)
  precision = np.mean(to_truth < threshold)
  recall = np.mean(to_prediction < threshold)
  total = precision + recall
  return SurfaceScores(
    chamfer=float((to_truth.mean() + to_prediction.mean()) / 2.0),
    f_score=float(2.0 * precision * recall / total) if total else 0.0,
  )


def grid_points(resolution: int) -> np.ndarray:
  """Centres of the cells of a grid over [-1, 1]^3, float64 [R^3, 3]."""
  grid = np.meshgrid(*[_centres(resolution)] * 3, indexing="ij")
  return np.stack(grid, axis=-1).reshape(-1, 3)


def occupancy(mesh: TriangleMesh, points: np.ndarray) -> np.ndarray:
  """Whether each point [Q, 3] is inside; False without a surface.

  Source: Barill et al., 2018, as implemented by libigl.
  """
  inside = np.zeros(len(points), bool)
  if not has_surface(mesh):
    return inside
  # Outside of the bounding box the winding number is below one half.
  used = mesh.vertices[np.unique(mesh.faces)]
  near = np.all((points >= used.min(0)) & (points <= used.max(0)), axis=1)
  near = np.flatnonzero(near)
  if not len(near):
    return inside
  winding = mesh_distance.winding_number(mesh, points[near])
  inside[near] = np.sign(mesh_distance.signed_volume(mesh)) * winding > 0.5
  return inside


def grid_occupancy(mesh: TriangleMesh, resolution: int) -> np.ndarray:
  """Which cells of `grid_points(resolution)` have their centre inside, [R^3].

  Equal to `occupancy` of all centres, but fast where the mesh is closed.
  """
  if not has_surface(mesh) or not _is_closed(mesh):
    return occupancy(mesh, grid_points(resolution))
  winding = grid_winding.grid_winding(mesh, _centres(resolution))
  volume = mesh_distance.signed_volume(mesh)
  return (np.sign(volume) * winding > 0.5).reshape(-1)


def intersection_over_union(prediction: np.ndarray, truth: np.ndarray) -> float:
  """IoU of two occupancies [Q]; 1 if both are empty."""
  union = np.count_nonzero(prediction | truth)
  return np.count_nonzero(prediction & truth) / union if union else 1.0


def truncated_distance(
  mesh: TriangleMesh,
  points: np.ndarray,
  truncation: float,
  inside: np.ndarray | None = None,
) -> np.ndarray:
  """Signed distance [Q], positive inside, cut off at +-truncation.

  Args:
    mesh: A surface, or none: then all points are outside.
    points: [Q, 3].
    truncation: Largest absolute distance.
    inside: Whether each point is inside, bool [Q], if that is known.
  """
  field = np.full(len(points), -truncation)
  if not has_surface(mesh):
    return field
  used = mesh.vertices[np.unique(mesh.faces)]
  near = np.flatnonzero(
    np.all(
      (points > used.min(0) - truncation) & (points < used.max(0) + truncation),
      axis=1,
    )
  )
  if not len(near):
    return field
  queries = np.ascontiguousarray(points[near], np.float64)
  # Computed separately from the sign: libigl's distance signed by winding
  # numbers is scaled by them, and too small near open surfaces.
  distance = mesh_distance.unsigned_distance(mesh, queries, truncation)
  is_inside = occupancy(mesh, queries) if inside is None else inside[near]
  field[near] = np.where(is_inside, distance, -distance)
  return field


def grid_distance(
  mesh: TriangleMesh, resolution: int, truncation: float
) -> np.ndarray:
  """`truncated_distance` at `grid_points(resolution)`, [R^3]."""
  return truncated_distance(
    mesh,
    grid_points(resolution),
    truncation,
    grid_occupancy(mesh, resolution),
  )


def motion(
  prediction: np.ndarray, truth: np.ndarray, truncation: float
) -> Motion:
  """Jitter and accelerations of two fields in time.

  Args:
    prediction: Truncated signed distances [F, Q].
    truth: Likewise [F, Q].
    truncation: Largest absolute distance.
  """
  if len(prediction) < 3:
    return Motion(*[float("nan")] * 3)
  in_band = (np.abs(prediction) < truncation) | (np.abs(truth) < truncation)
  active = in_band[:-2] | in_band[1:-1] | in_band[2:]  # [F - 2, Q]
  if not active.any():  # Neither is near a grid point.
    return Motion(0.0, 0.0, 0.0)

  def mean_change(field: np.ndarray) -> float:
    change = field[:-2] - 2.0 * field[1:-1] + field[2:]
    return float(np.abs(change[active]).mean())

  return Motion(
    jitter=mean_change(prediction - truth),
    acceleration=mean_change(prediction),
    truth_acceleration=mean_change(truth),
  )


def align(
  prediction: Sequence[TriangleMesh],
  truth: Sequence[TriangleMesh],
  conventions: Conventions,
) -> list[TriangleMesh]:
  """Aligns a predicted sequence with the truth.

  All frames share one transform, so that errors of motion remain. Frames
  without a surface are not used to find it. See `Conventions.alignment`.
  """
  if conventions.alignment == "none":
    return list(prediction)
  num_points = min(conventions.num_points, ICP_POINTS)
  pairs = [
    (
      surface_points(p, num_points, conventions.seed),
      surface_points(t, num_points, conventions.seed),
    )
    for p, t in zip(prediction, truth, strict=True)
    if has_surface(p) and has_surface(t)
  ]
  if not pairs:
    return list(prediction)
  sources, targets = map(list, zip(*pairs))
  with_pose = conventions.alignment == "icp"
  transform = find_alignment(sources, targets, with_pose=with_pose)
  return [
    TriangleMesh(transform(mesh.vertices.astype(np.float64)), mesh.faces)
    for mesh in prediction
  ]


Transform = Callable[[np.ndarray], np.ndarray]


def find_alignment(
  sources: Sequence[np.ndarray],
  targets: Sequence[np.ndarray],
  *,
  with_pose: bool,
) -> Transform:
  """Finds one transform for the points of all frames.

  Args:
    sources: Points of each frame [P, 3], at least one frame.
    targets: Target points of the same frames.
    with_pose: Whether a rigid pose is found by ICP after scale and translation.
  """
  transform = match_scale(np.concatenate(sources), np.concatenate(targets))
  if with_pose:
    rotate = iterate_closest_points([transform(s) for s in sources], targets)
    transform = compose(rotate, transform)
  return transform


def match_scale(source: np.ndarray, target: np.ndarray) -> Transform:
  """Scale and translation that match centroid and root-mean-square radius."""
  from_centre, to_centre = source.mean(0), target.mean(0)
  from_square = np.square(source - from_centre).sum(1).mean()
  to_square = np.square(target - to_centre).sum(1).mean()
  scale = np.sqrt(to_square / from_square)
  return lambda points: (points - from_centre) * scale + to_centre


def iterate_closest_points(
  sources: Sequence[np.ndarray], targets: Sequence[np.ndarray]
) -> Transform:
  """One rotation and translation for all frames, by ICP in both directions.

  Points find their nearest neighbours within their own frame. It finds a local
  minimum: a prediction rotated by more than about 30 degrees may not be
  corrected.
  """
  trees = [spatial.cKDTree(target) for target in targets]
  rotation, translation = np.eye(3), np.zeros(3)
  previous = np.inf
  for _ in range(_ICP_ITERATIONS):
    matches = []
    for source, target, tree in zip(sources, targets, trees):
      moved = source @ rotation.T + translation
      _, nearest = tree.query(moved, workers=-1)
      matches.append((source, target[nearest]))
      _, nearest = spatial.cKDTree(moved).query(target, workers=-1)
      matches.append((source[nearest], target))
    a = np.concatenate([a for a, _ in matches])
    b = np.concatenate([b for _, b in matches])
    rotation, translation = rigid_fit(a, b)
    error = np.square(a @ rotation.T + translation - b).sum(1).mean()
    if previous - error < _ICP_TOLERANCE * error:
      break
    previous = error
  return lambda points: points @ rotation.T + translation


def rigid_fit(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Rotation and translation that bring points a [P, 3] closest to b.

  Source: Kabsch, A solution for the best rotation to relate two sets of
  vectors, 1976.
  """
  a_centre, b_centre = a.mean(0), b.mean(0)
  u, _, vt = np.linalg.svd((b - b_centre).T @ (a - a_centre))
  flip = np.diag([1.0, 1.0, np.linalg.det(u @ vt)])  # No reflection.
  rotation = u @ flip @ vt
  return rotation, b_centre - rotation @ a_centre


def compose(*transforms: Transform) -> Transform:
  """Product of transforms; the last one is applied first."""
  return lambda points: functools.reduce(
    lambda x, transform: transform(x), reversed(transforms), points
  )


def _centres(resolution: int) -> np.ndarray:
  """Centres of the cells along an axis, float64 [R]."""
  return (np.arange(resolution) + 0.5) * (2.0 / resolution) - 1.0


def _is_closed(mesh: TriangleMesh) -> bool:
  """Whether every edge is used equally often in both directions."""
  return mesh_distance.is_closed(mesh.welded()[0])
