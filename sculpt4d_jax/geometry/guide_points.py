"""Guide points: the same material points on a deforming mesh in every frame.

Points are drawn once, on the rest pose, as faces and barycentrics: uniform by
area, and on sharp edges. In every frame they are evaluated on its faces and
then projected to its watertight surface, which gives position and normal. Row p
of all frames is one moving point.

Points that are deep inside of the object in all examined frames are rejected:
they belong to the inner ends of intersecting limbs.

Source: Sculpt4D, "Consistent surface sampling".
"""

from collections.abc import Callable, Sequence
import dataclasses

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import deforming_mesh as deforming_mesh_lib
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import mesh_distance
from sculpt4d_jax.geometry import sampling
from sculpt4d_jax.geometry import watertight

DeformingMesh = deforming_mesh_lib.DeformingMesh
TriangleMesh = mesh_lib.TriangleMesh

_OVERSAMPLE = 3


@dataclasses.dataclass(frozen=True)
class GuidePoints:
  """Points on the faces of a deforming mesh, the uniform ones first.

  Attributes:
    face_ids: int32 [P].
    barycentrics: float32 [P, 3].
    is_sharp: Whether it lies on a sharp edge, bool [P].
    sides: Side of its face that each point belongs to: 1 outside, -1 the back
      of a sheet, float32 [P].
    num_uniform: Number of uniform points, which come first.
  """

  face_ids: np.ndarray
  barycentrics: np.ndarray
  is_sharp: np.ndarray
  sides: np.ndarray
  num_uniform: int

  def __len__(self) -> int:
    return len(self.face_ids)

  def at(
    self, mesh: TriangleMesh, flipped: np.ndarray
  ) -> tuple[np.ndarray, np.ndarray]:
    """Positions and normals towards their side on a frame, each [P, 3]."""
    points = sampling.points_at(mesh, self.face_ids, self.barycentrics)
    turn = np.where(flipped[self.face_ids], -1, 1) * self.sides
    return points.positions, points.normals * turn[:, None]


@dataclasses.dataclass(frozen=True)
class Projection:
  """Guide points on the watertight surface of a frame.

  Attributes:
    positions: float32 [P, 3].
    normals: Outward unit normals, float32 [P, 3].
    moved: Distance that each point moved, float32 [P].
  """

  positions: np.ndarray
  normals: np.ndarray
  moved: np.ndarray


def draw(
  mesh: DeformingMesh,
  repair: watertight.Repair,
  surfaces: Sequence[tuple[int, TriangleMesh]],
  *,
  num_uniform: int,
  num_sharp: int,
  hidden_depth: float,
  rng: np.random.Generator,
  sharp_angle: float = 30.0,
) -> GuidePoints:
  """Draws guide points.

  Args:
    mesh: The animation.
    repair: Repair from `watertight.plan_repair`.
    surfaces: Indices and watertight surfaces of the frames in which hidden
      points are determined.
    num_uniform: Points by area.
    num_sharp: Points on sharp edges, by the area of the faces at them. Without
      visible sharp edges, points by area replace them, with `is_sharp` False.
    hidden_depth: Points deeper than this in all of the frames are hidden.
    rng: Randomness; the same state gives the same points.
    sharp_angle: Edges above this dihedral angle are sharp, degrees.

  Raises:
    ValueError: The rest pose has no area, or less than a tenth of it is
      visible.
  """
  rest = mesh.rest_mesh()
  area = mesh_distance.area(rest)
  if not (np.isfinite(area) and area > 0):
    rest = mesh.frame(0)

  def seen(
    draw_points: Callable[[int], sampling.SurfacePoints], count: int
  ) -> tuple[np.ndarray, np.ndarray] | None:
    """`count` points that are not hidden, or None if none are drawn."""
    drawn = draw_points(_OVERSAMPLE * count)
    if not len(drawn) or not count:
      return None
    chosen = np.flatnonzero(~_hidden(mesh, drawn, surfaces, hidden_depth))
    if len(chosen) < count * _OVERSAMPLE / 10:
      return None
    # Usually most of an object is visible; otherwise more points are drawn.
    chosen = np.resize(chosen, count) if len(chosen) < count else chosen[:count]
    return drawn.face_ids[chosen], drawn.barycentrics[chosen]

  uniform = seen(lambda n: sampling.sample_surface(rest, n, rng), num_uniform)
  if uniform is None:
    raise UserError(
      "Less than a tenth of the surface is ever seen; the rest is inside of"
      " the object."
    )
  sharp = seen(
    lambda n: sampling.sample_sharp_edges(
      rest, n, rng, angle_degrees=sharp_angle
    ),
    num_sharp,
  )
  has_sharp = sharp is not None
  if not has_sharp:
    sharp = seen(lambda n: sampling.sample_surface(rest, n, rng), num_sharp)
  groups = [uniform] if sharp is None else [uniform, sharp]
  face_ids = np.concatenate([group[0] for group in groups])
  is_sharp = np.zeros(len(face_ids), bool)
  is_sharp[num_uniform:] = has_sharp
  # A sheet has two sides; a point stays on its side.
  back = repair.sheets[face_ids] & (rng.random(len(face_ids)) < 0.5)
  return GuidePoints(
    face_ids=face_ids,
    barycentrics=np.concatenate([group[1] for group in groups]),
    is_sharp=is_sharp,
    sides=np.where(back, -1, 1).astype(np.float32),
    num_uniform=num_uniform,
  )


def project(
  positions: np.ndarray,
  normals: np.ndarray,
  surface: TriangleMesh,
  reach: float,
) -> Projection:
  """Moves points to the closest place of a watertight surface.

  If the closest place has an opposite normal (the far side of a thin part), the
  place closest to a point `reach` further out is used, if its normal agrees.

  Args:
    positions: [P, 3].
    normals: The direction of each point's side, unit length or zero, [P, 3].
    surface: Closed, wound outwards.
    reach: About the thickness of the thinnest parts.
  """
  found = mesh_distance.closest_points(surface, positions)
  face_normals = _unit_normals(surface)
  face_ids, places = found.face_ids.copy(), found.positions.copy()
  wrong = np.flatnonzero(np.sum(face_normals[face_ids] * normals, axis=1) < 0)
  if len(wrong):
    again = mesh_distance.closest_points(
      surface, positions[wrong] + reach * normals[wrong]
    )
    better = np.sum(face_normals[again.face_ids] * normals[wrong], axis=1) > 0
    face_ids[wrong[better]] = again.face_ids[better]
    places[wrong[better]] = again.positions[better]
  moved = np.linalg.norm(places - positions, axis=1)
  return Projection(
    places.astype(np.float32),
    face_normals[face_ids],
    moved.astype(np.float32),
  )


def _unit_normals(surface: TriangleMesh) -> np.ndarray:
  """Normals of faces, of their vertices where a face is a sliver, [T, 3]."""
  cross = surface.face_cross_products().astype(np.float64)
  length = np.linalg.norm(cross, axis=1, keepdims=True)
  smooth = surface.vertex_normals()[surface.faces].sum(1)
  smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-20)
  sliver = length < 1e-3 * np.median(length)
  return np.where(sliver, smooth, cross / np.maximum(length, 1e-30)).astype(
    np.float32
  )


def _hidden(
  mesh: DeformingMesh,
  points: sampling.SurfacePoints,
  surfaces: Sequence[tuple[int, TriangleMesh]],
  depth: float,
) -> np.ndarray:
  """Points deeper than `depth` in all of the frames, bool [P]."""
  hidden = np.ones(len(points), bool)
  for frame, surface in surfaces:
    rows = np.flatnonzero(hidden)
    if not len(rows):
      break
    positions = sampling.points_at(
      mesh.frame(frame), points.face_ids[rows], points.barycentrics[rows]
    ).positions
    signed = mesh_distance.signed_distance(surface, positions, cap=2 * depth)
    hidden[rows] = signed > depth
  return hidden
