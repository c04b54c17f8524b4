"""Makes the entries of a record from an animated mesh, and judges them.

The steps follow the paper: one box for the whole clip; a watertight surface for
each frame; points drawn once at rest, carried along and projected; query points
by farthest-point sampling on frame 0; signed distances near the surface and in
the cube; pictures from all sides. Then the round trip (`quality_gate`).

All randomness is drawn from the clip's seed, so a clip gives the same record on
every machine.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import time

import jax
import numpy as np

from sculpt4d_jax.data.preparation import quality_gate
from sculpt4d_jax.data.preparation import views as record_views
from sculpt4d_jax.data.records import schema
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import deforming_mesh as deforming_mesh_lib
from sculpt4d_jax.geometry import farthest_points
from sculpt4d_jax.geometry import guide_points
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import mesh_distance
from sculpt4d_jax.geometry import watertight

DeformingMesh = deforming_mesh_lib.DeformingMesh
TriangleMesh = mesh_lib.TriangleMesh

# Half the side of the cube of volume samples, slightly larger than the cube
# [-1, 1]^3 of the object.
_VOLUME_BOUNDS = 1.05
# Depth below the watertight surface, in cells, from which a point of the asset
# counts as hidden inside another body.
_HIDDEN_CELLS = 1.5


@dataclasses.dataclass(frozen=True)
class PreparationSettings:
  """Sizes of a record; the defaults are the paper's.

  Attributes:
    num_frames: Frames F of a record, evenly spaced in its time.
    window_seconds: Approximate length of the windows that longer animations are
      cut into.
    max_windows: Number of windows taken of one animation, the first ones.
    max_clips: Number of animations taken of one asset, evenly spread over its
      list; 0 takes all.
    num_uniform: Number of surface points drawn by area.
    num_sharp: Number of surface points on sharp edges.
    num_parts: Number of entries that the points are divided into; divides both.
    num_queries: Number of points that farthest-point sampling picks.
    downsample_ratio: Rows that it picks from, for each query.
    num_near: Number of distance samples near the surface in a frame.
    num_volume: Number of distance samples in the cube in a frame.
    near_deviations: Standard deviations of the near samples' offsets.
    num_views: Number of cameras.
    image_size: Side of the pictures, pixels.
    supersampling: Colour samples for each pixel and axis.
    attachments: Unskinned meshes that are kept on a skinned character: "one" on
      each joint, "all" or "none".
    surface: Settings of the watertight surfaces.
    limits: Limits of the round trip.
  """

  num_frames: int = 16
  window_seconds: float = 3.0
  max_windows: int = 4
  max_clips: int = 0
  num_uniform: int = 124_928
  num_sharp: int = 124_928
  num_parts: int = 8
  num_queries: int = 4096
  downsample_ratio: int = 20
  num_near: int = 65_536
  num_volume: int = 32_768
  near_deviations: tuple[float, ...] = (0.005, 0.02, 0.06)
  num_views: int = 24
  image_size: int = 512
  supersampling: int = 2
  attachments: str = "one"
  surface: watertight.WatertightSettings = dataclasses.field(
    default_factory=watertight.WatertightSettings
  )
  limits: quality_gate.GateLimits = dataclasses.field(
    default_factory=quality_gate.GateLimits
  )

  def __post_init__(self) -> None:
    for name in (
      "num_frames",
      "num_parts",
      "num_queries",
      "num_views",
      "max_windows",
      "image_size",
      "supersampling",
    ):
      if getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} must be at least 1.")
    for name in ("num_uniform", "num_sharp", "num_near", "num_volume"):
      if getattr(self, name) % self.num_parts:
        raise UserError(
          f"{name}={getattr(self, name)} must be a multiple of num_parts="
          f"{self.num_parts}."
        )
    # Raises an error for numbers of points that do not divide.
    farthest_points.group_sizes(
      self.num_queries, self.num_uniform, self.num_sharp, self.downsample_ratio
    )


@dataclasses.dataclass(frozen=True)
class Verdict:
  """Verdict on a clip.

  Attributes:
    reasons: Reasons to reject it; none if it is accepted.
    measures: Measurements of the round trip, as far as it got.
    seconds: Duration of each step.
  """

  reasons: list[str]
  measures: dict[str, float]
  seconds: dict[str, float]

  @property
  def accepted(self) -> bool:
    """Whether the gate found no reason to reject the clip."""
    return not self.reasons


@dataclasses.dataclass(frozen=True)
class PreparedClip:
  """A record before it is written, and its verdict.

  Attributes:
    entries: Kind, part and bytes of each entry; none if it is rejected.
    verdict: Verdict of the gate.
    preview: The first, middle and last picture of the first camera as PNG
      files; none if it was rejected before there were any.
  """

  entries: list[tuple[str, int, bytes]]
  verdict: Verdict
  preview: list[bytes]


class _Stopwatch:
  """Seconds of the steps of a clip."""

  def __init__(self):
    self.seconds: dict[str, float] = {}
    self._last = time.perf_counter()

  def lap(self, name: str) -> None:
    now = time.perf_counter()
    self.seconds[name] = round(now - self._last, 4)
    self._last = now


def prepare_clip(
  source: DeformingMesh,
  clip: str,
  settings: PreparationSettings,
  seed: int,
  left_out: float = 0.0,
) -> PreparedClip:
  """Makes the record of a clip.

  Args:
    source: The animation, of any size, at the record's times.
    clip: Identity of the clip; kept in the entries.
    settings: Sizes and limits.
    seed: Seed of all random draws.
    left_out: Share of the scene's area that the animation lacks.

  Returns:
    The entries, or the reasons why there are none.
  """
  watch = _Stopwatch()
  # The second word keeps these draws apart from others of the same seed.
  rng = np.random.default_rng([seed, 0xA55E7])
  measures = quality_gate.motion_measures(source) | {"left_out": left_out}
  watch.lap("motion")
  reasons = quality_gate.judge(measures, settings.limits)
  if reasons:
    verdict = Verdict(reasons, measures, watch.seconds)
    return PreparedClip([], verdict, _plain_preview(source, settings, rng))
  # Cheap checks first: a still or exploding clip costs no surfaces.
  mesh = deforming_mesh_lib.normalise(source)
  # Before the repair: a surface and its reversed copy enclose nothing.
  mesh = deforming_mesh_lib.drop_doubled_faces(mesh)
  repair, closed = watertight.plan_repair(mesh, settings.surface, rng)
  watch.lap("repair")
  surfaces = [
    # Planning has closed some frames already.
    closed[number]
    if number in closed
    else watertight.close(frame, repair, settings.surface)
    for number, frame in enumerate(mesh.frames())
  ]
  watch.lap("watertight")
  if any(s is None or not mesh_distance.is_closed(s) for s in surfaces):
    reasons = ["some frame gave no watertight surface"]
    verdict = Verdict(reasons, measures, watch.seconds)
    return PreparedClip([], verdict, _plain_preview(source, settings, rng))
  compared = quality_gate.surface_measures(
    mesh, repair, surfaces, settings.surface, rng
  )
  if compared["missing"] > settings.limits.max_missing:
    # The plan looked at a few frames. Parts that are missing in others (as thin
    # as a sheet) are added, and all frames are made again, once.
    more = watertight.add_missing(mesh, repair, surfaces, settings.surface, rng)
    if more is not None:
      repair = more
      surfaces = [
        watertight.close(frame, repair, settings.surface)
        for frame in mesh.frames()
      ]
      compared = quality_gate.surface_measures(
        mesh, repair, surfaces, settings.surface, rng
      )
  measures |= compared
  watch.lap("compare")
  reasons = quality_gate.judge(measures, settings.limits)
  entries, preview = [], []
  if not reasons:  # Points of a wrong surface are not worth computing.
    try:
      entries, more = _geometry(
        mesh, repair, surfaces, clip, settings, rng, watch
      )
      measures |= more
    # Such as a clip without visible surface: a reason to reject it.
    except ValueError as error:
      reasons = [str(error)]
  views, preview, more = _views(
    mesh, repair, clip, settings, rng, only_first=bool(reasons)
  )
  watch.lap("views")
  if not reasons:
    measures |= more
    reasons = quality_gate.judge(measures, settings.limits)
  verdict = Verdict(reasons, measures, watch.seconds)
  return PreparedClip(entries + views if not reasons else [], verdict, preview)


def _plain_preview(
  source: DeformingMesh, settings: PreparationSettings, rng: np.random.Generator
) -> list[bytes]:
  """Pictures of a rejected clip; none if its box is empty."""
  last = source.num_frames - 1
  shown = dataclasses.replace(
    source, vertices=source.vertices[[0, last // 2, last]]
  )
  try:
    shown = deforming_mesh_lib.normalise(shown)
  except ValueError:
    return []
  # No face is flipped or thickened: people see the asset, not its repair.
  none = np.zeros(shown.num_faces, bool)
  as_it_is = watertight.Repair(none, none, ~none)
  return _views(shown, as_it_is, "", settings, rng, only_first=True)[1]


@dataclasses.dataclass(frozen=True)
class CarriedPoints:
  """Guide points in all frames.

  Attributes:
    guide: The points on the mesh.
    positions: Positions of its material points, [F, P, 3].
    projections: Their projections to the watertight surfaces, one a frame.
    stored: Positions and normals as a record keeps them, float16 [F, P, 6].
  """

  guide: guide_points.GuidePoints
  positions: np.ndarray
  projections: list[guide_points.Projection]
  stored: np.ndarray


def carry_points(
  mesh: DeformingMesh,
  repair: watertight.Repair,
  surfaces: Sequence[TriangleMesh],
  settings: PreparationSettings,
  rng: np.random.Generator,
) -> CarriedPoints:
  """Draws guide points, carries them along and projects them.

  Args:
    mesh: The animation, normalised.
    repair: Repair from `watertight.plan_repair`.
    surfaces: Watertight surfaces, one a frame.
    settings: Numbers of points.
    rng: Randomness; the same state gives the same points.

  Raises:
    ValueError: Almost nothing of the surface is ever visible.
  """
  last = mesh.num_frames - 1
  looked_at = sorted({0, last // 2, last})
  guide = guide_points.draw(
    mesh,
    repair,
    [(frame, surfaces[frame]) for frame in looked_at],
    num_uniform=settings.num_uniform,
    num_sharp=settings.num_sharp,
    hidden_depth=_HIDDEN_CELLS * settings.surface.cell,
    rng=rng,
  )
  positions, projections = [], []
  # A point of a sheet lies half its thickness below the new surface.
  reach = 2 * settings.surface.sheet_cells * settings.surface.cell
  for frame, surface in zip(mesh.frames(), surfaces):
    here, normals = guide.at(frame, repair.flipped)
    positions.append(here)
    projections.append(guide_points.project(here, normals, surface, reach))
  # float16 is exact to 0.00025 in the cube, 3 per cent of a grid's cell.
  stored = np.stack(
    [np.concatenate([p.positions, p.normals], axis=1) for p in projections]
  ).astype(np.float16)  # [F, P, 6]
  return CarriedPoints(guide, np.stack(positions), projections, stored)


def _geometry(
  mesh: DeformingMesh,
  repair: watertight.Repair,
  surfaces: Sequence[TriangleMesh],
  clip: str,
  settings: PreparationSettings,
  rng: np.random.Generator,
  watch: _Stopwatch,
) -> tuple[list[tuple[str, int, bytes]], dict[str, float]]:
  """Entries of points and distances, and their measurements."""
  carried = carry_points(mesh, repair, surfaces, settings, rng)
  guide, stored = carried.guide, carried.stored
  watch.lap("points")
  samples = distance_samples(stored, surfaces, settings, rng)
  watch.lap("distances")
  entries = list(_part_entries(stored, guide, samples, clip, settings))
  entries.append(_query_entry(stored, guide, clip, settings, rng))
  watch.lap("queries")
  # Of the rounded positions: the gate judges what training will read.
  measures = quality_gate.point_measures(
    stored[..., :3],
    carried.positions,
    carried.projections,
    surfaces,
    settings.surface,
  )
  measures |= quality_gate.sign_measures(
    mesh, repair, samples, surfaces, settings.surface
  )
  measures["sharp_points"] = float(guide.is_sharp.mean())
  watch.lap("check")
  return entries, measures


def distance_samples(
  stored: np.ndarray,
  surfaces: Sequence[TriangleMesh],
  settings: PreparationSettings,
  rng: np.random.Generator,
) -> np.ndarray:
  """Draws distance samples [F, Q, 4] in float16, the near ones first.

  Positions are rounded to float16 before their distances are measured, so that
  stored distances belong to stored positions.

  Args:
    stored: Points that the near samples are around, [F, P, 6].
    surfaces: Watertight surfaces, one a frame.
    settings: Numbers and deviations of the samples.
    rng: Randomness; the same state gives the same samples.
  """
  # The same points and deviations in all frames; offsets are drawn anew.
  #
  #   row        0     1     2     3     4     ...   | num_near ...
  #   deviation  .005  .02   .06   .005  .02   ...   | uniform in the cube
  #
  # They alternate, so that each part, a run of rows, has near and far ones.
  rows = rng.integers(stored.shape[1], size=settings.num_near)
  deviation = np.resize(settings.near_deviations, settings.num_near)
  result = np.empty(
    (len(surfaces), settings.num_near + settings.num_volume, 4), np.float16
  )
  for frame, surface in enumerate(surfaces):
    offset = rng.normal(size=(settings.num_near, 3)) * deviation[:, None]
    volume = rng.uniform(
      -_VOLUME_BOUNDS, _VOLUME_BOUNDS, (settings.num_volume, 3)
    )
    near = stored[frame, rows, :3].astype(np.float32) + offset
    result[frame, :, :3] = np.concatenate([near, volume])
    result[frame, :, 3] = mesh_distance.signed_distance(
      surface, result[frame, :, :3].astype(np.float64)
    )
  return result


def _part_entries(
  stored: np.ndarray,
  guide: guide_points.GuidePoints,
  samples: np.ndarray,
  clip: str,
  settings: PreparationSettings,
) -> Iterator[tuple[str, int, bytes]]:
  parts = settings.num_parts

  def share(first: int, count: int, part: int) -> slice:
    step = count // parts
    return slice(first + part * step, first + (part + 1) * step)

  for part in range(parts):
    # Rows were drawn independently, so any run of them is a uniform sample of
    # the surface.
    rows = np.r_[
      share(0, settings.num_uniform, part),
      share(settings.num_uniform, settings.num_sharp, part),
    ]
    near = share(0, settings.num_near, part)
    volume = share(settings.num_near, settings.num_volume, part)
    chosen = np.r_[near, volume]
    arrays = dict(
      surface=stored[:, rows],
      is_sharp=guide.is_sharp[rows].astype(np.uint8),
      samples=samples[:, chosen],
      is_near=(chosen < settings.num_near).astype(np.uint8),
    )
    yield "geometry", part, schema.encode("geometry", clip, arrays, part)


def _query_entry(
  stored: np.ndarray,
  guide: guide_points.GuidePoints,
  clip: str,
  settings: PreparationSettings,
  rng: np.random.Generator,
) -> tuple[str, int, bytes]:
  # Farthest-point sampling runs in JAX, so its key is drawn from the clip's
  # generator.
  key = jax.random.key(int(rng.integers(2**31)))
  _, rows = farthest_points.select_rows(
    key,
    stored[0].astype(np.float32),
    num_latents=settings.num_queries,
    num_uniform=settings.num_uniform,
    num_sharp=settings.num_sharp,
    downsample_ratio=settings.downsample_ratio,
  )
  rows = np.asarray(rows)
  arrays = dict(
    surface=stored[:, rows], is_sharp=guide.is_sharp[rows].astype(np.uint8)
  )
  return "queries", 0, schema.encode("queries", clip, arrays)


def _views(
  mesh: DeformingMesh,
  repair: watertight.Repair,
  clip: str,
  settings: PreparationSettings,
  rng: np.random.Generator,
  only_first: bool,
) -> tuple[list[tuple[str, int, bytes]], list[bytes], dict[str, float]]:
  """Entries of all views, pictures for the summary, measurements."""
  pictures, others, preview, measures = [], [], [], {"coverage": 1.0}
  views = record_views.render_entries(
    mesh,
    repair,
    num_views=settings.num_views,
    image_size=settings.image_size,
    supersampling=settings.supersampling,
    rng=rng,
  )
  for number, (view, buffers, covered) in enumerate(views):
    measures["coverage"] = min(measures["coverage"], covered)
    if not number:
      if not only_first:
        measures |= quality_gate.view_measures(mesh, repair, view, buffers)
      last = mesh.num_frames - 1
      preview = [
        schema.unpack(view["pictures"], view["ends"], frame)
        for frame in (0, last // 2, last)
      ]
    # A rejected clip needs one camera, for its preview.
    if only_first:
      break
    for kind, arrays, entries in (
      ("view", view, pictures),
      ("buffers", buffers, others),
    ):
      content = schema.encode(kind, clip, arrays, number)
      entries.append((kind, number, content))
  return pictures + others, preview, measures
