"""Texture coordinates: cuts a surface into charts and packs them in a picture.

Along the cuts a vertex has several positions in the picture, so the atlas has
more vertices than the mesh; `vertex_map` maps back. Coordinates are from 0 to 1
with the origin at the picture's upper left corner, x right and y down, as in
glTF.

Charts are made by xatlas (extra `texture`), imported only by `unwrap`.
"""

import dataclasses

from embreex import mesh_construction
from embreex import rtcore_scene
import numpy as np
from scipy import ndimage

from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib

TriangleMesh = mesh_lib.TriangleMesh

# Texels between charts, which keep them separate for two mipmap levels.
_PADDING = 4


@dataclasses.dataclass(frozen=True)
class UvAtlas:
  """Charts of a mesh.

  Attributes:
    vertex_map: The mesh's vertex behind each of the atlas's, int32 [W].
    faces: The mesh's faces in order, in vertices of the atlas, int32 [T, 3].
    uv: Places in the picture, float32 [W, 2], x right and y down in [0, 1].
    width: Columns of the picture; viewers prefer a power of two.
    height: Rows of the picture.
  """

  vertex_map: np.ndarray
  faces: np.ndarray
  uv: np.ndarray
  width: int
  height: int

  def __post_init__(self):
    vertex_map = np.ascontiguousarray(self.vertex_map, np.int32)
    faces = np.ascontiguousarray(self.faces, np.int32)
    uv = np.ascontiguousarray(self.uv, np.float32)
    if uv.shape != (len(vertex_map), 2):
      raise UserError(f"uv must be [{len(vertex_map)}, 2], got {uv.shape}.")
    if faces.size and not 0 <= faces.min() <= faces.max() < len(vertex_map):
      raise UserError(f"faces index vertices 0..{len(vertex_map) - 1}.")
    object.__setattr__(self, "vertex_map", vertex_map)
    object.__setattr__(self, "faces", faces)
    object.__setattr__(self, "uv", uv)

  @property
  def num_vertices(self) -> int:
    """Number of vertices after cutting along the seams."""
    return len(self.vertex_map)


@dataclasses.dataclass(frozen=True)
class SurfacePoints:
  """Points fixed on a mesh whose vertices may move.

  Attributes:
    face_ids: int32 [P].
    barycentrics: float64 [P, 3].
  """

  face_ids: np.ndarray
  barycentrics: np.ndarray

  def __len__(self) -> int:
    return len(self.face_ids)

  def __getitem__(self, keep: np.ndarray | slice) -> "SurfacePoints":
    return SurfacePoints(self.face_ids[keep], self.barycentrics[keep])

  def interpolate(self, values: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Values of vertices [V, n] at the points, [P, n]."""
    corners = faces[self.face_ids]
    return sum(
      self.barycentrics[:, k, None] * values[corners[:, k]] for k in range(3)
    )


def vertex_points(faces: np.ndarray, num_vertices: int) -> SurfacePoints:
  """The mesh's vertices as surface points; all must belong to a face."""
  face_ids = np.zeros(num_vertices, np.int32)
  corners = np.zeros(num_vertices, np.int64)
  for corner in range(3):
    face_ids[faces[:, corner]] = np.arange(len(faces))
    corners[faces[:, corner]] = corner
  return SurfacePoints(face_ids, np.eye(3)[corners])


def has_xatlas() -> bool:
  """Whether charts can be made."""
  try:
    import xatlas  # noqa: F401
  except ImportError:
    return False
  return True


def unwrap(mesh: TriangleMesh, resolution: int = 1024) -> UvAtlas:
  """Cuts a mesh into charts and packs them.

  Args:
    mesh: Mesh with at least one face.
    resolution: Side of the square picture in texels.

  Returns:
    The atlas.

  Raises:
    ImportError: xatlas is not installed.
    ValueError: The mesh is empty or the charts do not fit into one picture.

  Source: xatlas, after Sander et al., Multi-Chart Geometry Images, 2003.
  """
  try:
    import xatlas
  except ImportError as error:
    raise MissingPackageError(
      "texture coordinates need the package xatlas: pip install"
      " 'sculpt4d-jax[texture]' or pip install xatlas; without it, ask for"
      " vertex colours."
    ) from error
  if mesh.is_empty:
    raise UserError("a mesh without faces has no charts.")
  atlas = xatlas.Atlas()
  atlas.add_mesh(mesh.vertices, mesh.faces.astype(np.uint32))
  charts, packing = xatlas.ChartOptions(), xatlas.PackOptions()
  charts.max_iterations = 1  # More iterations are slower and change little.
  packing.resolution, packing.padding = resolution, _PADDING
  packing.bilinear = True
  atlas.generate(chart_options=charts, pack_options=packing)
  if atlas.atlas_count != 1:
    raise UserError(
      f"the charts need {atlas.atlas_count} pictures of {resolution} texels;"
      " raise the texture's resolution."
    )
  vertex_map, faces, uv = atlas[0]
  return UvAtlas(vertex_map, faces, uv, resolution, resolution)


def texels(atlas: UvAtlas) -> tuple[np.ndarray, SurfacePoints]:
  """The surface points at the centres of the texels that charts cover.

  Returns:
    Coverage, bool [height, width], and the points in the order of its True
    entries.
  """
  flat = np.concatenate(
    [atlas.uv, np.zeros((atlas.num_vertices, 1), np.float32)], 1
  )
  scene = rtcore_scene.EmbreeScene()
  mesh_construction.TriangleMesh(scene, flat, atlas.faces)
  y, x = np.mgrid[0 : atlas.height, 0 : atlas.width]
  start = np.stack(
    [
      (x.ravel() + 0.5) / atlas.width,
      (y.ravel() + 0.5) / atlas.height,
      np.ones(x.size),
    ],
    axis=1,
  )
  down = np.tile(np.float32([0, 0, -1]), (len(start), 1))
  hits = scene.run(start.astype(np.float32), down, output=1)
  covered = hits["primID"] >= 0
  u, v = (hits[name][covered].astype(np.float64) for name in ("u", "v"))
  points = SurfacePoints(
    hits["primID"][covered].astype(np.int32), np.stack([1 - u - v, u, v], 1)
  )
  return covered.reshape(atlas.height, atlas.width), points


def grow_charts(image: np.ndarray, covered: np.ndarray) -> np.ndarray:
  """Copies the charts' outermost texels into the gaps between charts.

  Args:
    image: [h, w, n].
    covered: Texels that have a value, bool [h, w].

  Returns:
    A picture without gaps, so that filtering near a seam uses the chart's
    colours.
  """
  nearest = ndimage.distance_transform_edt(
    ~covered, return_distances=False, return_indices=True
  )
  return image[nearest[0], nearest[1]]


def sample(image: np.ndarray, uv: np.ndarray) -> np.ndarray:
  """Bilinear look-ups of a picture [h, w, n] at places [P, 2]: [P, n]."""
  height, width = image.shape[:2]
  x = np.clip(uv[:, 0] * width - 0.5, 0, width - 1)
  y = np.clip(uv[:, 1] * height - 0.5, 0, height - 1)
  left, top = np.floor(x).astype(int), np.floor(y).astype(int)
  right = np.minimum(left + 1, width - 1)
  bottom = np.minimum(top + 1, height - 1)
  x, y = (x - left)[:, None], (y - top)[:, None]
  upper = image[top, left] * (1 - x) + image[top, right] * x
  lower = image[bottom, left] * (1 - x) + image[bottom, right] * x
  return upper * (1 - y) + lower * y
