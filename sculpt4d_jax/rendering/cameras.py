"""Cameras: poses, rays of pixels, and projection.

The world is right-handed with y up and z towards the viewer, so a camera at
azimuth 0 and elevation 0 stands on the positive z axis, and one at azimuth 90
on the positive x axis. Camera space has x right, y up, and looks along -z
(OpenGL's convention). Depth is the distance along the viewing direction, not
along the ray. Pixel (0, 0) is the upper left one; the centre of pixel (row,
column) lies at (column + 1/2, row + 1/2).
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

from sculpt4d_jax.errors import UserError

# Radius of the sphere around [-1, 1]^3, which contains all meshes.
BOX_RADIUS = math.sqrt(3.0)


@dataclasses.dataclass(frozen=True)
class Camera:
  """A pinhole or an orthographic camera.

  Attributes:
    camera_to_world: Rigid transform, float64 [4, 4]; its columns are right, up,
      back (against the viewing direction) and the eye.
    fov_degrees: Field of view of the image's height; None for orthographic.
    height: World height of an orthographic image; None for perspective.
    shift: Centre of the image relative to the optical axis, right and up, in
      half heights of the image. Non-zero for a crop that is not centred.
  """

  camera_to_world: np.ndarray
  fov_degrees: float | None = None
  height: float | None = None
  shift: tuple[float, float] = (0.0, 0.0)

  def __post_init__(self):
    if (self.fov_degrees is None) == (self.height is None):
      raise UserError(
        "a camera has either fov_degrees (perspective) or height"
        f" (orthographic), got {self.fov_degrees} and {self.height}."
      )
    if self.fov_degrees is not None and not 0 < self.fov_degrees < 180:
      raise UserError(
        f"fov_degrees must lie between 0 and 180, got {self.fov_degrees}."
      )
    if self.height is not None and not self.height > 0:
      raise UserError(f"height must be positive, got {self.height}.")

  @property
  def is_perspective(self) -> bool:
    """Whether rays meet in the eye, rather than being parallel."""
    return self.fov_degrees is not None

  @property
  def eye(self) -> np.ndarray:
    """Position of the camera in the world, [3]."""
    return self.camera_to_world[:3, 3]

  @property
  def forward(self) -> np.ndarray:
    """Unit direction of view in the world, [3]."""
    return -self.camera_to_world[:3, 2]

  @property
  def half_height(self) -> float:
    """Half the image's height: world units, or a ratio to the depth."""
    if self.is_perspective:
      return math.tan(math.radians(self.fov_degrees) / 2)
    return self.height / 2


def look_at(
  eye: Sequence[float],
  target: Sequence[float] = (0.0, 0.0, 0.0),
  up: Sequence[float] = (0.0, 1.0, 0.0),
) -> np.ndarray:
  """The camera-to-world transform of a camera that looks at a point.

  Args:
    eye: Position of the camera.
    target: Point that the camera looks at.
    up: Roughly up in the image. If it is parallel to the view, -z is used for a
      camera above and z for one below.

  Returns:
    A rigid transform, float64 [4, 4].

  Raises:
    ValueError: Eye and target are the same point.
  """
  eye = np.asarray(eye, np.float64)
  back = eye - np.asarray(target, np.float64)
  distance = np.linalg.norm(back)
  if not distance > 0:
    raise UserError(f"eye and target are the same point: {eye.tolist()}.")
  back = back / distance
  right = np.cross(up, back)
  if np.linalg.norm(right) < 1e-9 * np.linalg.norm(up):
    right = np.cross([0.0, 0.0, -math.copysign(1.0, back[1])], back)
  right = right / np.linalg.norm(right)
  transform = np.eye(4)
  transform[:3] = np.stack([right, np.cross(back, right), back, eye], axis=1)
  return transform


def orbit_eye(azimuth: float, elevation: float, distance: float) -> np.ndarray:
  """The point at two angles (degrees) and a distance from the origin, [3]."""
  azimuth, elevation = math.radians(azimuth), math.radians(elevation)
  return distance * np.array(
    [
      math.cos(elevation) * math.sin(azimuth),
      math.sin(elevation),
      math.cos(elevation) * math.cos(azimuth),
    ]
  )


def perspective(
  azimuth: float = 0.0,
  elevation: float = 0.0,
  *,
  fov_degrees: float = 40.0,
  distance: float | None = None,
  radius: float = BOX_RADIUS,
) -> Camera:
  """A perspective camera that looks at the origin.

  Args:
    azimuth: Degrees around the y axis; 0 looks from +z, 90 from +x.
    elevation: Degrees above the horizon.
    fov_degrees: Field of view of the image's height.
    distance: Distance from the eye to the origin; by default such that the
      sphere of `radius` around the origin just fits into the image.
    radius: See `distance`.

  Returns:
    The camera.
  """
  if distance is None:
    distance = radius / math.sin(math.radians(fov_degrees) / 2)
  eye = orbit_eye(azimuth, elevation, distance)
  return Camera(look_at(eye), fov_degrees=fov_degrees)


def orthographic(
  azimuth: float = 0.0,
  elevation: float = 0.0,
  *,
  height: float = 2.0,
  distance: float = 2 * BOX_RADIUS,
) -> Camera:
  """An orthographic camera that looks at the origin.

  Args:
    azimuth: Degrees around the y axis; 0 looks from +z, 90 from +x.
    elevation: Degrees above the horizon.
    height: World height of the image.
    distance: Distance from the image plane to the origin; parts behind the
      plane are invisible.

  Returns:
    The camera.
  """
  eye = orbit_eye(azimuth, elevation, distance)
  return Camera(look_at(eye), height=height)


def hammersley_angles(
  num_cameras: int, offset: tuple[float, float] = (0.0, 0.0)
) -> np.ndarray:
  """Azimuths and elevations spread over the sphere, degrees, [n, 2].

  A quarter of the views is below the horizon, because most objects stand on the
  ground; each half is covered uniformly by area.

  Args:
    num_cameras: Number of cameras.
    offset: Shifts in [0, 1) of the two coordinates; random shifts give every
      object different views.

  Returns:
    Rows of azimuth in [0, 360) and elevation in [-90, 90].

  Source: view sampling of TRELLIS and Hunyuan3D 2.1's data preparation.
  """
  if num_cameras < 1:
    raise UserError(f"num_cameras must be positive, got {num_cameras}.")
  index = np.arange(num_cameras)
  u = (index + offset[0]) / num_cameras
  v = (_radical_inverse(index) + offset[1]) % 1.0
  u = np.where(u < 0.25, 2 * u, (2 * u + 1) / 3)
  elevation = np.degrees(np.arccos(1 - 2 * u)) - 90
  return np.stack([360 * v, elevation], axis=1)


def hammersley_cameras(
  num_cameras: int,
  rng: np.random.Generator,
  *,
  fov_range: tuple[float, float] = (10.0, 70.0),
  radius: float = BOX_RADIUS,
) -> list[Camera]:
  """Perspective cameras around the object with random fields of view.

  Args:
    num_cameras: Number of cameras.
    rng: Draws the offset of the sequence and the fields of view.
    fov_range: Smallest and largest field of view, degrees.
    radius: The object's bounding sphere, which just fits into every image.

  Returns:
    The cameras. Inverse squares of their distances are uniform between those
    of the two fields of view.

  Source: Hunyuan3D 2.1's data preparation.
  """
  angles = hammersley_angles(num_cameras, tuple(rng.random(2)))
  nearness = np.sin(np.radians(np.asarray(fov_range)) / 2) ** 2
  draws = np.sqrt(rng.uniform(*nearness, size=num_cameras))
  fovs = 2 * np.degrees(np.arcsin(draws))
  return [
    perspective(azimuth, elevation, fov_degrees=float(fov), radius=radius)
    for (azimuth, elevation), fov in zip(angles.tolist(), fovs)
  ]


def camera_rays(
  camera: Camera, height: int, width: int, *, samples: int = 1
) -> tuple[np.ndarray, np.ndarray]:
  """Rays through the pixels.

  Args:
    camera: The camera.
    height: Rows of the image.
    width: Columns of the image.
    samples: Samples a pixel along each axis: a regular grid inside the pixel.

  Returns:
    Origins and directions, float64 [height * samples, width * samples, 3].
    Directions advance by one unit of depth, so that the ray parameter is the
    depth; only orthographic ones have unit length.
  """
  half = camera.half_height
  rows, columns = height * samples, width * samples
  x = ((np.arange(columns) + 0.5) / columns * 2 - 1) * width / height
  y = 1 - (np.arange(rows) + 0.5) / rows * 2
  x, y = np.meshgrid(half * (x + camera.shift[0]), half * (y + camera.shift[1]))
  plane = np.stack([x, y, np.zeros_like(x)], axis=-1)
  plane = plane @ camera.camera_to_world[:3, :3].T
  if camera.is_perspective:
    return np.broadcast_to(camera.eye, plane.shape), plane + camera.forward
  return plane + camera.eye, np.broadcast_to(camera.forward, plane.shape)


def project(
  camera: Camera, points: np.ndarray, height: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
  """Projects points into the image.

  Args:
    camera: The camera.
    points: World positions [P, 3].
    height: Rows of the image.
    width: Columns of the image.

  Returns:
    Pixel coordinates (x, y) [P, 2] and depths [P]; points with depth <= 0 are
    behind the camera, and their pixels have no meaning.
  """
  local = (np.asarray(points, np.float64) - camera.eye) @ (
    camera.camera_to_world[:3, :3]
  )
  depth = -local[:, 2]
  scale = camera.half_height
  if camera.is_perspective:
    scale = scale * np.where(depth > 0, depth, np.nan)
  x = local[:, 0] / scale - camera.shift[0]
  y = local[:, 1] / scale - camera.shift[1]
  x = (x * height / width + 1) / 2 * width
  y = (1 - y) / 2 * height
  return np.stack([x, y], axis=1), depth


def _radical_inverse(index: np.ndarray) -> np.ndarray:
  """Binary digits mirrored at the point: 1 -> 0.1, 2 -> 0.01, 3 -> 0.11."""
  result = np.zeros(index.shape, np.float64)
  digit = 0.5
  while index.any():
    result += digit * (index & 1)
    index, digit = index >> 1, digit / 2
  return result
