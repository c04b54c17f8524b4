"""Renders of a mesh: colour, mask, depth, normals and face ids.

Rays are cast with Embree, one through every pixel's centre, so mask, depth,
normals and face ids are exact and deterministic; neither OpenGL nor a display
is needed. Colour is matte clay, shaded in NumPy with a light above the camera
and a sky that is brighter than the ground. Both sides of a face are lit, so
open surfaces have no black backs.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import itertools
from typing import Any

from embreex import mesh_construction
from embreex import rtcore_scene
import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.rendering import cameras

TriangleMesh = mesh_lib.TriangleMesh

CLAY = (0.82, 0.775, 0.735)
_GAMMA = 2.2


@dataclasses.dataclass(frozen=True)
class RenderedView:
  """One view of a mesh; row 0 is the top.

  Attributes:
    rgba: Colour with straight alpha, uint8 [h, w, 4]; transparent outside of
      the mesh.
    mask: Whether the mesh is visible at the pixel's centre, bool [h, w].
    depth: Depth along the viewing direction, float32 [h, w]; 0 outside.
    normal: Outward unit normals in world space, float32 [h, w, 3]; 0 outside.
    face_id: The visible face, int32 [h, w]; -1 outside.
  """

  rgba: np.ndarray
  mask: np.ndarray
  depth: np.ndarray
  normal: np.ndarray
  face_id: np.ndarray


@dataclasses.dataclass(frozen=True)
class _Hits:
  """Hits of rays, flat: ray ids, faces, barycentrics, depths; then shape."""

  ray: np.ndarray
  face: np.ndarray
  weights: np.ndarray
  depth: np.ndarray
  shape: tuple[int, int]

  def scatter(self, values: np.ndarray, fill: float) -> np.ndarray:
    """Values of the hits in an image that is `fill` elsewhere."""
    values = np.asarray(values)
    image = np.full(
      (self.shape[0] * self.shape[1], *values.shape[1:]), fill, values.dtype
    )
    image[self.ray] = values
    return image.reshape(*self.shape, *values.shape[1:])


@dataclasses.dataclass(frozen=True)
class Look:
  """A camera's view of a surface; row 0 is the top.

  Attributes:
    mask: Whether a ray meets the surface, bool [h, w].
    normal: Unit normals in world space, float32 [h, w, 3]; 0 outside.
    facing: Absolute cosine between the normal and the ray back to the eye,
      float32 [h, w]; 0 outside.
  """

  mask: np.ndarray
  normal: np.ndarray
  facing: np.ndarray


class Surface:
  """A mesh for several cameras; scene and normals are built once each."""

  def __init__(self, mesh: TriangleMesh):
    self._mesh = mesh
    self._scene = _scene(mesh)

  @functools.cached_property
  def _normals(self) -> np.ndarray:
    """Normals of the vertices, which flat shading does not need [V, 3]."""
    return self._mesh.vertex_normals()

  def look(
    self, camera: cameras.Camera, size: int, *, samples: int = 1
  ) -> Look:
    """Casts a camera's rays.

    Args:
      camera: The camera.
      size: The image's side in pixels.
      samples: Rays a pixel along each axis; the result has `samples * size`
        rows and columns.
    """
    origins, directions = cameras.camera_rays(
      camera, size, size, samples=samples
    )
    hits = _cast(self._scene, origins, directions)
    normals = _hit_normals(self._mesh, hits, self._normals)
    rays = directions.reshape(-1, 3)[hits.ray]
    rays = rays / np.linalg.norm(rays, axis=1, keepdims=True)
    facing = np.abs(np.sum(normals * rays, axis=1))
    return Look(
      mask=hits.scatter(np.ones(len(hits.ray), bool), False),
      normal=hits.scatter(normals.astype(np.float32), 0.0),
      facing=hits.scatter(facing.astype(np.float32), 0.0),
    )

  def render(
    self,
    camera: cameras.Camera,
    size: int | tuple[int, int],
    *,
    supersampling: int = 1,
    smooth: bool = True,
    color: Sequence[float] = CLAY,
    vertex_colors: np.ndarray | None = None,
    surface_colors: Callable[[np.ndarray, np.ndarray], np.ndarray]
    | None = None,
    shaded: bool = True,
  ) -> RenderedView:
    """Renders the mesh; an empty one gives an empty view.

    Args:
      camera: The camera.
      size: The image's side, or (height, width).
      supersampling: Colour samples a pixel along each axis; 2 or 3 gives smooth
        outlines. The other buffers are always evaluated at pixel centres.
      smooth: Whether normals are interpolated from the vertices or flat.
      color: The surface's colour, three numbers in [0, 1].
      vertex_colors: Colours of the vertices [V, 3] in [0, 1], in place of
        `color`.
      surface_colors: Gives the colours [n, 3] in [0, 1] at faces [n] and
        barycentrics [n, 3], for instance those of a texture, in place of both.
      shaded: Whether the surface is lit; otherwise colours appear as given.

    Returns:
      The view.

    Raises:
      ValueError: A size or a count is not positive, or colours do not fit.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1 or supersampling < 1:
      raise UserError(
        "size and supersampling must be positive, got"
        f" {height}x{width} and {supersampling}."
      )
    mesh = self._mesh
    if vertex_colors is not None and np.shape(vertex_colors) != (
      mesh.num_vertices,
      3,
    ):
      raise UserError(
        f"vertex_colors must be [{mesh.num_vertices}, 3], one colour a vertex,"
        f" got {np.shape(vertex_colors)}."
      )
    vertex_normals = self._normals if smooth else None

    def shade(
      hits: _Hits, normals: np.ndarray, directions: np.ndarray
    ) -> np.ndarray:
      albedo = color
      if vertex_colors is not None:
        # Barycentrics at an edge may be slightly negative by rounding, and have
        # no square root.
        albedo = _interpolate(np.asarray(vertex_colors), mesh.faces, hits)
        albedo = np.clip(albedo, 0, 1)
      if surface_colors is not None:
        albedo = surface_colors(hits.face, hits.weights)
      if shaded:
        rgb = _shade(normals, directions, camera, albedo)
      else:
        rgb = np.broadcast_to(albedo, normals.shape)
      return _opaque(hits, rgb)

    center = self._cast(camera, (height, width), 1, vertex_normals)
    samples = center
    if supersampling > 1:
      samples = self._cast(
        camera, (height, width), supersampling, vertex_normals
      )
    hits, normals, _ = center
    return RenderedView(
      rgba=_average(shade(*samples), supersampling),
      mask=hits.scatter(np.ones(len(hits.ray), bool), False),
      depth=hits.scatter(hits.depth, 0.0),
      normal=hits.scatter(normals.astype(np.float32), 0.0),
      face_id=hits.scatter(hits.face, -1),
    )

  def picture(
    self, camera: cameras.Camera, size: int, *, supersampling: int = 1
  ) -> np.ndarray:
    """The colours that `render` gives by default, without the other buffers.

    Args:
      camera: The camera.
      size: The image's side in pixels.
      supersampling: Colour samples a pixel along each axis.

    Returns:
      Colour with straight alpha, uint8 [size, size, 4].
    """
    hits, normals, directions = self._cast(
      camera, (size, size), supersampling, self._normals
    )
    rgb = _shade(normals, directions, camera, CLAY)
    return _average(_opaque(hits, rgb), supersampling)

  def _cast(
    self,
    camera: cameras.Camera,
    size: tuple[int, int],
    samples: int,
    vertex_normals: np.ndarray | None,
  ) -> tuple[_Hits, np.ndarray, np.ndarray]:
    """Hits of a camera's rays, with their normals and directions [n, 3]."""
    origins, directions = cameras.camera_rays(camera, *size, samples=samples)
    hits = _cast(self._scene, origins, directions)
    normals = _hit_normals(self._mesh, hits, vertex_normals)
    return hits, normals, directions.reshape(-1, 3)[hits.ray]


def render_mesh(
  mesh: TriangleMesh,
  camera: cameras.Camera,
  size: int | tuple[int, int],
  **options: Any,
) -> RenderedView:
  """Renders a mesh once; see `Surface.render`."""
  return Surface(mesh).render(camera, size, **options)


def composite(
  rgba: np.ndarray, background: Sequence[float] | np.ndarray = (1, 1, 1)
) -> np.ndarray:
  """A view over a background, uint8 [h, w, 3].

  Args:
    rgba: uint8 [h, w, 4] with straight alpha.
    background: A colour in [0, 1] or an image [h, w, 3] of such colours.

  Returns:
    The opaque picture.
  """
  rgba = rgba.astype(np.float32) / 255
  alpha = rgba[..., 3:]
  rgb = rgba[..., :3] * alpha + np.asarray(background) * (1 - alpha)
  return _to_bytes(rgb)


def _scene(mesh: TriangleMesh) -> rtcore_scene.EmbreeScene | None:
  if mesh.is_empty:
    return None
  # In robust mode no ray passes between adjacent faces.
  scene = rtcore_scene.EmbreeScene(robust=True)
  mesh_construction.TriangleMesh(scene, mesh.vertices, mesh.faces)
  return scene


def _cast(
  scene: rtcore_scene.EmbreeScene | None,
  origins: np.ndarray,
  directions: np.ndarray,
) -> _Hits:
  """Casts rays [h, w, 3] whose directions advance by one unit of depth."""
  shape = origins.shape[:2]
  if scene is None:
    none = np.zeros(0, np.int32)
    return _Hits(
      none, none, np.zeros((0, 3), np.float32), np.zeros(0, np.float32), shape
    )
  result = scene.run(
    np.ascontiguousarray(origins.reshape(-1, 3), np.float32),
    np.ascontiguousarray(directions.reshape(-1, 3), np.float32),
    output=True,
  )
  ray = np.flatnonzero(result["primID"] >= 0)
  u, v = result["u"][ray], result["v"][ray]
  return _Hits(
    ray=ray,
    face=result["primID"][ray].astype(np.int32),
    weights=np.stack([1 - u - v, u, v], axis=1),
    depth=result["tfar"][ray].astype(np.float32),
    shape=shape,
  )


def _interpolate(
  values: np.ndarray, faces: np.ndarray, hits: _Hits
) -> np.ndarray:
  """Vertex values [V, n] at the hits."""
  return np.einsum("hcn,hc->hn", values[faces[hits.face]], hits.weights)


def _hit_normals(
  mesh: TriangleMesh, hits: _Hits, vertex_normals: np.ndarray | None
) -> np.ndarray:
  if vertex_normals is None:
    normals = mesh.face_cross_products()[hits.face]
  else:
    normals = _interpolate(vertex_normals, mesh.faces, hits)
  length = np.linalg.norm(normals, axis=1, keepdims=True)
  return normals / np.maximum(length, 1e-20)


def _shade(
  normals: np.ndarray,
  directions: np.ndarray,
  camera: cameras.Camera,
  albedo: Sequence[float] | np.ndarray,
) -> np.ndarray:
  """Matte shading of the hits, [n, 3] in [0, 1].

  The key light is above and left of the camera, so that shapes are visible in
  every view; the sky is in the world's up direction. A weak rim light separates
  dark outlines from dark backgrounds.
  """
  view = -directions / np.linalg.norm(directions, axis=1, keepdims=True)
  facing = np.sum(normals * view, axis=1, keepdims=True)
  normals = np.where(facing < 0, -normals, normals)
  key = camera.camera_to_world[:3, :3] @ np.array([-0.45, 0.65, 1.0])
  key = key / np.linalg.norm(key)
  # Wrapped by a quarter: light extends slightly beyond the terminator, as on
  # clay.
  diffuse = np.clip((normals @ key + 0.25) / 1.25, 0, 1)[:, None]
  sky = 0.5 + 0.5 * normals[:, 1:2]
  rim = (1 - np.abs(facing).clip(0, 1)) ** 4
  ambient = (0.10 + 0.12 * sky) * np.array([0.94, 0.98, 1.08])
  # Light is added linearly; the display gamma is 2.2.
  linear = np.asarray(albedo) ** _GAMMA * (ambient + 0.86 * diffuse)
  return np.clip(linear + 0.07 * rim * sky, 0, 1) ** (1 / _GAMMA)


def _opaque(hits: _Hits, rgb: np.ndarray) -> np.ndarray:
  """An image [h, w, 4] of the hits' colours [n, 3], clear where none is."""
  rgba = np.concatenate([rgb, np.ones_like(rgb[:, :1])], axis=1)
  return hits.scatter(rgba, 0.0)


def _average(rgba: np.ndarray, samples: int) -> np.ndarray:
  """Averages premultiplied samples [h*s, w*s, 4] to straight uint8 pixels."""
  # The mean over two axes of a reshaped image gives the same, more slowly.
  places = itertools.product(range(samples), repeat=2)
  rgba = sum(rgba[i::samples, j::samples] for i, j in places) / samples**2
  alpha = rgba[..., 3:]
  rgb = rgba[..., :3] / np.maximum(alpha, 1e-6)
  return _to_bytes(np.concatenate([rgb, alpha], axis=-1))


def _to_bytes(values: np.ndarray) -> np.ndarray:
  return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)
