"""The round trip of a record: compares it with the asset it was made from.

A record holds points, distances and pictures of a watertight surface that was
made from an asset. Here they are compared with the asset itself. Lengths are in
cells of the grid that the surface was made on, where a name ends in `_cells`.
A record that violates a limit is rejected; the reason states by how much.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import math

import numpy as np

from sculpt4d_jax.data.preparation import views as record_views
from sculpt4d_jax.data.records import schema
from sculpt4d_jax.geometry import deforming_mesh as deforming_mesh_lib
from sculpt4d_jax.geometry import guide_points
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import mesh_distance
from sculpt4d_jax.geometry import sampling
from sculpt4d_jax.geometry import watertight
from sculpt4d_jax.rendering import cameras

DeformingMesh = deforming_mesh_lib.DeformingMesh
TriangleMesh = mesh_lib.TriangleMesh

# Distances in cells of the watertight surface's grid, above which surface
# counts as missing, as invented, and as far; and the angle of a wrong normal.
_MISSING_CELLS = 1.5
_EXTRA_CELLS = 2.0
_FAR_CELLS = 2.0
_NORMAL_DEGREES = 30.0


@dataclasses.dataclass(frozen=True)
class GateLimits:
  """Allowed differences between a record and its asset; all inclusive.

  The values lie between the measurements of good clips and those of clips that
  were broken on purpose: `benchmarks.preparation` prints both.

  Attributes:
    min_travel: Lower bound of `Motion.travel`; less is a still clip.
    max_size_ratio: Upper bound of `Motion.size_ratio`.
    max_stretch: Upper bound of `Motion.stretch`; more is an exploding clip.
    min_share_of_box: Lower bound of `Motion.share_of_box`; below it the object
      is lost in its scene.
    max_left_out: Share of the scene's area that was left out as no part of the
      object: what the loader drops no later measurement sees.
    max_chamfer_cells: Mean of both directed distances between the asset's
      visible surface and the watertight one.
    max_missing: Share of the visible surface further than 1.5 cells from the
      watertight one.
    max_extra: Share of the watertight surface further than 2 cells from the
      asset's, without the thickness that sheets get.
    max_sheets: Share of the asset's area that had no inside and was thickened.
    max_off_surface: Largest distance of a stored point from the surface, in
      world units; rounding to float16 alone gives up to 4.3e-4.
    max_unmatched: Share of points, over all frames, that the projection moved
      by more than 2 cells.
    max_slip_cells: Mean distance that a stored point slides relative to its
      material point from one frame to the next.
    max_sign_errors: Share of distance samples whose sign another method
      contradicts.
    max_source_sign_errors: The same against winding numbers of the asset,
      further than 2 cells from its surface.
    max_volume_ratio: Largest volume of a frame over the smallest.
    max_view_off: Largest distance between the asset and a point that is
      reconstructed from a view's depth and camera, in world units.
    max_view_normals: Share of a view's pixels whose normal is further than 30
      degrees from the asset's smooth normal at the visible point.
    min_coverage: Smallest share of a picture that the object covers.
  """

  min_travel: float = 0.02
  max_size_ratio: float = 4.0
  max_stretch: float = 12.0
  min_share_of_box: float = 0.2
  max_left_out: float = 0.5
  max_chamfer_cells: float = 0.35
  max_missing: float = 0.02
  max_extra: float = 0.02
  max_sheets: float = 0.3
  max_off_surface: float = 1e-3
  max_unmatched: float = 0.1
  max_slip_cells: float = 0.5
  max_sign_errors: float = 1e-3
  max_source_sign_errors: float = 0.005
  max_volume_ratio: float = 4.0
  max_view_off: float = 1e-3
  max_view_normals: float = 0.1
  min_coverage: float = 0.002


@dataclasses.dataclass(frozen=True)
class Rule:
  """A limit of the gate.

  Attributes:
    measure: Name of the measurement.
    limit: Field of `GateLimits`.
    meaning: Description of a violation.
  """

  measure: str
  limit: str
  meaning: str

  @property
  def is_minimum(self) -> bool:
    """Whether the limit is a lower bound, by its name."""
    return self.limit.startswith("min_")

  def keeps(self, value: float, limits: GateLimits) -> bool:
    """Whether a measurement keeps the limit; NaN does not."""
    limit = getattr(limits, self.limit)
    return value >= limit if self.is_minimum else value <= limit


RULES = (
  Rule("travel", "min_travel", "nothing moves"),
  Rule("size_ratio", "max_size_ratio", "the object changes its size"),
  Rule("stretch", "max_stretch", "the mesh explodes"),
  Rule("share_of_box", "min_share_of_box", "the object is lost in its scene"),
  Rule("left_out", "max_left_out", "most of the scene was left out"),
  Rule("chamfer_cells", "max_chamfer_cells", "the surface is another one"),
  Rule("missing", "max_missing", "parts are missing"),
  Rule("extra", "max_extra", "surface was invented"),
  Rule("sheets", "max_sheets", "most of it is sheets without an inside"),
  Rule("off_surface", "max_off_surface", "points are off the surface"),
  Rule("unmatched", "max_unmatched", "points lost their place on the mesh"),
  Rule("slip_cells", "max_slip_cells", "points slide over the mesh"),
  Rule("sign_errors", "max_sign_errors", "signs of distances are wrong"),
  Rule(
    "source_sign_errors",
    "max_source_sign_errors",
    "inside and outside are mixed up",
  ),
  Rule("volume_ratio", "max_volume_ratio", "the volume jumps"),
  Rule("view_off", "max_view_off", "depths and cameras miss the object"),
  Rule("view_normals", "max_view_normals", "normals of pictures are wrong"),
  Rule("coverage", "min_coverage", "a picture shows next to nothing"),
)


def judge(measures: dict[str, float], limits: GateLimits) -> list[str]:
  """Reasons to reject; none if all measurements keep their limits."""
  reasons = []
  for rule in RULES:
    if rule.measure not in measures:
      continue
    value = measures[rule.measure]
    if rule.keeps(value, limits):
      continue
    relation = "below" if rule.is_minimum else "above"
    if not math.isfinite(value):
      relation = "not comparable with"
    reasons.append(
      f"{rule.meaning}: {rule.measure} = {value:.3g} is {relation}"
      f" {getattr(limits, rule.limit):g}"
    )
  return reasons


def motion_measures(mesh: DeformingMesh) -> dict[str, float]:
  """Measurements of an animation that need no surface."""
  return dataclasses.asdict(deforming_mesh_lib.measure_motion(mesh))


def surface_measures(
  mesh: DeformingMesh,
  repair: watertight.Repair,
  surfaces: Sequence[TriangleMesh],
  settings: watertight.WatertightSettings,
  rng: np.random.Generator,
  num_points: int = 4000,
) -> dict[str, float]:
  """Compares watertight surfaces with the asset, in all frames.

  Returns:
    Means over frames of chamfer_cells and extra; missing is that of the worst
    frame.
  """
  cell = settings.cell
  thickness = settings.sheet_cells * cell if repair.sheets.any() else 0.0
  chamfers, missing, extra = [], [], []
  for frame, surface in enumerate(surfaces):
    source = mesh.frame(frame)
    # From the asset to the watertight surface, then back. Distances are capped
    # at 8 cells, far above every limit: an uncapped search in many faces is
    # slow.
    points = sampling.sample_surface(source, num_points, rng).positions
    signed = mesh_distance.signed_distance(surface, points, cap=8 * cell)
    # Points deeper than a cell are hidden inside another body.
    visible = signed[signed < cell]
    missing.append(float(np.mean(signed < -_MISSING_CELLS * cell)))
    made = sampling.sample_surface(surface, num_points, rng).positions
    back = mesh_distance.unsigned_distance(source, made, cap=8 * cell)
    extra.append(float(np.mean(back > _EXTRA_CELLS * cell + thickness)))
    there = np.abs(visible).mean() if len(visible) else np.inf
    chamfers.append(float((there + back.mean()) / 2 / cell))
  volumes = [mesh_distance.signed_volume(surface) for surface in surfaces]
  areas = np.linalg.norm(mesh.rest_mesh().face_cross_products(), axis=1)
  return dict(
    chamfer_cells=float(np.mean(chamfers)),
    missing=max(missing),
    extra=float(np.mean(extra)),
    sheets=float(areas[repair.sheets].sum() / max(areas.sum(), 1e-30)),
    volume_ratio=max(volumes) / max(min(volumes), 1e-9),
    volume=volumes[0],
  )


def point_measures(
  stored: np.ndarray,
  guides: np.ndarray,
  projections: Sequence[guide_points.Projection],
  surfaces: Sequence[TriangleMesh],
  settings: watertight.WatertightSettings,
  num_points: int = 4000,
) -> dict[str, float]:
  """Checks stored points against their surface and their material points.

  Args:
    stored: Positions as they are kept, [F, P, 3].
    guides: Positions of the material points, [F, P, 3].
    projections: Projections that gave the stored points, one a frame.
    surfaces: Watertight surfaces, one a frame.
    settings: Settings of the surface.
    num_points: Number of points that are checked, evenly spread over all.
  """
  rows = np.linspace(0, stored.shape[1] - 1, num_points).astype(int)
  rows = np.unique(rows)
  off = max(
    float(mesh_distance.unsigned_distance(s, p[rows]).max())
    for s, p in zip(surfaces, stored.astype(np.float64))
  )
  moved = np.stack([p.moved for p in projections])
  # A point of a sheet moves by half its thickness, which is not an error.
  allowed = (_FAR_CELLS + settings.sheet_cells) * settings.cell
  # A constant offset is no slip; only its change from frame to frame is.
  matched = stored[:, rows].astype(np.float64) - guides[:, rows]
  slip = np.linalg.norm(np.diff(matched, axis=0), axis=-1)
  return dict(
    off_surface=off,
    unmatched=float(np.mean(moved > allowed)),
    slip_cells=float(slip.mean() / settings.cell) if len(slip) else 0.0,
    moved_cells=float(moved.mean() / settings.cell),
  )


def sign_measures(
  mesh: DeformingMesh,
  repair: watertight.Repair,
  samples: np.ndarray,
  surfaces: Sequence[TriangleMesh],
  settings: watertight.WatertightSettings,
  num_samples: int = 1500,
) -> dict[str, float]:
  """Checks the signs of stored distances [F, Q, 4] by two other methods."""
  rows = np.linspace(0, samples.shape[1] - 1, num_samples).astype(int)
  rows = np.unique(rows)
  wrong, contradicted, far_samples, total = 0, 0, 0, 0
  for frame, surface in enumerate(surfaces):
    points = samples[frame, rows, :3].astype(np.float64)
    inside = samples[frame, rows, 3] > 0
    wrong += np.count_nonzero(
      # Stored signs come from winding numbers; pseudonormals are independent.
      mesh_distance.pseudonormal_inside(surface, points) != inside
    )
    total += len(rows)
    source = mesh.frame(frame)
    # Near the asset's own surface the watertight one may differ rightly.
    far = np.flatnonzero(
      mesh_distance.unsigned_distance(
        source, points, cap=2 * _FAR_CELLS * settings.cell
      )
      > _FAR_CELLS * settings.cell
    )
    faces = np.where(repair.flipped[:, None], mesh.faces[:, ::-1], mesh.faces)[
      repair.body
    ]
    winding = mesh_distance.winding_number(
      TriangleMesh(source.vertices, faces), points[far]
    )
    # A filled cavity is inside, although the asset's winding number there is 0.
    outside_of_all = mesh_distance.winding_number(surface, points[far]) < 0.5
    contradicted += np.count_nonzero(
      np.where(outside_of_all, winding > 0.5, ~inside[far])
    )
    far_samples += len(far)
  return dict(
    sign_errors=wrong / max(total, 1),
    source_sign_errors=contradicted / max(far_samples, 1),
  )


def view_measures(
  mesh: DeformingMesh,
  repair: watertight.Repair,
  view: Mapping[str, np.ndarray],
  buffers: Mapping[str, np.ndarray],
  num_pixels: int = 2000,
) -> dict[str, float]:
  """Reads an encoded view back and compares it with the asset.

  The pixels of the first and last frame go back into the world, by their depth
  and the stored camera, where they must lie on the asset's faces.

  Args:
    mesh: The animation, normalised.
    repair: Repair that says which faces are wound the wrong way.
    view: Fields of a "view" entry.
    buffers: Fields of its "buffers" entry.
    num_pixels: Number of pixels checked in each frame, evenly spread.
  """
  near, far = buffers["depth_range"].tolist()
  camera = cameras.Camera(
    view["camera_to_world"], fov_degrees=float(view["fov_degrees"][0])
  )
  off, wrong, total = 0.0, 0, 0
  faces = np.where(repair.flipped[:, None], mesh.faces[:, ::-1], mesh.faces)
  for frame in sorted({0, mesh.num_frames - 1}):
    depth = record_views.decode_depth(
      schema.unpack(buffers["depth"], buffers["depth_ends"], frame),
      near,
      far,
    )
    normals = record_views.decode_normals(
      schema.unpack(buffers["normal"], buffers["normal_ends"], frame)
    )
    seen = np.flatnonzero(depth)
    if not len(seen):
      continue
    seen = seen[:: -(-len(seen) // num_pixels)]
    origins, directions = (
      rays.reshape(-1, 3)[seen]
      for rays in cameras.camera_rays(camera, *depth.shape)
    )
    points = origins + directions * depth.reshape(-1)[seen, None]
    source = TriangleMesh(mesh.vertices[frame], faces)
    found = mesh_distance.closest_points(source, points)
    off = max(off, float(found.distances.max()))
    smooth = _smooth_normals(source, found)
    cosine = np.sum(smooth * normals.reshape(-1, 3)[seen], axis=1)
    wrong += np.count_nonzero(cosine < math.cos(math.radians(_NORMAL_DEGREES)))
    total += len(seen)
  return dict(view_off=off, view_normals=wrong / max(total, 1))


def _smooth_normals(
  mesh: TriangleMesh, found: mesh_distance.ClosestPoints
) -> np.ndarray:
  """Unit normals at points of a mesh, interpolated between vertices, [Q, 3]."""
  corners = mesh.vertices.astype(np.float64)[mesh.faces[found.face_ids]]
  spokes = corners - found.positions[:, None]
  # Barycentric weight of a corner: the area of the opposite triangle.
  weights = np.linalg.norm(
    np.cross(np.roll(spokes, -1, axis=1), np.roll(spokes, -2, axis=1)),
    axis=-1,
  )
  normals = mesh.vertex_normals()[mesh.faces[found.face_ids]]
  smooth = np.einsum("qc,qcx->qx", weights, normals)
  length = np.linalg.norm(smooth, axis=1, keepdims=True)
  return smooth / np.maximum(length, 1e-30)
