"""Metrics of tracked meshes, whose one topology follows a sequence.

Shapes alone do not show whether points move correctly. If material points are
known, they are attached to the tracked mesh in one frame, moved with it, and
compared with their true positions. Lengths are shares of the longest side of
the box around all frames.
"""

from collections.abc import Sequence
import dataclasses

import igl
import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import mesh_distance
from sculpt4d_jax.geometry.registration import checks
from sculpt4d_jax.geometry.registration import surfaces

DeformingMesh = deforming_mesh.DeformingMesh
TriangleMesh = mesh_lib.TriangleMesh


@dataclasses.dataclass(frozen=True)
class Correspondence:
  """Errors of points attached to a tracked mesh, without the key frame.

  Attributes:
    mean: Mean distance between carried and true points.
    p95: 95th percentile of these distances.
    by_frame: Mean distance in every frame [F].
    motion: Mean distance of true points from their position in the key frame.
    jitter: Mean difference of the carried and the true points' second
      differences over time; 0 with fewer than three frames.
  """

  mean: float
  p95: float
  by_frame: np.ndarray
  motion: float
  jitter: float


@dataclasses.dataclass(frozen=True)
class Surface:
  """Agreement of a tracked mesh with the surfaces, means over frames.

  Attributes:
    chamfer: Mean distance of the surfaces, averaged over both directions.
    worst_chamfer: The same in the worst frame.
    hausdorff99: 99th percentile of the distances, the worse direction.
    worst_hausdorff99: The same in the worst frame.
    turned: Share of the area whose normal points away from the target's.
    stretched: Share of the rest area stretched beyond 2 or below 1/2.
  """

  chamfer: float
  worst_chamfer: float
  hausdorff99: float
  worst_hausdorff99: float
  turned: float
  stretched: float


def correspondence(
  mesh: DeformingMesh, truth: np.ndarray, key: int
) -> Correspondence:
  """Compares attached points with true ones.

  Args:
    mesh: The tracked mesh.
    truth: Material points [F, P, 3], on the surface in all frames.
    key: Frame in which the points are attached to the mesh.

  Raises:
    ValueError: The numbers of frames differ, or there is only one frame.
  """
  truth = np.asarray(truth, np.float64)
  if truth.ndim != 3 or len(truth) != mesh.num_frames:
    raise UserError(
      f"truth must be [{mesh.num_frames}, P, 3], got {truth.shape}."
    )
  if mesh.num_frames < 2:
    raise UserError("correspondences need at least two frames, got one.")
  carried = carry(mesh, truth[key], key)
  unit = box_side(truth)
  errors = np.linalg.norm(carried - truth, axis=2) / unit
  others = np.arange(mesh.num_frames) != key
  motion = np.linalg.norm(truth - truth[key], axis=2)[others] / unit
  return Correspondence(
    mean=float(errors[others].mean()),
    p95=float(np.quantile(errors[others], 0.95)),
    by_frame=errors.mean(1),
    motion=float(motion.mean()),
    jitter=jitter(carried - truth) / unit,
  )


def carry(mesh: DeformingMesh, points: np.ndarray, frame: int) -> np.ndarray:
  """Attaches points [P, 3] in a frame and moves them along: [F, P, 3].

  A point keeps its barycentrics in the face that it is closest to.
  """
  at = mesh.frame(frame)
  closest = mesh_distance.closest_points(at, points)
  corners = at.vertices.astype(np.float64)[at.faces[closest.face_ids]]
  weights = igl.barycentric_coordinates(
    closest.positions,
    *(np.ascontiguousarray(corners[:, corner]) for corner in range(3)),
  )
  moved = mesh.vertices.astype(np.float64)[:, at.faces[closest.face_ids]]
  return np.einsum("pc,fpcx->fpx", weights, moved)


def surface(
  mesh: DeformingMesh,
  targets: Sequence[TriangleMesh],
  key: int | None = None,
  num_samples: int = 3000,
) -> Surface:
  """Compares a tracked mesh with the meshes of all frames.

  Args:
    mesh: The tracked mesh; stretch refers to its rest pose.
    targets: One mesh a frame.
    key: Frame that is left out, because the mesh was made from it.
    num_samples: Points on each surface.

  Raises:
    ValueError: The numbers of frames differ, or no frame is left.
  """
  if len(targets) != mesh.num_frames:
    raise UserError(f"expected {mesh.num_frames} targets, got {len(targets)}.")
  frames = [frame for frame in range(mesh.num_frames) if frame != key]
  if not frames:
    raise UserError("no frame is left to compare.")
  unit = box_side(np.concatenate([t.vertices for t in targets])[None])
  checker = checks.Checker(
    surfaces.Model.of(mesh.rest, mesh.faces), unit, num_samples
  )
  found = [
    checker.check(
      mesh.vertices[frame].astype(np.float64),
      checks.Reference.of(targets[frame], num_samples),
    )
    for frame in frames
  ]
  distances = np.array([[c.chamfer, c.hausdorff99] for c in found])
  return Surface(
    chamfer=float(distances[:, 0].mean()),
    worst_chamfer=float(distances[:, 0].max()),
    hausdorff99=float(distances[:, 1].mean()),
    worst_hausdorff99=float(distances[:, 1].max()),
    turned=float(np.mean([c.turned for c in found])),
    stretched=float(np.mean([c.stretched for c in found])),
  )


def jitter(positions: np.ndarray) -> float:
  """Mean length of second differences over time of positions [F, V, 3].

  Applied to vertices, it measures their shaking; applied to errors of points,
  the shaking that is not motion of the object.
  """
  if len(positions) < 3:
    return 0.0
  second = positions[2:] - 2 * positions[1:-1] + positions[:-2]
  return float(np.linalg.norm(second, axis=2).mean())


def box_side(points: np.ndarray) -> float:
  """Longest side of the box around points [F, P, 3]."""
  flat = np.asarray(points, np.float64).reshape(-1, 3)
  return float((flat.max(0) - flat.min(0)).max())
