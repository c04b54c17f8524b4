"""Keeps all intermediate results of a clip's record, for checks.

`preparation.prepare_clip` discards surfaces and projections when it encodes a
record. Here they are kept, to compare them with known answers (`known_answers`)
or to damage them (`gate_trials`).
"""

from collections.abc import Callable
import dataclasses

import numpy as np

from sculpt4d_jax.data.preparation import prepare
from sculpt4d_jax.data.preparation import quality_gate
from sculpt4d_jax.data.preparation import views as record_views
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import watertight

DeformingMesh = deforming_mesh.DeformingMesh
TriangleMesh = mesh_lib.TriangleMesh


@dataclasses.dataclass(frozen=True)
class RoundTrip:
  """A clip and all intermediate results.

  Attributes:
    source: The original animation.
    mesh: The same, normalised.
    repair: The repair that closes the mesh.
    surfaces: Watertight surfaces, one a frame.
    points: Guide points in all frames.
    samples: Distance samples, float16 [F, Q, 4].
    view: Fields of a "view" entry.
    buffers: Fields of its "buffers" entry.
    coverage: Smallest share of a picture that the object covers.
    settings: Settings of the preparation.
  """

  source: DeformingMesh
  mesh: DeformingMesh
  repair: watertight.Repair
  surfaces: tuple[TriangleMesh, ...]
  points: prepare.CarriedPoints
  samples: np.ndarray
  view: dict[str, np.ndarray]
  buffers: dict[str, np.ndarray]
  coverage: float
  settings: prepare.PreparationSettings


def make(
  source: DeformingMesh, settings: prepare.PreparationSettings, seed: int
) -> RoundTrip:
  """Runs the steps of a record with its first view.

  Raises:
    ValueError: A frame has no watertight surface, or no point is visible.
  """
  rng = np.random.default_rng([seed, 0x7121])
  mesh = deforming_mesh.normalise(source)
  repair, _ = watertight.plan_repair(mesh, settings.surface, rng)
  surfaces = []
  for frame in mesh.frames():
    surface = watertight.close(frame, repair, settings.surface)
    if surface is None:
      raise UserError("some frame gave no watertight surface.")
    surfaces.append(surface)
  points = prepare.carry_points(mesh, repair, surfaces, settings, rng)
  samples = prepare.distance_samples(points.stored, surfaces, settings, rng)
  view, buffers, coverage = next(
    record_views.render_entries(
      mesh,
      repair,
      num_views=settings.num_views,
      image_size=settings.image_size,
      supersampling=settings.supersampling,
      rng=rng,
    )
  )
  return RoundTrip(
    source,
    mesh,
    repair,
    tuple(surfaces),
    points,
    samples,
    view,
    buffers,
    coverage,
    settings,
  )


def measure(trip: RoundTrip, group: str | None = None) -> dict[str, float]:
  """The measures of the gate, or those of one of `GROUPS`."""
  chosen = GROUPS if group is None else {group: GROUPS[group]}
  measures = {}
  for function in chosen.values():
    measures |= function(trip)
  return measures


def _surface(trip: RoundTrip) -> dict[str, float]:
  return quality_gate.surface_measures(
    trip.mesh,
    trip.repair,
    trip.surfaces,
    trip.settings.surface,
    np.random.default_rng(0),
  )


def _points(trip: RoundTrip) -> dict[str, float]:
  return quality_gate.point_measures(
    trip.points.stored[..., :3],
    trip.points.positions,
    trip.points.projections,
    trip.surfaces,
    trip.settings.surface,
  )


def _signs(trip: RoundTrip) -> dict[str, float]:
  return quality_gate.sign_measures(
    trip.mesh,
    trip.repair,
    trip.samples,
    trip.surfaces,
    trip.settings.surface,
  )


def _view(trip: RoundTrip) -> dict[str, float]:
  return {"coverage": trip.coverage} | quality_gate.view_measures(
    trip.mesh, trip.repair, trip.view, trip.buffers
  )


GROUPS: dict[str, Callable[[RoundTrip], dict[str, float]]] = {
  "motion": lambda trip: quality_gate.motion_measures(trip.source),
  "surface": _surface,
  "points": _points,
  "signs": _signs,
  "view": _view,
}
