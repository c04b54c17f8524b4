"""Pictures of a finished asset: overlay on its video, turntable, figure."""

from collections.abc import Sequence
import os

import numpy as np
from PIL import Image

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import textured_mesh
from sculpt4d_jax.geometry import uv_atlas
from sculpt4d_jax.io import atomic
from sculpt4d_jax.rendering import cameras
from sculpt4d_jax.rendering import rasterizer

TexturedMesh = textured_mesh.TexturedMesh
TriangleMesh = mesh_lib.TriangleMesh

_PAPER = (1.0, 1.0, 1.0)
_FOV = 30.0
_GAP = 0.04  # Between pictures of a figure, as a share of one.
# Azimuth and elevation of a figure's rows, degrees, as in the paper's.
FIGURE_VIEWS = ((0.0, 5.0), (60.0, 20.0))


def render(
  parts: Sequence[TexturedMesh],
  frame: int,
  camera: cameras.Camera,
  size: int | tuple[int, int],
  supersampling: int = 2,
) -> np.ndarray:
  """A frame of the asset, uint8 RGBA [h, w, 4]."""
  part = next(p for p in parts if p.first_frame <= frame <= p.last_frame)
  mesh = part.mesh.frame(frame - part.first_frame)
  has_colours = part.image is not None or part.mesh.colours is not None

  def colours(face_ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    points = uv_atlas.SurfacePoints(face_ids, weights)
    return np.clip(part.colours_at(points), 0, 1)

  return rasterizer.render_mesh(
    mesh,
    camera,
    size,
    supersampling=supersampling,
    surface_colors=colours if has_colours else None,
    shaded=part.is_lit or not has_colours,
  ).rgba


def overlay_frames(
  parts: Sequence[TexturedMesh],
  pictures: np.ndarray,
  camera: cameras.Camera,
  max_side: int = 512,
) -> np.ndarray:
  """The video next to the mesh over the video, uint8 [F, h, 2 w, 3].

  Args:
    parts: The asset.
    pictures: The video, uint8 [F, h, w, 3].
    camera: The fitted camera.
    max_side: Smaller pictures are enlarged and larger ones reduced to this
      many rows.
  """
  height = max_side
  width = max(1, round(pictures.shape[2] * height / pictures.shape[1]))
  frames = []
  for index, picture in enumerate(pictures):
    video = np.asarray(
      Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
    )
    rgba = render(parts, index, camera, (height, width))
    # Faded, so that differences between video and mesh are visible on both
    # sides.
    behind = 0.35 * video / 255 + 0.65
    over = rasterizer.composite(rgba, behind)
    frames.append(np.concatenate([video, over], 1))
  return np.stack(frames)


def turntable_frames(
  parts: Sequence[TexturedMesh],
  num_frames: int,
  *,
  size: int = 384,
  turns: int = 1,
  repeats: int | None = None,
) -> np.ndarray:
  """The asset in motion while the camera circles it, uint8 [N, s, s, 3].

  Args:
    parts: The asset.
    num_frames: Frames of its clip.
    size: Side of the pictures.
    turns: Turns of the camera.
    repeats: Number of times that the clip plays; by default as many as give at
      least 48 pictures.
  """
  repeats = repeats or max(1, -(-48 // num_frames))
  total = repeats * num_frames
  center, radius = bounds(parts)
  pictures = []
  for index in range(total):
    camera = _around(center, radius, 360.0 * turns * index / total, 12.0)
    rgba = render(parts, index % num_frames, camera, size)
    pictures.append(rasterizer.composite(rgba, _PAPER))
  return np.stack(pictures)


def figure(
  parts: Sequence[TexturedMesh],
  num_frames: int,
  pictures: np.ndarray | None = None,
  *,
  columns: int = 6,
  size: int = 256,
  views: Sequence[tuple[float, float]] = FIGURE_VIEWS,
) -> np.ndarray:
  """A sheet of times by views with the input above, uint8 [h, w, 3].

  Args:
    parts: The asset.
    num_frames: Frames of its clip.
    pictures: The video, uint8 [F, h, w, 3], or None.
    columns: Times, at even distances, the first and the last among them.
    size: Side of each picture.
    views: Azimuth and elevation of the rows, degrees.
  """
  count = min(columns, num_frames)
  chosen = np.round(np.linspace(0, num_frames - 1, count)).astype(int)
  center, radius = bounds(parts)
  rows = []
  if pictures is not None:
    rows.append([_fitted(pictures[frame], size) for frame in chosen])
  for azimuth, elevation in views:
    camera = _around(center, radius, azimuth, elevation)
    rows.append(
      [
        rasterizer.composite(
          render(parts, int(frame), camera, size, supersampling=3), _PAPER
        )
        for frame in chosen
      ]
    )
  gap = max(2, round(_GAP * size))
  sheet = np.full(
    (len(rows) * (size + gap) + gap, count * (size + gap) + gap, 3),
    255,
    np.uint8,
  )
  for row, tiles in enumerate(rows):
    for column, tile in enumerate(tiles):
      top, left = gap + row * (size + gap), gap + column * (size + gap)
      sheet[top : top + size, left : left + size] = tile
  return sheet


def write_png(path: str | os.PathLike, picture: np.ndarray) -> None:
  """Writes a picture, uint8 [h, w, 3]; raises OutputError if that fails."""
  with atomic.atomic_write(path) as file:
    Image.fromarray(picture).save(file, "PNG", optimize=True)


def bounds(parts: Sequence[TexturedMesh]) -> tuple[np.ndarray, float]:
  """Middle of the box around all frames, and the radius of their sphere."""
  low = np.min([part.mesh.vertices.min((0, 1)) for part in parts], axis=0)
  high = np.max([part.mesh.vertices.max((0, 1)) for part in parts], axis=0)
  center = (low + high) / 2
  radius = max(
    float(np.linalg.norm(part.mesh.vertices - center, axis=-1).max())
    for part in parts
  )
  return center, max(radius, 1e-6)


def _around(
  center: np.ndarray, radius: float, azimuth: float, elevation: float
) -> cameras.Camera:
  distance = 1.04 * radius / np.sin(np.radians(_FOV) / 2)
  eye = center + cameras.orbit_eye(azimuth, elevation, distance)
  return cameras.Camera(cameras.look_at(eye, center), fov_degrees=_FOV)


def _fitted(picture: np.ndarray, size: int) -> np.ndarray:
  """A picture in a white square."""
  image = Image.fromarray(picture)
  scale = size / max(image.size)
  image = image.resize(
    [max(1, round(side * scale)) for side in image.size],
    Image.Resampling.LANCZOS,
  )
  tile = Image.new("RGB", (size, size), "white")
  tile.paste(image, [(size - side) // 2 for side in image.size])
  return np.asarray(tile)
