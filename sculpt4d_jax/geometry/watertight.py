"""Watertight surfaces of meshes that artists made.

Animated models are soups: many bodies that pass through each other, holes
in hidden places, parts wound inside out, capes of no thickness. Their
watertight surface is the zero level of a field that marching cubes reads:

  body    distance, signed by the generalised winding number: bodies unite,
          small holes close, thickness stays the same
  sheets  faces that enclose nothing (cloth, capes, thin planes) have no inside;
          they get one, `sheet_cells` cells of the grid to either side
  cavities  regions that cannot be reached from outside are filled: they are
  invisible

Which faces are sheets, and which bodies must be turned around, is decided once
for a whole animation, so that the surface does not flicker.

Source: the field is that of Sculpt4D's data section (unsigned distance, flood
fill, marching cubes) with winding numbers for the sign, which do not thicken
solid parts.
"""

from collections.abc import Sequence
import dataclasses

import igl
import numpy as np
from scipy import ndimage

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import deforming_mesh as deforming_mesh_lib
from sculpt4d_jax.geometry import isosurface
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import mesh_distance
from sculpt4d_jax.geometry import sampling

DeformingMesh = deforming_mesh_lib.DeformingMesh
TriangleMesh = mesh_lib.TriangleMesh

# A component counts as a sheet if more than this fraction of its area is
# missing from the surface.
_SHEET_SHARE = 0.5
_MISSING_CELLS = 1.5
_FLAT_VOLUME = 1e-4  # As a fraction of the volume of a ball with the same area.


@dataclasses.dataclass(frozen=True)
class WatertightSettings:
  """Settings of the surface.

  Attributes:
    resolution: Number of cells along a side of the grid.
    bounds: Extent of the grid, from -bounds to bounds on each axis.
    min_resolution: Resolution of the coarsest grid. The field is a true
      distance, so that a coarse grid misses nothing, however thin.
    sheet_cells: Half the thickness that a sheet gets, in cells.
    fill_cavities: Whether space that cannot be reached from outside is filled.
    test_points: Number of points that are sampled to find the sheets.
    chunk_size: Number of points evaluated at a time.
  """

  resolution: int = 256
  bounds: float = 1.01
  min_resolution: int = 16
  sheet_cells: float = 1.0
  fill_cavities: bool = True
  test_points: int = 20_000
  chunk_size: int = 65_536

  def __post_init__(self):
    if self.resolution < 8 or not self.bounds > 0 or self.sheet_cells < 0.75:
      raise UserError(
        f"resolution={self.resolution} must be at least 8, bounds="
        f"{self.bounds} positive and sheet_cells={self.sheet_cells} at least"
        " 0.75, or sheets get holes."
      )

  @property
  def cell(self) -> float:
    """Side of a cell."""
    return 2 * self.bounds / self.resolution


@dataclasses.dataclass(frozen=True)
class Repair:
  """Classification of an animation's faces, needed to close it.

  Attributes:
    flipped: Mask of faces that are wound the wrong way, bool [T].
    sheets: Mask of faces that get a thickness, bool [T].
    body: Mask of faces that determine what is inside, bool [T].
  """

  flipped: np.ndarray
  sheets: np.ndarray
  body: np.ndarray


def find_flipped_faces(mesh: TriangleMesh) -> np.ndarray:
  """Finds faces that must be flipped so that all face outwards, bool [T].

  Pieces (faces connected by edges, with corners at the same position welded)
  are made consistent, then turned outwards. A closed piece that is wound
  inwards as a whole and lies inside the others is the wall of a cavity and
  stays unchanged.
  """
  faces = _welded_faces(mesh)
  solid = np.flatnonzero(
    (faces[:, 0] != faces[:, 1])
    & (faces[:, 1] != faces[:, 2])
    & (faces[:, 2] != faces[:, 0])
  )
  flipped = np.zeros(mesh.num_faces, bool)
  if not len(solid):
    return flipped
  # Makes windings consistent within a piece, but either way round.
  turned, piece = igl.bfs_orient(faces[solid])
  flipped[solid] = ~_same_cycle(faces[solid], turned)
  areas = np.linalg.norm(mesh.face_cross_products(), axis=1)
  for number in range(piece.max() + 1):
    members = solid[piece == number]
    kept = areas[members][~flipped[members]].sum()
    if kept < areas[members].sum() / 2:
      # Of both consistent windings, take the one that keeps more of the area.
      flipped[members] = ~flipped[members]
    part = _with_flips(mesh, flipped).faces[members]
    volume = mesh_distance.signed_volume(TriangleMesh(mesh.vertices, part))
    # Volume of a ball with the same area (cross products are twice the areas):
    # a scale for what counts as flat.
    ball = areas[members].sum() ** 1.5 / (6 * np.sqrt(np.pi)) / 2**1.5
    if volume < -_FLAT_VOLUME * ball and not _is_cavity(
      mesh, members, len(solid) == len(members)
    ):
      flipped[members] = ~flipped[members]
  return flipped


def _is_cavity(mesh: TriangleMesh, members: np.ndarray, is_alone: bool) -> bool:
  if is_alone:
    return False
  others = np.ones(mesh.num_faces, bool)
  others[members] = False
  rest = TriangleMesh(mesh.vertices, mesh.faces[others])
  # Centres of its faces; nearly all must lie inside the rest.
  corners = mesh.vertices[mesh.faces[members]].mean(1)
  return bool(np.mean(mesh_distance.winding_number(rest, corners) > 0.5) > 0.9)


def plan_repair(
  mesh: DeformingMesh,
  settings: WatertightSettings,
  rng: np.random.Generator,
  frames: Sequence[int] | None = None,
) -> tuple[Repair, dict[int, TriangleMesh | None]]:
  """Plans how to close an animation.

  Args:
    mesh: The animation, in the grid's bounds.
    settings: Settings of the surface.
    rng: Randomness of the points that are sampled to find the sheets.
    frames: Frames that are examined; by default the first, the middle and the
      last.

  Returns:
    The plan, and the surfaces of the examined frames (frame -> result of
    `close`), so that they need not be computed again. Empty if there are
    sheets, which change them.
  """
  flipped = find_flipped_faces(mesh.rest_mesh())
  everything = np.ones(mesh.num_faces, bool)
  plan = Repair(flipped, ~everything, everything)
  if frames is None:
    last = mesh.num_frames - 1
    frames = sorted({0, last // 2, last})
  piece = _pieces(mesh.rest_mesh())
  sheets, whole, surfaces = ~everything, ~everything, {}
  for frame in frames:
    source = mesh.frame(frame)
    surface = surfaces[frame] = close(source, plan, settings)
    missing, sampled = _missing_faces(source, surface, settings, rng)
    share = np.bincount(piece, missing) / np.maximum(
      np.bincount(piece, sampled), 1
    )
    # A mostly missing piece is a sheet and must not vote on what is inside, as
    # its winding numbers mean nothing.
    whole |= (share > _SHEET_SHARE)[piece]
    sheets |= missing > 0
  if not (sheets | whole).any():
    return plan, surfaces
  return Repair(flipped, sheets | whole, ~whole), {}


def add_missing(
  mesh: DeformingMesh,
  repair: Repair,
  surfaces: Sequence[TriangleMesh],
  settings: WatertightSettings,
  rng: np.random.Generator,
) -> Repair | None:
  """Extends a plan by faces that its surfaces lost in some frame.

  Parts that are thicker than a cell in the frames that `plan_repair` examined,
  such as a fin that bends, may be thinner in other frames, where the grid
  misses them.

  Args:
    mesh: The animation, in the grid's bounds.
    repair: Plan that the surfaces follow.
    surfaces: Surfaces of all frames.
    settings: Settings of the surfaces.
    rng: Randomness of the points that are sampled to find lost faces.

  Returns:
    A plan with these faces as sheets; None if no more faces are lost.
  """
  lost = np.zeros(mesh.num_faces, bool)
  for frame, surface in zip(mesh.frames(), surfaces, strict=True):
    lost |= _missing_faces(frame, surface, settings, rng)[0] > 0
  if not (lost & ~repair.sheets).any():
    return None
  return dataclasses.replace(repair, sheets=repair.sheets | lost)


def close(
  mesh: TriangleMesh, repair: Repair, settings: WatertightSettings
) -> TriangleMesh | None:
  """Makes the watertight surface of one frame.

  Args:
    mesh: A frame of the animation that `repair` was made for.
    repair: Repair from `plan_repair`.
    settings: Settings of the surface.

  Returns:
    A closed mesh, wound outwards; None if nothing is inside.
  """
  turned = _with_flips(mesh, repair.flipped)
  body = TriangleMesh(turned.vertices, turned.faces[repair.body])
  sheet = TriangleMesh(turned.vertices, turned.faces[repair.sheets])
  half_thickness = settings.sheet_cells * settings.cell
  coarsest = settings.resolution
  while coarsest // 2 >= settings.min_resolution:
    coarsest //= 2
  # Distances must be exact near the surface only: within a coarse cell.
  cap = 4 * settings.bounds / coarsest

  def field(points: np.ndarray) -> np.ndarray:
    # The grid pads its calls with the origin (for jitted fields): not
    # evaluated.
    used = 1 + np.flatnonzero(points.any(axis=1)).max(initial=0)
    result = np.empty(len(points), np.float32)
    result[:used] = distance_field(points[:used])
    result[used:] = result[used - 1]
    return result

  def distance_field(points: np.ndarray) -> np.ndarray:
    value = mesh_distance.signed_distance(body, points, cap=cap)
    if not sheet.is_empty:
      distance = mesh_distance.unsigned_distance(sheet, points, cap=cap)
      # The union of the solid and the slab around the sheet.
      value = np.maximum(value, half_thickness - distance)
    return value

  grid = isosurface.coarse_to_fine_field(
    field,
    settings.resolution,
    bounds=settings.bounds,
    band_cells=0.9,  # The field is a true distance.
    min_resolution=settings.min_resolution,
    chunk_size=settings.chunk_size,
  )
  values = grid.values
  if settings.fill_cavities:
    values = fill_cavities(values)
  # Values exactly on the level would give faces without area.
  tiny = 1e-4 * settings.cell
  values = np.where(np.abs(values) < tiny, -tiny, values)
  # Parts that leave the grid are closed at its sides.
  for axis in range(3):
    for side in (0, -1):
      index = [slice(None)] * 3
      index[axis] = side
      values[tuple(index)] = np.minimum(values[tuple(index)], -tiny)
  return isosurface.extract_surface(values, bounds=settings.bounds)


def fill_cavities(values: np.ndarray) -> np.ndarray:
  """Makes negative regions positive that cannot be reached from outside."""
  outside = values <= 0
  labels, _ = ndimage.label(outside)
  border = np.unique(
    np.concatenate(
      [
        np.take(labels, side, axis).ravel()
        for axis in range(3)
        for side in (0, -1)
      ]
    )
  )
  # Every region of "outside" that does not touch the side of the grid.
  cavity = outside & ~np.isin(labels, border)
  return np.where(cavity, np.maximum(np.abs(values), 1e-6), values)


def _missing_faces(
  source: TriangleMesh,
  surface: TriangleMesh | None,
  settings: WatertightSettings,
  rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
  """Counts samples of each face: missing from the surface, and all [T]."""
  points = sampling.sample_surface(source, settings.test_points, rng)
  missing = np.ones(len(points), bool)
  if surface is not None:
    allowed = _MISSING_CELLS * settings.cell
    signed = mesh_distance.signed_distance(
      surface, points.positions, cap=2 * allowed
    )
    missing = signed < -allowed
  counts = (
    np.bincount(points.face_ids[chosen], minlength=source.num_faces)
    for chosen in (missing, slice(None))
  )
  return tuple(counts)


def _with_flips(mesh: TriangleMesh, flipped: np.ndarray) -> TriangleMesh:
  faces = np.where(flipped[:, None], mesh.faces[:, ::-1], mesh.faces)
  return TriangleMesh(mesh.vertices, faces)


def _welded_faces(mesh: TriangleMesh) -> np.ndarray:
  """Faces [T, 3] with one index for all corners at the same position."""
  return mesh.welded()[0].faces.astype(np.int64)


def _pieces(mesh: TriangleMesh) -> np.ndarray:
  """Index of the piece of each face, by edges of the welded mesh [T]."""
  return igl.facet_components(_welded_faces(mesh))[1]


def _same_cycle(a: np.ndarray, b: np.ndarray) -> np.ndarray:
  """Whether faces with the same corners have the same winding [T]."""
  return np.any(
    [np.all(np.roll(a, shift, axis=1) == b, axis=1) for shift in range(3)],
    axis=0,
  )
