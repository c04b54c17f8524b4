"""Shapes with known answers, and the errors of records.

Each shape moves rigidly (15 degrees and a shift per frame), or splits in two,
so the later positions of a point of frame 0 are known without the mesh. Its
volume, inside, sharp edges and, for some shapes, distance are formulas. Lengths
are in cells of the watertight surface's grid.
"""

from collections.abc import Callable, Sequence
import dataclasses
import math

import numpy as np
from scipy.spatial import transform as rotations
import trimesh

from benchmarks.preparation import round_trip
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import mesh_distance

DeformingMesh = deforming_mesh.DeformingMesh

NUM_FRAMES = 3
_TURN = 15.0  # Degrees per frame about y.
_SHIFT = np.array([0.12, 0.05, -0.03])  # Per frame.
_HALVES = (0.05, 0.2, 0.5)  # Half the distance of the halves' centres.


@dataclasses.dataclass(frozen=True)
class KnownShape:
  """A moving shape and its answers, in the shape's units.

  Attributes:
    name: The case that it tests.
    mesh: It, moving.
    volumes: Volume of each frame, without sheets.
    inside: Whether points [Q, 3] are inside, at rest in a frame; None if all
      of it is a sheet.
    is_distance: Whether `inside` gives true signed distances, positive inside,
      rather than a value of the right sign.
    edges: Sharp edges in frame 0, [E, 2, 3]; none if it is smooth.
    motions: Possible motions of a point: lists of (turn [3, 3], shift [3]), one
      a frame.
    sheet: Faces that enclose nothing and become a slab, bool [T].
    sheet_area: Area of the sheets.
  """

  name: str
  mesh: DeformingMesh
  volumes: tuple[float, ...]
  inside: Callable[[np.ndarray, int], np.ndarray] | None
  is_distance: bool
  edges: np.ndarray
  motions: tuple[tuple[tuple[np.ndarray, np.ndarray], ...], ...]
  sheet: np.ndarray
  sheet_area: float = 0.0


@dataclasses.dataclass(frozen=True)
class Errors:
  """Errors of a round trip relative to the known answers.

  Attributes:
    volume: Largest relative error of a frame.
    sign: Share of all distance samples with the wrong sign.
    clear_sign: The same, of samples further than a cell from the surface.
    distance: Mean error of stored distances within 4 cells of the surface,
      cells; NaN where there is no formula.
    sharp: Share of the sharp half of the points that is on sharp edges.
    off_edge: Mean distance of these points from the true edges, cells.
    slip: Mean distance of stored points from the true positions of frame 0's,
      cells.
    slip_99: 99th percentile of these distances.
  """

  volume: float
  sign: float
  clear_sign: float
  distance: float
  sharp: float
  off_edge: float
  slip: float
  slip_99: float


def all_shapes() -> list[KnownShape]:
  """The shapes, small to evaluate."""
  create = trimesh.creation
  ball = lambda p, f: 0.8 - np.linalg.norm(p, axis=1)
  box, bars = [1.0, 0.8, 0.6], ([1.6, 0.4, 0.4], [0.4, 1.6, 0.4])
  inverted = create.box(box)
  inverted.invert()
  volume = 4 / 3 * math.pi * 0.8**3
  in_bars = lambda p, f: np.maximum(_box(p, bars[0]), _box(p, bars[1]))
  bar_edges = np.concatenate([_box_edges(bars[0]), _box_edges(bars[1])])
  corners = np.array(
    [[[x, y, -0.2], [x, y, 0.2]] for x in (-0.2, 0.2) for y in (-0.2, 0.2)]
  )
  return [
    _rigid("sphere", [create.icosphere(5, 0.8)], volume, ball),
    _rigid(
      "box",
      [create.box(box)],
      0.48,
      lambda p, f: _box(p, box),
      edges=_box_edges(box),
    ),
    _rigid(
      "torus",
      [create.torus(0.6, 0.2, 128, 64)],
      2 * math.pi**2 * 0.6 * 0.04,
      _torus,
    ),
    _rigid(
      "thin plate",
      [create.box([1.6, 0.03, 1.2])],
      1.6 * 0.03 * 1.2,
      lambda p, f: _box(p, [1.6, 0.03, 1.2]),
      edges=_box_edges([1.6, 0.03, 1.2]),
    ),
    _rigid("open cloth", [], 0.0, None, sheet=_cloth()),
    _caped(),
    # Their common cube counts once; its edges along z are concave.
    _rigid(
      "self-intersecting limbs",
      [create.box(b) for b in bars],
      2 * 1.6 * 0.16 - 0.064,
      in_bars,
      is_distance=False,
      edges=np.concatenate([bar_edges, corners]),
    ),
    _rigid(
      "nested shells",
      [create.icosphere(5, 0.8), create.icosphere(3, 0.5)],
      volume,
      ball,
    ),
    _rigid(
      "inverted winding",
      [inverted],
      0.48,
      lambda p, f: _box(p, box),
      edges=_box_edges(box),
    ),
    _splitting(),
  ]


def errors(shape: KnownShape, trip: round_trip.RoundTrip) -> Errors:
  """Compares a round trip of a shape with its answers."""
  cell = trip.settings.surface.cell
  scale, centre = _placement(trip)
  wrong, wrong_clear, clear, count, gaps = 0, 0, 0, 0, []
  for frame, samples in enumerate(trip.samples.astype(np.float64)):
    exact = _exact(shape, trip, samples[:, :3], frame, scale, centre)
    bad = (samples[:, 3] > 0) != (exact > 0)
    far = np.abs(samples[:, 3]) > cell
    wrong, count = wrong + np.count_nonzero(bad), count + len(bad)
    wrong_clear += np.count_nonzero(bad & far)
    clear += np.count_nonzero(far)
    near = np.abs(exact) < 4 * cell
    gaps.append(np.abs(samples[near, 3] - exact[near]))
  slips = _slips(shape, trip, scale, centre) / cell
  sharp = trip.points.guide.is_sharp
  off_edge = math.nan
  if len(shape.edges) and sharp.any():
    places = trip.points.stored[0, sharp, :3] / scale + centre
    off_edge = float(_to_segments(places, shape.edges).mean() * scale / cell)
  known = shape.is_distance or shape.inside is None
  return Errors(
    volume=_volume_error(shape, trip, scale),
    sign=wrong / count,
    clear_sign=wrong_clear / max(clear, 1),
    distance=float(np.concatenate(gaps).mean() / cell) if known else math.nan,
    sharp=float(sharp[trip.points.guide.num_uniform :].mean()),
    off_edge=off_edge,
    slip=float(slips.mean()),
    slip_99=float(np.quantile(slips, 0.99)),
  )


def _placement(trip: round_trip.RoundTrip) -> tuple[float, np.ndarray]:
  """Scale and centre: normalised = (own - centre) * scale."""
  own, new = trip.source.vertices[0], trip.mesh.vertices[0]
  far = int(np.argmax(np.linalg.norm(own - own[0], axis=1)))
  scale = float(
    np.linalg.norm(new[far] - new[0]) / np.linalg.norm(own[far] - own[0])
  )
  return scale, own[0] - new[0] / scale


def _exact(
  shape: KnownShape,
  trip: round_trip.RoundTrip,
  points: np.ndarray,
  frame: int,
  scale: float,
  centre: np.ndarray,
) -> np.ndarray:
  half = trip.settings.surface.sheet_cells * trip.settings.surface.cell
  slab = np.full(len(points), -np.inf)
  if shape.sheet.any():
    sheet = trip.mesh.select_faces(shape.sheet).frame(frame)
    slab = half - mesh_distance.unsigned_distance(sheet, points)
  if shape.inside is None:
    return slab
  own = points / scale + centre
  if len(shape.motions) == 1:
    turn, shift = shape.motions[0][frame]
    own = (own - shift) @ turn
  return np.maximum(slab, scale * shape.inside(own, frame))


def _volume_error(
  shape: KnownShape, trip: round_trip.RoundTrip, scale: float
) -> float:
  half = trip.settings.surface.sheet_cells * trip.settings.surface.cell
  worst = 0.0
  for surface, answer in zip(trip.surfaces, shape.volumes):
    answer = answer * scale**3 + shape.sheet_area * scale**2 * 2 * half
    found = mesh_distance.signed_volume(surface)
    worst = max(worst, abs(found / answer - 1))
  return worst


def _slips(
  shape: KnownShape,
  trip: round_trip.RoundTrip,
  scale: float,
  centre: np.ndarray,
) -> np.ndarray:
  """Distances of all points of later frames from their true positions."""
  own = trip.points.stored[..., :3].astype(np.float64) / scale + centre
  slips = []
  for motion in shape.motions:
    turn, shift = motion[0]
    rest = (own[0] - shift) @ turn
    slips.append(
      [
        np.linalg.norm(rest @ turn.T + shift - here, axis=1)
        for here, (turn, shift) in zip(own[1:], motion[1:])
      ]
    )
  # In a shape that splits, a point may belong to either half.
  total = np.array(slips)  # [motions, F - 1, P]
  best = np.argmin(total.sum(1), axis=0)
  return total[best, :, np.arange(total.shape[2])] * scale


def _rigid(
  name: str,
  bodies: Sequence[trimesh.Trimesh],
  volume: float,
  inside: Callable[[np.ndarray, int], np.ndarray] | None,
  *,
  is_distance: bool = True,
  edges: np.ndarray | None = None,
  sheet: trimesh.Trimesh | None = None,
) -> KnownShape:
  solid = sum(len(body.faces) for body in bodies)
  parts = list(bodies) if sheet is None else [*bodies, sheet]
  joined = trimesh.util.concatenate(parts)
  motion = tuple(
    (
      rotations.Rotation.from_euler(
        "y", _TURN * frame, degrees=True
      ).as_matrix(),
      _SHIFT * frame,
    )
    for frame in range(NUM_FRAMES)
  )
  vertices = np.asarray(joined.vertices)
  return KnownShape(
    name=name,
    mesh=DeformingMesh(
      np.stack([vertices @ turn.T + shift for turn, shift in motion]),
      joined.faces,
    ),
    volumes=(volume,) * NUM_FRAMES,
    inside=inside,
    is_distance=is_distance,
    edges=np.zeros((0, 2, 3)) if edges is None else edges,
    motions=(motion,),
    sheet=np.arange(len(joined.faces)) >= solid,
    sheet_area=0.0 if sheet is None else sheet.area,
  )


def _cloth(num: int = 21) -> trimesh.Trimesh:
  """An open wavy sheet."""
  axis = np.linspace(-0.8, 0.8, num)
  x, z = np.meshgrid(axis, axis, indexing="ij")
  corner = np.arange((num - 1) ** 2)
  a = corner // (num - 1) * num + corner % (num - 1)
  faces = np.concatenate(
    [
      np.stack([a, a + 1, a + num + 1], 1),
      np.stack([a, a + num + 1, a + num], 1),
    ]
  )
  vertices = np.stack([x, 0.1 * np.sin(4 * x), z], -1).reshape(-1, 3)
  return trimesh.Trimesh(vertices, faces, process=False)


def _caped() -> KnownShape:
  """A block with a separate hanging cape."""
  block = [0.8, 1.2, 0.5]
  cape = trimesh.Trimesh(
    np.array(
      [
        [-0.3, -0.5, -0.5],
        [0.3, -0.5, -0.5],
        [0.3, 0.5, -0.5],
        [-0.3, 0.5, -0.5],
      ]
    ),
    [[0, 1, 2], [0, 2, 3]],
    process=False,
  )
  return _rigid(
    "body with a cape",
    [trimesh.creation.box(block)],
    float(np.prod(block)),
    lambda p, f: _box(p, block),
    is_distance=False,
    edges=_box_edges(block),
    sheet=cape,
  )


def _splitting() -> KnownShape:
  """Two cubes that form one bar at first and then separate."""
  cube = trimesh.creation.box([0.4, 0.4, 0.4])
  joined = trimesh.util.concatenate([cube, cube])
  side = np.repeat([-1.0, 1.0], len(cube.vertices))
  frames = np.stack([np.asarray(joined.vertices)] * NUM_FRAMES)
  for frame, half in zip(frames, _HALVES):
    frame[:, 0] += side * half

  def inside(points: np.ndarray, frame: int) -> np.ndarray:
    shift = np.array([_HALVES[frame], 0, 0])
    return np.maximum(
      _box(points - shift, [0.4] * 3), _box(points + shift, [0.4] * 3)
    )

  start = np.array([_HALVES[0], 0, 0])
  return KnownShape(
    name="splitting in two",
    mesh=DeformingMesh(frames, joined.faces),
    volumes=tuple(
      2 * 0.064 - max(0.4 - 2 * half, 0) * 0.16 for half in _HALVES
    ),
    inside=inside,
    is_distance=False,
    sheet=np.zeros(len(joined.faces), bool),
    edges=np.concatenate(
      [_box_edges([0.4] * 3) + start, _box_edges([0.4] * 3) - start]
    ),
    motions=tuple(
      tuple((np.eye(3), np.array([s * half, 0, 0])) for half in _HALVES)
      for s in (-1.0, 1.0)
    ),
  )


def _box(points: np.ndarray, size: Sequence[float]) -> np.ndarray:
  """Signed distance of a box around the origin, positive inside."""
  gap = np.abs(points) - np.array(size) / 2
  outside = np.linalg.norm(np.maximum(gap, 0), axis=1)
  return -outside - np.minimum(gap.max(1), 0)


def _torus(points: np.ndarray, frame: int) -> np.ndarray:
  del frame
  ring = np.linalg.norm(points[:, :2], axis=1) - 0.6
  return 0.2 - np.hypot(ring, points[:, 2])


def _box_edges(size: Sequence[float]) -> np.ndarray:
  """The twelve edges of a box around the origin, [12, 2, 3]."""
  half, edges = np.array(size) / 2, []
  for axis in range(3):
    for first in (-1, 1):
      for second in (-1, 1):
        ends = np.zeros((2, 3))
        ends[:, axis] = -half[axis], half[axis]
        ends[:, (axis + 1) % 3] = first * half[(axis + 1) % 3]
        ends[:, (axis + 2) % 3] = second * half[(axis + 2) % 3]
        edges.append(ends)
  return np.array(edges)


def _to_segments(points: np.ndarray, segments: np.ndarray) -> np.ndarray:
  """Distances [P] to the closest of some segments [E, 2, 3]."""
  start, along = segments[:, 0], segments[:, 1] - segments[:, 0]
  offset = points[:, None] - start  # [P, E, 3]
  share = np.sum(offset * along, -1) / np.sum(along**2, -1)
  nearest = offset - np.clip(share, 0, 1)[..., None] * along
  return np.linalg.norm(nearest, axis=-1).min(1)
