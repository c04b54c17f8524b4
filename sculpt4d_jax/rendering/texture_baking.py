"""Colours of a moving surface from the frames of its video.

Every frame gives a colour and a weight to a surface point. The weight is 0 if
another part of the surface occludes the point, or if the pixel is not
completely covered by the object. Otherwise it is ((cos - 0.15) / 0.85)^2 for
the angle between normal and ray, because grazing views are blurred.

With "first", only the first frame gives colours. With "all", the first frame
gives them where its view is good, and the other frames elsewhere, each with the
fourth power of its weight, so that the best view dominates and the result stays
sharp. Points that no frame shows have weight 0; `texture_fill` colours them.

If colours keep the filmed light, a point of a turning object has another
brightness in each frame. Colours of other frames are then multiplied by the
ratio of the estimated light on the point in the first frame and in theirs.
"""

from collections.abc import Callable, Sequence
import dataclasses
from typing import Literal

from embreex import rtcore_scene
import numpy as np
from scipy import ndimage

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import uv_atlas
from sculpt4d_jax.rendering import camera_fit
from sculpt4d_jax.rendering import cameras

TriangleMesh = mesh_lib.TriangleMesh
SurfacePoints = uv_atlas.SurfacePoints
Frames = Literal["first", "all"]

FRAMES: tuple[Frames, ...] = ("first", "all")
_GRAZING = 0.15  # Cosine below which a view is not used.
_LIFT = 2e-3  # Distance of ray origins from the surface, world units.
_OBJECT = 0.9  # Smallest coverage of a pixel that is used.
# Range of the first frame's weight over which the other frames fade out.
_FADE = (0.002, 0.02)
# Largest factor by which an estimated light may change colours.
_MAX_RELIGHT = 2.0
_SHARPNESS = 4


@dataclasses.dataclass(frozen=True)
class Footage:
  """The video that is projected onto the surface, with its camera.

  Attributes:
    vertices: Positions in every frame, float64 [F, V, 3].
    faces: Vertex indices, int [T, 3].
    pictures: Colours in [0, 1], float32 [F, h, w, 3].
    masks: Coverage in [0, 1], float32 [F, h, w].
    camera: The camera of all frames.
    offsets: Shift of each pixel's lookup, as (x, y) in pixels, [F, h, w, 2];
      None shifts nothing.
    light: Light [P] as a function of unit normals in world space [P, 3];
      colours are divided by it. None keeps them unchanged.
  """

  vertices: np.ndarray
  faces: np.ndarray
  pictures: np.ndarray
  masks: np.ndarray
  camera: cameras.Camera
  offsets: np.ndarray | None = None
  light: Callable[[np.ndarray], np.ndarray] | None = None

  @property
  def num_frames(self) -> int:
    """Number of frames F."""
    return len(self.vertices)

  def normals(self, frame: int) -> np.ndarray:
    """Vertex normals of a frame, float64 [V, 3]."""
    mesh = TriangleMesh(self.vertices[frame], self.faces)
    return mesh.vertex_normals().astype(np.float64)


@dataclasses.dataclass(frozen=True)
class Observed:
  """Colours of surface points observed in frames.

  Attributes:
    colours: RGB in [0, 1], float64 [P, 3]; meaningless where the weight is 0.
    weights: The best weight of the frames that were used, in [0, 1], [P].
  """

  colours: np.ndarray
  weights: np.ndarray


def footage(
  vertices: np.ndarray,
  faces: np.ndarray,
  pictures: np.ndarray,
  masks: np.ndarray,
  camera: cameras.Camera,
) -> Footage:
  """Checks and converts the data of a video.

  Args:
    vertices: Positions [F, V, 3].
    faces: Vertex indices [T, 3].
    pictures: uint8 [F, h, w, 3], or float in [0, 1].
    masks: uint8 [F, h, w], or float in [0, 1].
    camera: The camera of all frames.

  Raises:
    ValueError: Shapes do not fit.
  """
  masks = camera_fit.coverage(masks)
  pictures = np.asarray(pictures)
  if pictures.shape != (*masks.shape, 3) or len(vertices) != len(masks):
    raise UserError(
      f"expected pictures [{len(vertices)}, h, w, 3] with masks of the same"
      f" size, got {list(pictures.shape)} and {list(masks.shape)}."
    )
  scale = 255 if pictures.dtype == np.uint8 else 1
  pictures = np.clip(pictures.astype(np.float32) / scale, 0, 1)
  vertices = np.asarray(vertices, np.float64)
  return Footage(vertices, np.asarray(faces), pictures, masks, camera)


def observe(clip: Footage, frame: int, points: SurfacePoints) -> Observed:
  """Colours of surface points in one frame."""
  vertices, faces = clip.vertices[frame], clip.faces
  places = points.interpolate(vertices, faces)
  normals = _unit(points.interpolate(clip.normals(frame), faces))
  weights = _facing_weights(clip.camera, places, normals)
  asked = np.flatnonzero(weights > 0)
  places, normals = places[asked], normals[asked]
  height, width = clip.masks.shape[1:]
  pixels, _ = cameras.project(clip.camera, places, height, width)
  pixels = pixels - 0.5  # Array indices: pixel centres are integers.
  if clip.offsets is not None:
    pixels = pixels + _look_up(clip.offsets[frame], pixels)
  coverage = _look_up(clip.masks[frame][..., None], pixels)[:, 0]
  outside = (pixels < 0).any(1) | (pixels > [width - 1, height - 1]).any(1)
  belongs = np.clip((coverage - _OBJECT) / (1 - _OBJECT), 0, 1) * ~outside
  # Rays are cast last, for points that nothing else rules out.
  belongs[belongs > 0] *= ~_is_hidden(
    clip.camera,
    camera_fit.scene_of(vertices, faces),
    places[belongs > 0],
    normals[belongs > 0],
  )
  colours = np.zeros((len(points), 3))
  colours[asked] = _look_up(clip.pictures[frame], pixels)
  if clip.light is not None:
    colours[asked] /= clip.light(normals)[:, None]
  weights[asked] *= belongs
  return Observed(colours, weights)


def bake(
  clip: Footage,
  points: SurfacePoints,
  frames: Frames = "all",
  filmed_light: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Observed:
  """Colours of surface points from the first frame or from all.

  Args:
    clip: The video on its surface.
    points: Texels or vertices.
    frames: "first" or "all", see the module.
    filmed_light: The light [P] by unit normals [P, 3], where colours keep it;
      None where they do not, or where it is not known.

  Raises:
    ValueError: `frames` is something else.
  """
  if frames not in FRAMES:
    raise UserError(f"frames={frames!r}: choose one of {FRAMES}.")
  first = observe(clip, 0, points)
  if frames == "first" or clip.num_frames == 1:
    return first
  share = np.clip((first.weights - _FADE[0]) / (_FADE[1] - _FADE[0]), 0, 1)
  open_points = np.flatnonzero(share < 1)
  others = _best_of(
    clip, points[open_points], range(1, clip.num_frames), filmed_light
  )
  # If no other frame shows a point, even a grazing view of the first counts.
  share[open_points[others.weights == 0]] = 1
  colours, weights = first.colours.copy(), first.weights.copy()
  mix = share[open_points, None]
  colours[open_points] = mix * colours[open_points] + (
    (1 - mix) * others.colours
  )
  weights[open_points] = np.maximum(weights[open_points], others.weights)
  return Observed(colours, weights)


def _best_of(
  clip: Footage,
  points: SurfacePoints,
  frames: Sequence[int],
  filmed_light: Callable[[np.ndarray], np.ndarray] | None,
) -> Observed:
  """Mean over frames with the sharpened weights."""
  colours, total = np.zeros((len(points), 3)), np.zeros(len(points))
  best = np.zeros(len(points))
  for frame in frames:
    seen = observe(clip, frame, points)
    power = seen.weights**_SHARPNESS
    shown = seen.colours
    if filmed_light is not None:
      shown = shown * _relight(clip, frame, points, filmed_light)[:, None]
    colours += power[:, None] * shown
    total += power
    best = np.maximum(best, seen.weights)
  # The fourth power of a small weight vanishes, and with it the colour.
  best[total < 1e-12] = 0
  return Observed(colours / np.maximum(total, 1e-12)[:, None], best)


def _relight(
  clip: Footage,
  frame: int,
  points: SurfacePoints,
  light: Callable[[np.ndarray], np.ndarray],
) -> np.ndarray:
  """Factors [P] from a frame's light on the points to the first frame's."""
  first, other = (
    light(_unit(points.interpolate(clip.normals(index), clip.faces)))
    for index in (0, frame)
  )
  return np.clip(first / other, 1 / _MAX_RELIGHT, _MAX_RELIGHT)


def _facing_weights(
  camera: cameras.Camera, places: np.ndarray, normals: np.ndarray
) -> np.ndarray:
  cosine = np.einsum("px,px->p", normals, _to_eye(camera, places))
  return np.clip((cosine - _GRAZING) / (1 - _GRAZING), 0, 1) ** 2


def _to_eye(camera: cameras.Camera, places: np.ndarray) -> np.ndarray:
  """Unit vectors towards the eye, [P, 3]."""
  if camera.is_perspective:
    return _unit(camera.eye - places)
  return np.broadcast_to(-camera.forward, places.shape)


def _is_hidden(
  camera: cameras.Camera,
  scene: rtcore_scene.EmbreeScene,
  places: np.ndarray,
  normals: np.ndarray,
) -> np.ndarray:
  """Whether points are occluded from the eye, bool [P]."""
  direction = _to_eye(camera, places)
  # Offset along both, so that a ray does not hit the face it starts on.
  start = places + _LIFT * (normals + direction)
  hits = scene.run(
    np.ascontiguousarray(start, np.float32),
    np.ascontiguousarray(direction, np.float32),
  )
  return hits >= 0


def _look_up(image: np.ndarray, pixels: np.ndarray) -> np.ndarray:
  """Bilinear values [P, n] of an image [h, w, n] at (x, y) indices [P, 2]."""
  return np.stack(
    [
      ndimage.map_coordinates(
        image[..., channel], pixels[:, ::-1].T, order=1, mode="nearest"
      )
      for channel in range(image.shape[-1])
    ],
    axis=1,
  )


def _unit(vectors: np.ndarray) -> np.ndarray:
  length = np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / np.maximum(length, 1e-12)
