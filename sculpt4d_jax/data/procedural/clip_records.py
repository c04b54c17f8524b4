"""Training records of procedural clips: surface points, distances, pictures.

The steps are those of the paper's data. Points are sampled once on the parts in
their local coordinates, moved with the parts (guide points), and projected onto
the surface of every frame, so row p of the surface is the same material point
in all frames. Where parts blend or intersect, a guide point is projected to the
nearest surface.
"""

from collections.abc import Iterator
import dataclasses
import functools

import jax
import numpy as np
from scipy import ndimage

from sculpt4d_jax import array_types
from sculpt4d_jax.data.procedural import body
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.geometry import placement as placement_lib
from sculpt4d_jax.geometry import signed_distance
from sculpt4d_jax.rendering import sphere_tracer

Array = array_types.Array

# Points deeper than this in every frame are always hidden inside another part.
_HIDDEN_DEPTH = 0.02
_BOX_EDGES = 12
_VARIED_ELEVATIONS = (-0.2, 0.6)


@dataclasses.dataclass(frozen=True)
class RecordSizes:
  """Sizes of one record.

  Attributes:
    num_uniform: Surface points sampled by area.
    num_sharp: Surface points on sharp edges; without sharp edges they are
      sampled and labelled as points by area.
    num_near: Distance samples near the surface, a frame.
    num_volume: Distance samples in the cube, a frame.
    near_deviations: Standard deviations of the near samples' offsets.
    image_size: Pixels a side.
    max_azimuth: Largest absolute azimuth of cameras, radians.
    elevations: Lowest and highest elevation, radians.
    border_ratio: Margin as a share of the picture.
    picture_frame: Whether surfaces and samples are in the picture's frame; see
      `placement.py`. The view stays that of the upright object.
    variety: Share of clips of other families, with more varied elevation and
      light and with edges like real cut-outs; see `solids.make_clip`.
    things: Share of clips of rigid things, likewise.
    figures: Share of clips that resemble characters of games, likewise.
    clip_frames: Frames of the clips that shorter ones are cut from, so that
      they have the size and place that they have there; 0 makes them as long
      as they are needed.
  """

  num_uniform: int = 384
  num_sharp: int = 128
  num_near: int = 1024
  num_volume: int = 512
  near_deviations: tuple[float, ...] = (0.015, 0.06)
  image_size: int = 64
  max_azimuth: float = 0.4
  elevations: tuple[float, float] = (0.0, 0.4)
  border_ratio: float = 0.15
  picture_frame: bool = False
  variety: float = 0.0
  things: float = 0.0
  figures: float = 0.0
  clip_frames: int = 0

  def make_clip(self, seed: int, num_frames: int) -> solids.SyntheticClip:
    """The clip of a seed, of all families that have a share."""
    clip = solids.make_clip(
      seed,
      max(num_frames, self.clip_frames),
      self.variety,
      things=self.things,
      figures=self.figures,
    )
    if clip.num_frames == num_frames:
      return clip
    return solids.cut(clip, num_frames)


@dataclasses.dataclass(frozen=True)
class Record:
  """The training data of one clip.

  Attributes:
    surface: xyz, outward normal, sharp-edge label; float32 [F, P, 7], uniform
      points first.
    samples: xyz and signed distance (positive inside), float32 [F, Q, 4], the
      near ones first.
    images: uint8 RGB on white [F, S, S, 3].
    masks: uint8 coverage [F, S, S].
    view: The camera.
    placement: Place of the upright object in the frame of surface and
      samples.
  """

  surface: np.ndarray
  samples: np.ndarray
  images: np.ndarray
  masks: np.ndarray
  view: sphere_tracer.View
  placement: placement_lib.Placement


def make_record(
  clip: solids.SyntheticClip, sizes: RecordSizes, seed: int = 0
) -> Record:
  """Makes the record of a clip; the same seed gives the same record."""
  rng = np.random.default_rng([clip.seed, seed, 0x5D])
  surface, samples, view, placement = _geometry(clip, sizes, rng)
  rgba = render_clip(clip, view, sizes.image_size)
  if _is_varied(clip):
    rgba = _cut_out(rgba, rng)
  alpha = rgba[..., 3:]
  images = np.round(255 * (rgba[..., :3] * alpha + 1 - alpha))
  return Record(
    surface=surface,
    samples=samples,
    images=images.astype(np.uint8),
    masks=np.round(255 * alpha[..., 0]).astype(np.uint8),
    view=view,
    placement=placement,
  )


def make_view(
  clip: solids.SyntheticClip, sizes: RecordSizes, seed: int = 0
) -> sphere_tracer.View:
  """The view of a clip's record, without its pictures."""
  rng = np.random.default_rng([clip.seed, seed, 0x5D])
  return _geometry(clip, sizes, rng)[2]


def _geometry(
  clip: solids.SyntheticClip, sizes: RecordSizes, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, sphere_tracer.View, placement_lib.Placement]:
  """Surface rows, distance samples, view and placement of a record."""
  solid = trim(clip.solid)
  surface = _surface(clip, solid, sizes, rng)
  samples = _samples(solid, surface, sizes, rng)
  drawn = draw_view(rng, sizes)
  if _is_varied(clip):
    drawn = _unusual_view(rng, drawn)
  view = fit_view(clip, drawn, sizes.border_ratio)
  if not sizes.picture_frame:
    return surface, samples, view, placement_lib.UPRIGHT
  axes = np.stack([np.asarray(x) for x in sphere_tracer.camera_axes(view)])
  placement = placement_lib.in_picture(axes, view.centre)
  points = surface[..., :3].reshape(-1, 3)
  placement = placement_lib.within(placement, points.astype(np.float64))
  return placement.surface(surface), placement.samples(samples), view, placement


def _is_varied(clip: solids.SyntheticClip) -> bool:
  return clip.family in solids.VARIED


def trim(solid: signed_distance.Solid) -> signed_distance.Solid:
  """Drops columns of absent parts, to few sizes that need compilation."""
  cones = int((solid.cone_radii[0, :, 0] > 0).sum())
  boxes = int((solid.box_rounding[0] > 0).sum())
  cones = next(n for n in (4, 8, body.NUM_CONES) if n >= cones)
  boxes = 0 if boxes == 0 else body.NUM_BOXES
  return signed_distance.Solid(
    *(x[:, :cones] for x in solid[:4]),
    *(x[:, :boxes] for x in solid[4:8]),
    solid.smoothness,
  )


def draw_view(
  rng: np.random.Generator, sizes: RecordSizes
) -> sphere_tracer.View:
  """Draws a camera in front of the object, and a light above it."""
  return sphere_tracer.View(
    azimuth=np.float32(rng.uniform(-sizes.max_azimuth, sizes.max_azimuth)),
    elevation=np.float32(rng.uniform(*sizes.elevations)),
    centre=np.zeros(2, np.float32),
    extent=np.float32(1.9),
    light=np.array(
      [rng.uniform(-0.7, 0.7), rng.uniform(0.3, 1.0), 0.8], np.float32
    ),
  )


def _unusual_view(
  rng: np.random.Generator, view: sphere_tracer.View
) -> sphere_tracer.View:
  """The view from another elevation, lit from any direction in front."""
  light = [rng.uniform(-1.2, 1.2), rng.uniform(-0.6, 1.2), rng.uniform(0.3, 1)]
  return view._replace(
    elevation=np.float32(rng.uniform(*_VARIED_ELEVATIONS)),
    light=np.array(light, np.float32),
  )


def _cut_out(rgba: np.ndarray, rng: np.random.Generator) -> np.ndarray:
  """Imitates edges of matting: shifted by up to a pixel, blurred, with fringes.

  Args:
    rgba: Pictures in [0, 1], [F, S, S, 4].
    rng: Drawn once for the complete clip.
  """
  rgba = np.array(rgba)
  alpha = ndimage.gaussian_filter(
    rgba[..., 3], (0, *(rng.uniform(0.0, 0.8),) * 2)
  )
  shift = rng.uniform(-0.3, 0.3)
  # Steep enough to keep empty pixels empty.
  steepness = rng.uniform(1.0, 3.0) / (1 - 2 * abs(shift))
  cut = np.clip((alpha - 0.5 + shift) * steepness + 0.5, 0, 1)
  # Partly covered edge pixels show the old background.
  fringe = rng.uniform(0.0, 1.0, 3)
  covered = rgba[..., 3:] / np.maximum(cut[..., None], 1e-3)
  rgba[..., :3] += (fringe - rgba[..., :3]) * np.clip(1 - covered, 0, 1)
  rgba[..., 3] = cut
  return rgba


def fit_view(
  clip: solids.SyntheticClip,
  view: sphere_tracer.View,
  border_ratio: float,
) -> sphere_tracer.View:
  """Centres the view on the clip and fits the object into its borders."""
  right, up, backward = (np.asarray(x) for x in sphere_tracer.camera_axes(view))
  low, high = np.full(2, np.inf), np.full(2, -np.inf)
  solid = clip.solid if clip.whole is None else clip.whole
  for points, radii in _spheres(solid):
    depth = sphere_tracer.CAMERA_DISTANCE - points @ backward
    scale = sphere_tracer.CAMERA_DISTANCE / depth
    for axis, vector in enumerate((right, up)):
      centre = points @ vector
      low[axis] = min(low[axis], ((centre - radii) * scale).min())
      high[axis] = max(high[axis], ((centre + radii) * scale).max())
  extent = (high - low).max() / 2 / (1 - border_ratio)
  return view._replace(
    centre=((low + high) / 2).astype(np.float32), extent=np.float32(extent)
  )


def _spheres(
  solid: signed_distance.Solid,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """Balls [M, 3], [M] whose hull holds the parts of all frames."""
  there = solid.cone_radii[..., 0] > 0
  start, radii = solid.cone_origin[there], solid.cone_radii[there]
  end = start + (
    solid.cone_rotation[there][..., 1] * solid.cone_length[there][:, None]
  )
  if len(start):
    yield start, radii[:, 0]
    yield end, radii[:, 1]
  there = solid.box_rounding > 0
  origin, rotation = solid.box_origin[there], solid.box_rotation[there]
  rounding = solid.box_rounding[there]
  inner = solid.box_half_size[there] - rounding[:, None]
  for corner in np.ndindex(2, 2, 2):
    offset = (np.array(corner) * 2 - 1) * inner
    corners = origin + np.einsum("mij,mj->mi", rotation, offset)
    if len(corners):
      yield corners, rounding


def render_clip(
  clip: solids.SyntheticClip, view: sphere_tracer.View, size: int
) -> np.ndarray:
  """Renders all frames: RGBA float32 in [0, 1], [F, size, size, 4]."""
  solid = trim(clip.solid)
  cones, boxes = solid.cone_length.shape[1], solid.box_rounding.shape[1]
  colours = np.concatenate(
    [
      clip.colours[:cones],
      clip.colours[body.NUM_CONES :][:boxes],
    ]
  )
  return np.asarray(_render(solid, colours, view, size))


@functools.partial(jax.jit, static_argnames="size")
def _render(
  solid: signed_distance.Solid,
  colours: array_types.AnyArray,
  view: sphere_tracer.View,
  size: int,
) -> Array:
  return jax.lax.map(
    lambda frame: sphere_tracer.render(frame, colours, view, size), solid
  )


@jax.jit
def _project(
  solid: signed_distance.Solid, points: array_types.AnyArray
) -> tuple[Array, Array]:
  return jax.vmap(signed_distance.project_to_surface)(solid, points)


@jax.jit
def distances(solid: signed_distance.Solid, points: Array) -> Array:
  """Signed distances of an animated solid at points [F, Q, 3]: [F, Q]."""
  return jax.vmap(signed_distance.signed_distance)(solid, points)


def _surface(
  clip: solids.SyntheticClip,
  solid: signed_distance.Solid,
  sizes: RecordSizes,
  rng: np.random.Generator,
) -> np.ndarray:
  """Points of all frames with normals and labels [F, P, 7]."""
  num_points = sizes.num_uniform + sizes.num_sharp
  guide = guide_points(clip.solid, 2 * num_points, rng)
  depth = np.asarray(distances(solid, guide)).min(0)
  # A stable sort keeps the order of visible points and puts the others last.
  order = np.argsort(depth > _HIDDEN_DEPTH, kind="stable")[:num_points]
  guide = guide[:, order]
  label = np.zeros(num_points, np.float32)
  edges = _edge_points(clip.solid, sizes.num_sharp, rng)
  if edges is not None:
    guide = np.concatenate([guide[:, : sizes.num_uniform], edges], 1)
    label[sizes.num_uniform :] = 1.0
  points, normals = _project(solid, guide.astype(np.float32))
  label = np.broadcast_to(label, (clip.num_frames, num_points))
  return np.concatenate([points, normals, label[..., None]], -1)


def guide_points(
  solid: signed_distance.Solid, count: int, rng: np.random.Generator
) -> np.ndarray:
  """Points fixed on the parts, in world space: float64 [F, M, 3].

  Parts are drawn by their area in frame 0, hidden areas included.
  """
  cones = np.flatnonzero(solid.cone_radii[0, :, 0] > 0)
  boxes = np.flatnonzero(solid.box_rounding[0] > 0)
  radii = solid.cone_radii[0, cones].astype(np.float64)
  length = solid.cone_length[0, cones].astype(np.float64)
  slope = (radii[:, 0] - radii[:, 1]) / length
  cosine = np.sqrt(np.maximum(1 - slope**2, 0.0))
  areas = (
    2
    * np.pi
    * np.stack(
      [
        radii[:, 0] ** 2 * (1 + slope),
        radii.sum(1) / 2 * cosine * length * cosine,
        radii[:, 1] ** 2 * (1 - slope),
      ],
      -1,
    )
  )
  sides = solid.box_half_size[0, boxes].astype(np.float64)
  faces = 8 * np.stack(
    [sides[:, (a + 1) % 3] * sides[:, (a + 2) % 3] for a in range(3)], -1
  ).reshape(len(boxes), 3)
  weights = np.concatenate([areas.ravel(), faces.ravel()])
  chosen = rng.choice(len(weights), count, p=weights / weights.sum())
  u, angle = rng.uniform(size=count), rng.uniform(0, 2 * np.pi, count)
  on_cone = chosen < areas.size
  points = np.empty((len(solid.smoothness), count, 3))
  points[:, on_cone] = _on_cones(
    solid,
    cones[chosen[on_cone] // 3],
    chosen[on_cone] % 3,
    u[on_cone],
    angle[on_cone],
  )
  picked = chosen[~on_cone] - areas.size
  points[:, ~on_cone] = _on_boxes(
    solid, boxes[picked // 3] if len(boxes) else picked, picked % 3, rng
  )
  return points


def _on_cones(
  solid: signed_distance.Solid,
  part: np.ndarray,
  section: np.ndarray,
  u: np.ndarray,
  angle: np.ndarray,
) -> np.ndarray:
  """Points on the lower cap, side or upper cap of round cones [F, M, 3]."""
  radii = solid.cone_radii[:, part].astype(np.float64)
  length = solid.cone_length[:, part].astype(np.float64)
  low, high = radii[..., 0], radii[..., 1]
  slope = (low - high) / length
  lower = low * (u * (1 + slope) - 1)
  upper = high * (slope + u * (1 - slope))
  side = low * slope * (1 - u) + (length + high * slope) * u
  cosine = np.sqrt(np.maximum(1 - slope**2, 0.0))
  along = np.choose(section, [lower, side, length + upper])
  across = np.choose(
    section,
    [
      np.sqrt(np.maximum(low**2 - lower**2, 0.0)),
      (low * (1 - u) + high * u) * cosine,
      np.sqrt(np.maximum(high**2 - upper**2, 0.0)),
    ],
  )
  local = np.stack([across * np.cos(angle), along, across * np.sin(angle)], -1)
  turned = np.einsum("fmij,fmj->fmi", solid.cone_rotation[:, part], local)
  return solid.cone_origin[:, part] + turned


def _on_boxes(
  solid: signed_distance.Solid,
  part: np.ndarray,
  axis: np.ndarray,
  rng: np.random.Generator,
) -> np.ndarray:
  """Points on the faces of boxes across `axis` [F, M, 3]."""
  unit = rng.uniform(-1, 1, (len(part), 3))
  rows = np.arange(len(part))
  unit[rows, axis] = np.sign(unit[rows, axis])
  return _box_points(solid, part, unit)


def _box_points(
  solid: signed_distance.Solid, part: np.ndarray, unit: np.ndarray
) -> np.ndarray:
  local = unit * solid.box_half_size[:, part]
  turned = np.einsum("fmij,fmj->fmi", solid.box_rotation[:, part], local)
  return solid.box_origin[:, part] + turned


def _edge_points(
  solid: signed_distance.Solid, count: int, rng: np.random.Generator
) -> np.ndarray | None:
  """Points on the edges of the boxes [F, M, 3]; None if there is no box."""
  boxes = np.flatnonzero(solid.box_rounding[0] > 0)
  if not len(boxes) or not count:
    return None
  sides = np.repeat(solid.box_half_size[0, boxes], _BOX_EDGES // 3, -1)
  chosen = rng.choice(sides.size, count, p=sides.ravel() / sides.sum())
  axis = chosen % _BOX_EDGES // (_BOX_EDGES // 3)
  unit = np.sign(rng.uniform(-1, 1, (count, 3)))
  unit[np.arange(count), axis] = rng.uniform(-1, 1, count)
  return _box_points(solid, boxes[chosen // _BOX_EDGES], unit)


def _samples(
  solid: signed_distance.Solid,
  surface: np.ndarray,
  sizes: RecordSizes,
  rng: np.random.Generator,
) -> np.ndarray:
  """Distance samples near the surface and in the cube [F, Q, 4]."""
  num_frames, num_points, _ = surface.shape
  rows = rng.integers(num_points, size=sizes.num_near)
  deviation = np.resize(sizes.near_deviations, sizes.num_near)
  offset = rng.normal(size=(num_frames, sizes.num_near, 3))
  near = surface[:, rows, :3] + offset * deviation[:, None]
  volume = rng.uniform(-1.05, 1.05, (num_frames, sizes.num_volume, 3))
  points = np.concatenate([near, volume], 1).astype(np.float32)
  field = np.asarray(distances(solid, points))
  return np.concatenate([points, field[..., None]], -1)
