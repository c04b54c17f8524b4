"""Damages clips to test whether the gate's limits detect it.

Each trial applies one kind of damage to a good round trip, at about the
smallest strength that would harm training. A limit is useful if all good clips
pass it and its trials fail it; `separate` measures the margin.
"""

from collections.abc import Callable, Iterable
import dataclasses

import numpy as np
from scipy.spatial import transform as rotations
import trimesh

from benchmarks.preparation import round_trip
from sculpt4d_jax.data.preparation import quality_gate
from sculpt4d_jax.data.preparation import views as record_views
from sculpt4d_jax.data.records import schema
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import guide_points
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import mesh_distance
from sculpt4d_jax.geometry import watertight
from sculpt4d_jax.rendering import cameras
from sculpt4d_jax.rendering import rasterizer

DeformingMesh = deforming_mesh.DeformingMesh
RoundTrip = round_trip.RoundTrip
TriangleMesh = mesh_lib.TriangleMesh

_FINE = 200  # Vertices needed for a spike.
_SHEETS = 0.05  # Smallest share of the area that is removed.
_DEEP = 0.01  # Smallest share of samples deep inside of a solid.


@dataclasses.dataclass(frozen=True)
class Trial:
  """A kind of damage to a clip.

  Attributes:
    name: Short description of the damage.
    measure: The measure of the gate that should detect it.
    group: Name in `round_trip.GROUPS` of the group that has the measure.
    damage: Damages a round trip; returns None if it is not applicable.
  """

  name: str
  measure: str
  group: str
  damage: Callable[[RoundTrip], RoundTrip | None]


@dataclasses.dataclass(frozen=True)
class Separation:
  """The separation of good and damaged clips by a limit.

  Attributes:
    measure: Name of the gate's measure.
    limit: Its value.
    good: The worst value of good clips.
    kept: Whether all good clips keep the limit.
    trial: Name of the trial.
    broken: The mildest value of broken clips; NaN if none could be broken.
    num_broken: Number of clips that could be damaged in this way.
    caught: Number of them that the limit rejects.
  """

  measure: str
  limit: float
  good: float
  kept: bool
  trial: str
  broken: float
  num_broken: int
  caught: int

  @property
  def separates(self) -> bool:
    """Whether all good clips pass and all damaged ones fail."""
    return self.kept and self.num_broken > 0 and self.caught == self.num_broken


def separate(
  trips: Iterable[RoundTrip], limits: quality_gate.GateLimits
) -> tuple[list[Separation], list[dict[str, float]]]:
  """Damages good clips in all ways and measures both versions.

  Args:
    trips: Round trips of clips that are good; taken one after the other.
    limits: Limits of the gate.

  Returns:
    A row a trial, and the measures of the good clips.
  """
  good: list[dict[str, float]] = []
  broken: dict[str, list[float]] = {trial.name: [] for trial in TRIALS}
  for trip in trips:
    good.append(round_trip.measure(trip))
    for trial in TRIALS:
      damaged = trial.damage(trip)
      if damaged is not None:
        value = round_trip.measure(damaged, trial.group)[trial.measure]
        broken[trial.name].append(value)
  rules = {rule.measure: rule for rule in quality_gate.RULES}
  rows = []
  for trial in TRIALS:
    rule, values = rules[trial.measure], broken[trial.name]
    own = [measures[trial.measure] for measures in good]
    rows.append(
      Separation(
        measure=trial.measure,
        limit=getattr(limits, rule.limit),
        good=min(own) if rule.is_minimum else max(own),
        kept=all(rule.keeps(value, limits) for value in own),
        trial=trial.name,
        broken=(max if rule.is_minimum else min)(values, default=np.nan),
        num_broken=len(values),
        caught=sum(not rule.keeps(value, limits) for value in values),
      )
    )
  return rows, good


def _with_source(trip: RoundTrip, vertices: np.ndarray) -> RoundTrip:
  source = trip.source
  return dataclasses.replace(
    trip, source=DeformingMesh(vertices, source.faces, source.rest)
  )


def _still(trip: RoundTrip) -> RoundTrip:
  frames = trip.source.vertices
  return _with_source(trip, frames[0] + 0.01 * (frames - frames[0]))


def _growing(trip: RoundTrip) -> RoundTrip:
  frames = trip.source.vertices.copy()
  middle = frames[-1].mean(0)
  frames[-1] = middle + 5 * (frames[-1] - middle)
  return _with_source(trip, frames)


def _spikes(trip: RoundTrip) -> RoundTrip | None:
  """Moves every fiftieth vertex away by the object's size."""
  if trip.source.num_vertices < _FINE:
    return None
  frames = trip.source.vertices.copy()
  size = np.linalg.norm(np.ptp(frames[-1], axis=0))
  frames[-1, ::50] += np.array([size, 0, 0], np.float32)
  return _with_source(trip, frames)


def _far_away(trip: RoundTrip) -> RoundTrip:
  frames = trip.source.vertices.copy()
  size = np.linalg.norm(np.ptp(frames[-1], axis=0))
  frames[-1] += np.array([10 * size, 0, 0], np.float32)
  return _with_source(trip, frames)


def _with_surfaces(
  trip: RoundTrip, change: Callable[[np.ndarray], np.ndarray]
) -> RoundTrip:
  surfaces = tuple(
    TriangleMesh(change(surface.vertices), surface.faces)
    for surface in trip.surfaces
  )
  return dataclasses.replace(trip, surfaces=surfaces)


def _shifted(trip: RoundTrip) -> RoundTrip:
  offset = np.array([2 * trip.settings.surface.cell, 0, 0], np.float32)
  return _with_surfaces(trip, lambda vertices: vertices + offset)


def _without_limb(trip: RoundTrip) -> RoundTrip:
  """Cuts off the upper tenth of the object and closes it by a plane."""
  height = np.quantile(trip.mesh.vertices[0][:, 1], 0.9)
  lowest = trip.mesh.vertices[..., 1].min()
  top = lowest + 0.85 * (trip.mesh.vertices[..., 1].max() - lowest)
  height = min(height, top)

  def cut(vertices: np.ndarray) -> np.ndarray:
    return np.stack(
      [vertices[:, 0], np.minimum(vertices[:, 1], height), vertices[:, 2]], 1
    )

  return _with_surfaces(trip, cut)


def _without_sheets(trip: RoundTrip) -> RoundTrip | None:
  areas = np.linalg.norm(trip.mesh.rest_mesh().face_cross_products(), axis=1)
  sheets = trip.repair.sheets
  if areas[sheets].sum() < _SHEETS * areas.sum() or not trip.repair.body.any():
    return None
  repair = dataclasses.replace(trip.repair, sheets=np.zeros_like(sheets))
  surfaces = tuple(
    watertight.close(frame, repair, trip.settings.surface)
    for frame in trip.mesh.frames()
  )
  if any(surface is None for surface in surfaces):
    return None
  return dataclasses.replace(trip, surfaces=surfaces)


def _with_ball(trip: RoundTrip) -> RoundTrip:
  """Adds a ball in the emptiest corner of the cube."""
  corners = 0.8 * np.stack(np.meshgrid([-1, 1], [-1, 1], [-1, 1]), -1).reshape(
    -1, 3
  )
  first = trip.surfaces[0]
  place = corners[np.argmax(mesh_distance.unsigned_distance(first, corners))]
  ball = trimesh.creation.icosphere(2, 0.15)
  surfaces = tuple(
    TriangleMesh(
      np.concatenate([surface.vertices, ball.vertices + place]),
      np.concatenate([surface.faces, ball.faces + surface.num_vertices]),
    )
    for surface in trip.surfaces
  )
  return dataclasses.replace(trip, surfaces=surfaces)


def _opened(trip: RoundTrip) -> RoundTrip | None:
  """Removes nine of ten faces, so that there is no inside."""
  rest = trip.mesh.rest_mesh()
  keep = np.arange(rest.num_faces) % 10 == 0
  if rest.num_faces < _FINE:
    return None
  mesh = trip.mesh.select_faces(keep)
  repair, _ = watertight.plan_repair(
    mesh, trip.settings.surface, np.random.default_rng(0), frames=[0]
  )
  return dataclasses.replace(trip, mesh=mesh, repair=repair)


def _half_as_large(trip: RoundTrip) -> RoundTrip:
  """Halves the size of the last frame's surface."""
  last = trip.surfaces[-1]
  middle = last.vertices.mean(0)
  small = TriangleMesh(middle + 0.5 * (last.vertices - middle), last.faces)
  return dataclasses.replace(trip, surfaces=(*trip.surfaces[:-1], small))


def _with_stored(trip: RoundTrip, stored: np.ndarray) -> RoundTrip:
  points = dataclasses.replace(trip.points, stored=stored.astype(np.float16))
  return dataclasses.replace(trip, points=points)


def _lifted(trip: RoundTrip) -> RoundTrip:
  """Moves points to 0.003 above the surface."""
  stored = trip.points.stored.astype(np.float32)
  stored[..., :3] += 0.003 * stored[..., 3:]
  return _with_stored(trip, stored)


def _sliding(trip: RoundTrip) -> RoundTrip:
  """Moves points along the surface by a cell, differently in every frame."""
  rng = np.random.default_rng(0)
  stored = trip.points.stored.astype(np.float32)
  ways = rng.normal(size=stored[..., :3].shape)
  normals = stored[..., 3:]
  ways -= np.sum(ways * normals, -1, keepdims=True) * normals
  ways /= np.maximum(np.linalg.norm(ways, axis=-1, keepdims=True), 1e-9)
  stored[..., :3] += trip.settings.surface.cell * ways
  return _with_stored(trip, stored)


def _drawn_anew(trip: RoundTrip) -> RoundTrip:
  """Draws new points in every frame."""
  rng = np.random.default_rng(0)
  stored = [frame[rng.permutation(len(frame))] for frame in trip.points.stored]
  return _with_stored(trip, np.stack(stored))


def _lost_points(trip: RoundTrip) -> RoundTrip:
  """Makes the surface that points are projected to a fifth too small."""
  projections = []
  for surface, projection, here in zip(
    trip.surfaces, trip.points.projections, trip.points.positions
  ):
    middle = surface.vertices.mean(0)
    small = TriangleMesh(
      middle + 0.8 * (surface.vertices - middle), surface.faces
    )
    projections.append(
      guide_points.project(here, projection.normals, small, 0.0)
    )
  points = dataclasses.replace(trip.points, projections=projections)
  return dataclasses.replace(trip, points=points)


def _with_signs(trip: RoundTrip, rows: np.ndarray | slice) -> RoundTrip:
  samples = trip.samples.copy()
  samples[:, rows, 3] *= -1
  return dataclasses.replace(trip, samples=samples)


def _some_signs(trip: RoundTrip) -> RoundTrip:
  """Flips one of a hundred signs."""
  rows = np.random.default_rng(0).random(trip.samples.shape[1]) < 0.01
  return _with_signs(trip, rows)


def _all_signs(trip: RoundTrip) -> RoundTrip | None:
  deep = 2 * trip.settings.surface.cell
  if np.mean(trip.samples[..., 3] > deep) < _DEEP:
    return None  # All parts are thin: no sample is far from the surface.
  return _with_signs(trip, slice(None))


def _turned_camera(trip: RoundTrip) -> RoundTrip:
  turn = np.eye(4)
  turn[:3, :3] = rotations.Rotation.from_euler(
    "y", 1.0, degrees=True
  ).as_matrix()
  camera = turn @ trip.view["camera_to_world"]
  return dataclasses.replace(trip, view=trip.view | {"camera_to_world": camera})


def _with_normals(
  trip: RoundTrip, change: Callable[[np.ndarray], np.ndarray]
) -> RoundTrip:
  buffers, files = trip.buffers, []
  for frame in range(trip.mesh.num_frames):
    normals = record_views.decode_normals(
      schema.unpack(buffers["normal"], buffers["normal_ends"], frame)
    )
    mask = np.linalg.norm(normals, axis=-1) < 1.5  # Empty: (-1, -1, -1).
    pixels = record_views.encode_normals(change(normals), mask)
    files.append(record_views.encode_png(pixels))
  content, ends = schema.pack(files)
  return dataclasses.replace(
    trip, buffers=buffers | {"normal": content, "normal_ends": ends}
  )


def _inner_normals(trip: RoundTrip) -> RoundTrip:
  return _with_normals(trip, lambda normals: -normals)


def _swapped_normals(trip: RoundTrip) -> RoundTrip:
  """Normals with y and z exchanged, as in another convention."""
  return _with_normals(trip, lambda normals: normals[..., [0, 2, 1]])


def _tiny_picture(trip: RoundTrip) -> RoundTrip:
  """Moves the camera thirty times as far away."""
  place = trip.view["camera_to_world"].copy()
  place[:3, 3] *= 30
  camera = cameras.Camera(place, float(trip.view["fov_degrees"][0]))
  mask = rasterizer.render_mesh(
    trip.mesh.frame(0), camera, trip.settings.image_size
  ).mask
  return dataclasses.replace(trip, coverage=float(mask.mean()))


TRIALS = (
  Trial("a hundredth of the motion", "travel", "motion", _still),
  Trial("grows five times", "size_ratio", "motion", _growing),
  Trial("spikes", "stretch", "motion", _spikes),
  Trial("goes ten sizes away", "share_of_box", "motion", _far_away),
  Trial("surface shifted 2 cells", "chamfer_cells", "surface", _shifted),
  Trial("limb cut off", "missing", "surface", _without_limb),
  Trial("thin sheets lost", "missing", "surface", _without_sheets),
  Trial("a ball invented", "extra", "surface", _with_ball),
  Trial("nine faces in ten lost", "sheets", "surface", _opened),
  Trial("last frame half as large", "volume_ratio", "surface", _half_as_large),
  Trial("points lifted by 0.003", "off_surface", "points", _lifted),
  Trial("projected to a smaller one", "unmatched", "points", _lost_points),
  Trial("points slide a cell", "slip_cells", "points", _sliding),
  Trial("points drawn anew", "slip_cells", "points", _drawn_anew),
  Trial("1 % of signs flipped", "sign_errors", "signs", _some_signs),
  Trial("all signs flipped", "source_sign_errors", "signs", _all_signs),
  Trial("camera turned 1 degree", "view_off", "view", _turned_camera),
  Trial("normals inside out", "view_normals", "view", _inner_normals),
  Trial("normals' y and z swapped", "view_normals", "view", _swapped_normals),
  Trial("camera 30 times as far", "coverage", "view", _tiny_picture),
)
