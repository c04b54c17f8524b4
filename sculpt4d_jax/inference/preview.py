"""A picture of a run: input frames above renders of their meshes."""

from collections.abc import Sequence
import os

import numpy as np
from PIL import Image
from PIL import ImageDraw

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths
from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.rendering import cameras
from sculpt4d_jax.rendering import rasterizer

TriangleMesh = mesh_lib.TriangleMesh
PathLike = str | os.PathLike

# Azimuth and elevation of the rows below the video: from the front, as most
# videos see their object, and from the side, which they do not show.
VIEWS = ((0.0, 0.0), (60.0, 20.0))

_PAGE = (0.957, 0.949, 0.933)
_SPOT = np.array([0.985, 0.98, 0.97])  # The tile's colours, middle and rim.
_RIM = np.array([0.885, 0.87, 0.845])
_GAP = 0.05  # Between tiles, as a share of a tile.
_CORNER = 0.07


def write_preview(
  path: paths.PathLike,
  meshes: Sequence[TriangleMesh],
  video_frames: np.ndarray | None = None,
  *,
  max_columns: int = 8,
  tile_size: int = 192,
  views: Sequence[tuple[float, float]] = VIEWS,
) -> None:
  """Writes a contact sheet of a mesh sequence as PNG.

  Args:
    path: Output file (.png).
    meshes: One mesh a frame; frames may be empty.
    video_frames: The input's frames, uint8 [F, h, w, 3], one for each mesh; or
      None to leave their row out.
    max_columns: Columns at most; of longer clips, frames at even distances are
      shown, the first and the last among them.
    tile_size: Side of a tile, pixels.
    views: Azimuth and elevation, degrees, of each row of renders.

  Raises:
    ValueError: There are no frames, the video does not fit the meshes or a
      count is not positive.
    OutputError: The file cannot be written.
  """
  glb.check_sequence(path, meshes, 1.0, (".png",))
  sheet = contact_sheet(
    meshes,
    video_frames,
    max_columns=max_columns,
    tile_size=tile_size,
    views=views,
  )
  save_sheet(path, sheet)


def save_sheet(path: paths.PathLike, sheet: np.ndarray) -> None:
  """Writes a sheet, uint8 [h, w, 3], as PNG.

  Raises:
    OutputError: The file cannot be written.
  """
  with atomic.atomic_write(path) as file:
    Image.fromarray(sheet).save(file, "PNG")


def contact_sheet(
  meshes: Sequence[TriangleMesh],
  video_frames: np.ndarray | None = None,
  *,
  max_columns: int = 8,
  tile_size: int = 192,
  views: Sequence[tuple[float, float]] = VIEWS,
) -> np.ndarray:
  """The picture that `write_preview` writes, uint8 [h, w, 3]."""
  if max_columns < 1 or tile_size < 8:
    raise UserError(
      "expected max_columns >= 1 and tile_size >= 8, got"
      f" {max_columns} and {tile_size}."
    )
  if video_frames is not None and len(video_frames) != len(meshes):
    raise UserError(
      f"there are {len(meshes)} meshes but {len(video_frames)} video frames."
    )
  chosen = shown_frames(len(meshes), max_columns)
  rows = []
  if video_frames is not None:
    rows.append([_video_tile(video_frames[i], tile_size) for i in chosen])
  shown = [meshes[i] for i in chosen]
  center, radius = _bounds(shown)
  surfaces = [rasterizer.Surface(mesh) for mesh in _moved(shown, center)]
  for azimuth, elevation in views:
    camera = cameras.perspective(
      azimuth, elevation, fov_degrees=30.0, radius=1.04 * radius
    )
    rows.append([_mesh_tile(each, camera, tile_size) for each in surfaces])
  return _arrange(rows, tile_size)


def comparison_sheet(
  meshes: Sequence[TriangleMesh],
  truth: Sequence[TriangleMesh],
  video_frames: np.ndarray,
  *,
  max_columns: int = 8,
  tile_size: int = 128,
  views: Sequence[tuple[float, float]] = VIEWS,
) -> np.ndarray:
  """Input frames above true meshes and made ones, in each view.

  All meshes have the place and scale of the true ones, so that a mesh in a
  wrong place shows.

  Args:
    meshes: One mesh a frame; frames may be empty.
    truth: The true mesh of each frame.
    video_frames: The input's frames, uint8 [F, h, w, 3].
    max_columns: Columns at most.
    tile_size: Side of a tile, pixels.
    views: Azimuth and elevation, degrees; each has a row of true meshes and a
      row of made ones.

  Returns:
    uint8 [h, w, 3].

  Raises:
    ValueError: The counts differ.
  """
  if not len(meshes) == len(truth) == len(video_frames):
    raise UserError(
      f"there are {len(meshes)} meshes, {len(truth)} true ones and"
      f" {len(video_frames)} video frames."
    )
  chosen = shown_frames(len(meshes), max_columns)
  center, radius = _bounds([truth[i] for i in chosen])
  rows = [[_video_tile(video_frames[i], tile_size) for i in chosen]]
  for azimuth, elevation in views:
    camera = cameras.perspective(
      azimuth, elevation, fov_degrees=30.0, radius=1.15 * radius
    )
    for row in (truth, meshes):
      moved = _moved([row[i] for i in chosen], center)
      surfaces = map(rasterizer.Surface, moved)
      rows.append([_mesh_tile(each, camera, tile_size) for each in surfaces])
  return _arrange(rows, tile_size)


def shown_frames(num_frames: int, max_columns: int) -> list[int]:
  """Frames at even distances, the first and the last included."""
  columns = min(num_frames, max_columns)
  return np.round(np.linspace(0, num_frames - 1, columns)).astype(int).tolist()


def _bounds(meshes: Sequence[TriangleMesh]) -> tuple[np.ndarray, float]:
  """The clip's middle [3], and its radius."""
  points = [mesh.vertices for mesh in meshes if not mesh.is_empty]
  if not points:
    return np.zeros(3), 1.0
  points = np.concatenate(points)
  center = (points.min(axis=0) + points.max(axis=0)) / 2
  radius = float(np.linalg.norm(points - center, axis=1).max())
  return center, max(radius, 1e-6)


def _moved(
  meshes: Sequence[TriangleMesh], center: np.ndarray
) -> list[TriangleMesh]:
  """The meshes with a point at the origin."""
  return [TriangleMesh(mesh.vertices - center, mesh.faces) for mesh in meshes]


def _video_tile(frame: np.ndarray, size: int) -> Image.Image:
  """A video frame fitted into a white tile."""
  picture = Image.fromarray(np.asarray(frame, np.uint8))
  scale = size / max(picture.size)
  fitted = picture.resize(
    [max(1, round(side * scale)) for side in picture.size],
    Image.Resampling.LANCZOS,
  )
  tile = Image.new("RGB", (size, size), "white")
  tile.paste(fitted, [(size - side) // 2 for side in fitted.size])
  return tile


def _mesh_tile(
  surface: rasterizer.Surface, camera: cameras.Camera, size: int
) -> Image.Image:
  rgba = surface.picture(camera, size, supersampling=2)
  across = np.linspace(-1, 1, size)
  distance = np.hypot(across[None, :], across[:, None] + 0.15)[..., None]
  background = _SPOT + (_RIM - _SPOT) * np.clip(distance / 1.4, 0, 1) ** 1.5
  return Image.fromarray(rasterizer.composite(rgba, background))


def _arrange(rows: Sequence[Sequence[Image.Image]], size: int) -> np.ndarray:
  """Tiles with round corners on a page."""
  gap = max(2, round(_GAP * size))
  width = gap + len(rows[0]) * (size + gap)
  height = gap + len(rows) * (size + gap)
  page_color = tuple(round(255 * value) for value in _PAGE)
  page = Image.new("RGB", (width, height), page_color)
  # Drawn larger and reduced, since Pillow's shapes have hard edges.
  mask = Image.new("L", (4 * size, 4 * size), 0)
  ImageDraw.Draw(mask).rounded_rectangle(
    (0, 0, 4 * size - 1, 4 * size - 1), 4 * _CORNER * size, fill=255
  )
  mask = mask.resize((size, size), Image.Resampling.LANCZOS)
  for row, tiles in enumerate(rows):
    for column, tile in enumerate(tiles):
      corner = (gap + column * (size + gap), gap + row * (size + gap))
      page.paste(tile, corner, mask)
  return np.asarray(page)
