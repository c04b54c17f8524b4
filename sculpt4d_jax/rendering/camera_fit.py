"""Fits the camera of a clip to the silhouettes of its frames.

One camera serves all frames. Its viewing direction (azimuth, elevation) and
distance from the origin are searched; the centre and the size of the picture
follow in closed form, because the box around the projected vertices of all
frames must match the box around all masks. The cost is 1 - IoU between masks
and ray-cast silhouettes of a few frames: a coarse grid of directions, then
Nelder-Mead, finally also over the picture's centre and size, because limbs of a
generated mesh may extend beyond the masks and shift the boxes.

Front and back views have almost the same silhouette. A prior resolves this: the
model generates objects that face the viewer within 90 degrees. Distance and
size are almost ambiguous, and a flower with five petals looks the same from
five sides; weak penalties keep distance and azimuth near their usual values if
the masks do not determine them.
"""

from collections.abc import Callable
import dataclasses
import math

from embreex import mesh_construction
from embreex import rtcore_scene
import numpy as np
from scipy import ndimage
from scipy import optimize

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.rendering import cameras

_MASK_LEVEL = 0.5
_APART = 2.5  # Least distance of two starts, in steps of the grid's azimuth.
# Below this, colours would be sampled from the background.
LOW_IOU = 0.85


@dataclasses.dataclass(frozen=True)
class FitSettings:
  """Settings of the camera search.

  Attributes:
    max_azimuth: Largest absolute azimuth that is tried, degrees; 180 removes
      the assumption that the object faces the viewer.
    elevations: Elevations of the grid, degrees.
    azimuth_step: Spacing of the grid's azimuths, degrees.
    distance: Usual distance from the origin, world units, the grid's only one.
    num_frames: Frames whose silhouettes are compared.
    grid_size: Rays along each side of the picture in the grid search.
    middle_size: The same when directions are refined.
    size: The same when the complete camera is refined.
    num_starts: Directions of the grid that are refined.
    pull: Cost of a distance that is twice or half the usual one, and of an
      azimuth of 45 degrees.
    preference: Further cost of an azimuth of 45 degrees when refined directions
      are compared: masks are half a pixel off, and of the sides of a symmetric
      object any one may fit them best.
  """

  max_azimuth: float = 90.0
  elevations: tuple[float, ...] = (-10.0, 5.0, 20.0, 40.0)
  azimuth_step: float = 15.0
  distance: float = 4.0
  num_frames: int = 4
  grid_size: int = 32
  middle_size: int = 64
  size: int = 96
  num_starts: int = 2
  pull: float = 1e-3
  preference: float = 4e-3


@dataclasses.dataclass(frozen=True)
class FittedCamera:
  """A camera, and the agreement of its silhouettes with the masks.

  Attributes:
    camera: The camera; its image has the shape of the masks.
    azimuth: Degrees; 0 looks from +z, 90 from +x.
    elevation: Degrees above the horizon.
    distance: Distance from the eye to the origin, world units.
    frame_ious: Intersection over union in each frame, float64 [F].
  """

  camera: cameras.Camera
  azimuth: float
  elevation: float
  distance: float
  frame_ious: np.ndarray

  @property
  def iou(self) -> float:
    """Mean intersection over union of all frames."""
    return float(self.frame_ious.mean())

  @property
  def warning(self) -> str:
    """A sentence for the user, or empty."""
    if self.iou >= LOW_IOU:
      return ""
    return (
      f"the mesh covers the object in the video badly (silhouette IoU"
      f" {self.iou:.2f}, expected {LOW_IOU} or more): colours are drawn in from"
      " the outline and may be misplaced."
    )


def fit(
  vertices: np.ndarray,
  faces: np.ndarray,
  masks: np.ndarray,
  settings: FitSettings | None = None,
) -> FittedCamera:
  """Finds the camera.

  Args:
    vertices: Positions in all frames [F, V, 3], about the origin.
    faces: Vertex indices [T, 3].
    masks: Coverage in [0, 1], float [F, h, w], or uint8 in [0, 255].
    settings: Settings of the search.

  Returns:
    The camera with the IoU of every frame.

  Raises:
    ValueError: Shapes do not fit, or no mask shows an object.
  """
  settings = settings or FitSettings()
  search = _Search(vertices, faces, coverage(masks), settings)
  start = search.best_of_grid()
  results = [
    _nelder_mead(search.cost, point, (0.12, 0.10, 0.2), 50) for point in start
  ]
  point = min(results, key=search.cost_of_choice).x
  view = search.view(*point)
  free = _nelder_mead(
    search.free_cost,
    np.array([*point, *view.centre, math.log(view.extent)]),
    (0.02, 0.02, 0.06, 0.01, 0.01, 0.01),
    120,
  )
  view = _View.from_numbers(free.x)
  camera = view.camera()
  return FittedCamera(
    camera=camera,
    azimuth=math.degrees(view.azimuth),
    elevation=math.degrees(view.elevation),
    distance=view.distance,
    frame_ious=silhouette_ious(camera, vertices, faces, masks),
  )


def coverage(masks: np.ndarray) -> np.ndarray:
  """Masks as float32 in [0, 1], [F, h, w].

  Raises:
    ValueError: They have another shape, or no frame shows an object.
  """
  masks = np.asarray(masks)
  if masks.ndim != 3 or not masks.size:
    raise UserError(f"masks must be [F, h, w], got {list(masks.shape)}.")
  scale = 255 if masks.dtype == np.uint8 else 1
  masks = masks.astype(np.float32) / scale
  if not (masks > _MASK_LEVEL).any():
    raise UserError("no mask shows an object; check the cut-out.")
  return masks


def silhouette(
  camera: cameras.Camera,
  vertices: np.ndarray,
  faces: np.ndarray,
  height: int,
  width: int,
) -> np.ndarray:
  """Whether pixel centres see the mesh [V, 3], [T, 3]: bool [h, w]."""
  origins, directions = cameras.camera_rays(camera, height, width)
  hits = _cast(scene_of(vertices, faces), origins, directions)
  return hits.reshape(height, width)


def silhouette_ious(
  camera: cameras.Camera,
  vertices: np.ndarray,
  faces: np.ndarray,
  masks: np.ndarray,
) -> np.ndarray:
  """Intersection over union of silhouettes and masks, float64 [F].

  For arguments see `fit`. A frame whose mask and silhouette are both empty
  counts as 1.
  """
  masks = coverage(masks) > _MASK_LEVEL
  shown = [
    silhouette(camera, frame, faces, *masks.shape[1:]) for frame in vertices
  ]
  return np.array([_iou(seen, mask) for seen, mask in zip(shown, masks)])


def scene_of(
  vertices: np.ndarray, faces: np.ndarray
) -> rtcore_scene.EmbreeScene:
  """A ray-casting scene of one mesh."""
  scene = rtcore_scene.EmbreeScene(robust=True)
  mesh_construction.TriangleMesh(
    scene,
    np.ascontiguousarray(vertices, np.float32),
    np.ascontiguousarray(faces, np.int32),
  )
  return scene


def _cast(
  scene: rtcore_scene.EmbreeScene, origins: np.ndarray, directions: np.ndarray
) -> np.ndarray:
  """Whether rays hit, bool, flat."""
  return (
    scene.run(
      np.ascontiguousarray(origins.reshape(-1, 3), np.float32),
      np.ascontiguousarray(directions.reshape(-1, 3), np.float32),
    )
    >= 0
  )


def _iou(first: np.ndarray, second: np.ndarray) -> float:
  union = np.count_nonzero(first | second)
  return np.count_nonzero(first & second) / union if union else 1.0


@dataclasses.dataclass(frozen=True)
class _View:
  """A camera as parametrised by the search.

  Attributes:
    azimuth: Radians.
    elevation: Radians.
    distance: Distance from the eye to the origin.
    centre: Centre of the picture on the plane through the origin that faces
      the camera, (right, up).
    extent: Half height of the picture on that plane.
  """

  azimuth: float
  elevation: float
  distance: float
  centre: tuple[float, float]
  extent: float

  @classmethod
  def from_numbers(cls, numbers: np.ndarray) -> "_View":
    azimuth, elevation, log_distance, x, y, log_extent = map(float, numbers)
    return cls(
      azimuth, elevation, math.exp(log_distance), (x, y), math.exp(log_extent)
    )

  def camera(self) -> cameras.Camera:
    eye = cameras.orbit_eye(
      math.degrees(self.azimuth), math.degrees(self.elevation), self.distance
    )
    return cameras.Camera(
      cameras.look_at(eye),
      fov_degrees=2 * math.degrees(math.atan(self.extent / self.distance)),
      shift=(self.centre[0] / self.extent, self.centre[1] / self.extent),
    )


class _Search:
  """Costs of cameras."""

  def __init__(
    self,
    vertices: np.ndarray,
    faces: np.ndarray,
    masks: np.ndarray,
    settings: FitSettings,
  ):
    if len(vertices) != len(masks):
      raise UserError(
        f"there are {len(vertices)} meshes but {len(masks)} masks."
      )
    self.settings = settings
    shown = np.flatnonzero((masks > _MASK_LEVEL).any((1, 2)))
    places = np.linspace(0, len(shown) - 1, settings.num_frames)
    chosen = shown[np.unique(np.round(places).astype(int))]
    self.scenes = [scene_of(vertices[i], faces) for i in chosen]
    self.shape = masks.shape[1:]
    self.low, self.high = _mask_box(masks)
    # The box only needs the outermost vertices of frames with an object.
    self.points = _hull(np.asarray(vertices, np.float64)[shown])
    self.reach = float(np.linalg.norm(self.points, axis=1).max())
    self.grids = {
      size: self._grid(masks[chosen], size)
      for size in (settings.grid_size, settings.middle_size, settings.size)
    }

  def _grid(
    self, masks: np.ndarray, size: int
  ) -> tuple[tuple[int, int], np.ndarray]:
    """Rows and columns of a grid of rays, and the masks there, flat."""
    height, width = self.shape
    rows, columns = size, max(1, round(size * width / height))
    y = (np.arange(rows) + 0.5) / rows * height - 0.5
    x = (np.arange(columns) + 0.5) / columns * width - 0.5
    places = np.meshgrid(y, x, indexing="ij")
    values = [
      ndimage.map_coordinates(mask, places, order=1, mode="nearest")
      for mask in masks
    ]
    return (rows, columns), np.stack(values).reshape(len(masks), -1) > (
      _MASK_LEVEL
    )

  def best_of_grid(self) -> list[np.ndarray]:
    """The best directions of the grid, the best one first."""
    settings = self.settings
    limit = settings.max_azimuth
    azimuths = np.arange(-limit, limit + 1e-6, settings.azimuth_step)
    grid = [
      np.array(
        [
          math.radians(azimuth),
          math.radians(elevation),
          math.log(settings.distance),
        ]
      )
      for azimuth in azimuths
      for elevation in settings.elevations
    ]
    costs = [self.cost(point, settings.grid_size) for point in grid]
    # Neighbours lead to the same camera, so the starts are apart.
    apart = math.radians(_APART * settings.azimuth_step)
    starts: list[np.ndarray] = []
    for i in np.argsort(costs):
      turns = (grid[i][0] - start[0] for start in starts)
      if all(abs(math.remainder(turn, math.tau)) > apart for turn in turns):
        starts.append(grid[i])
    return starts[: settings.num_starts]

  def cost(self, numbers: np.ndarray, size: int | None = None) -> float:
    """Cost of azimuth, elevation and log distance."""
    if not self._is_allowed(numbers):
      return 2.0
    return self._compare(self.view(*numbers), size or self.settings.middle_size)

  def cost_of_choice(self, refined: optimize.OptimizeResult) -> float:
    """Cost of a refined direction next to others."""
    return refined.fun + self.settings.preference * self._aside(refined.x[0])

  def free_cost(self, numbers: np.ndarray) -> float:
    """Cost of these, the picture's centre and its log extent."""
    if not self._is_allowed(numbers):
      return 2.0
    return self._compare(_View.from_numbers(numbers), self.settings.size)

  def _is_allowed(self, numbers: np.ndarray) -> bool:
    azimuth, elevation, log_distance = numbers[:3]
    limit = math.radians(self.settings.max_azimuth)
    return (
      (abs(azimuth) <= limit or limit >= math.pi)
      and abs(elevation) < 1.5
      and math.log(1.05 * self.reach) < log_distance < math.log(60.0)
    )

  def view(
    self, azimuth: float, elevation: float, log_distance: float
  ) -> _View:
    """The view whose box of all vertices is the box of all masks."""
    distance = math.exp(log_distance)
    plain = _View(azimuth, elevation, distance, (0.0, 0.0), 1.0).camera()
    local = (self.points - plain.eye) @ plain.camera_to_world[:3, :3]
    plane = local[:, :2] * (distance / -local[:, 2:])
    low, high = plane.min(0), plane.max(0)
    # Both sides of the box by least squares: one scale, two offsets.
    size, wanted = high - low, self.high - self.low
    extent = float((size @ wanted) / (wanted @ wanted))
    centre = (low + high) / 2 - extent * (self.low + self.high) / 2
    return _View(
      azimuth, elevation, distance, (float(centre[0]), float(centre[1])), extent
    )

  def _compare(self, view: _View, size: int) -> float:
    (rows, columns), wanted = self.grids[size]
    origins, directions = cameras.camera_rays(view.camera(), rows, columns)
    total = sum(
      1 - _iou(_cast(scene, origins, directions), mask)
      for scene, mask in zip(self.scenes, wanted)
    )
    unusual = math.log2(view.distance / self.settings.distance) ** 2
    unusual += self._aside(view.azimuth)
    return total / len(self.scenes) + self.settings.pull * unusual

  def _aside(self, azimuth: float) -> float:
    """1 at 45 degrees; 0 if the object may face any direction."""
    if self.settings.max_azimuth >= 180:
      return 0.0
    return (azimuth / math.radians(45)) ** 2


def _mask_box(masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Low and high corner (right, up) of all masks, in half heights, [2] each.

  Sides are where the coverage crosses one half, between pixel centres.
  """
  height, width = masks.shape[1:]
  most = masks.max(0)
  left, right = _crossings(most.max(0))
  top, bottom = _crossings(most.max(1))
  low = np.array([2 * left - width, height - 2 * bottom]) / height
  high = np.array([2 * right - width, height - 2 * top]) / height
  return low, high


def _crossings(profile: np.ndarray) -> tuple[float, float]:
  """First and last position, in pixels, at which a profile crosses one half."""

  def first(values: np.ndarray) -> float:
    values = np.concatenate([[0.0], values])
    index = int(np.argmax(values > _MASK_LEVEL))
    below, above = values[index - 1], values[index]
    return index - 1.5 + (_MASK_LEVEL - below) / (above - below)

  return first(profile), len(profile) - first(profile[::-1])


def _hull(vertices: np.ndarray) -> np.ndarray:
  """Points of all frames that are outermost in some direction, [P, 3]."""
  points = vertices.reshape(-1, 3)
  directions = cameras.hammersley_angles(400)
  eyes = np.stack([cameras.orbit_eye(a, e, 1.0) for a, e in directions])
  best = np.concatenate(
    [np.argmax(points @ part.T, axis=0) for part in np.split(eyes, 8)]
  )
  return points[np.unique(best)]


def _nelder_mead(
  cost: Callable[[np.ndarray], float],
  start: np.ndarray,
  steps: tuple[float, ...],
  max_calls: int,
) -> optimize.OptimizeResult:
  simplex = np.concatenate([start[None], start + np.diag(steps)])
  return optimize.minimize(
    cost,
    start,
    method="Nelder-Mead",
    options=dict(
      initial_simplex=simplex, maxfev=max_calls, xatol=1e-4, fatol=1e-5
    ),
  )
