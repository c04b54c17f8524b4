"""The views of a record: pictures, depth and normals of every frame, encoded.

Cameras are spread by a Hammersley sequence and stand still for the whole clip.
Pictures show the asset itself, in its colours and with its open parts, on a
transparent background.
"""

from collections.abc import Iterator
import io
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from sculpt4d_jax.data.records import schema
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.rendering import cameras
from sculpt4d_jax.rendering import rasterizer

# Presets import this module, and no program waits for libraries of geometry.
if TYPE_CHECKING:
  from sculpt4d_jax.geometry import watertight

DeformingMesh = deforming_mesh.DeformingMesh

# A fast level; pictures of one object on an empty background stay small anyway.
_PNG_LEVEL = 3
_DEPTH_STEPS = 65534


def render_entries(
  mesh: DeformingMesh,
  repair: "watertight.Repair",
  *,
  num_views: int,
  image_size: int,
  supersampling: int,
  rng: np.random.Generator,
) -> Iterator[tuple[dict[str, np.ndarray], dict[str, np.ndarray], float]]:
  """Renders all views of a clip, one camera after the other.

  Args:
    mesh: The animation, normalised.
    repair: Repair that says which faces are wound the wrong way.
    num_views: Cameras.
    image_size: Pixels a side.
    supersampling: Colour samples a pixel and axis.
    rng: Random generator of the cameras.

  Yields:
    The fields of a "view" and a "buffers" entry, and the smallest share of
    the picture that the object covers in any frame.
  """
  faces = np.where(repair.flipped[:, None], mesh.faces[:, ::-1], mesh.faces)
  colours = None if mesh.colours is None else mesh.colours / 255.0
  # The bounding sphere of all frames just fits into the picture.
  radius = float(np.linalg.norm(mesh.vertices, axis=-1).max())
  for camera in cameras.hammersley_cameras(num_views, rng, radius=radius):
    distance = float(np.linalg.norm(camera.eye))
    near, far = max(distance - radius, 1e-3), distance + radius
    pictures, depths, normals, covered = [], [], [], 1.0
    for vertices in mesh.vertices:
      view = rasterizer.render_mesh(
        mesh_lib.TriangleMesh(vertices, faces),
        camera,
        image_size,
        supersampling=supersampling,
        vertex_colors=colours,
      )
      pictures.append(encode_png(view.rgba))
      steps = encode_depth(view.depth, view.mask, near, far)
      depths.append(encode_png(steps))
      normals.append(encode_png(encode_normals(view.normal, view.mask)))
      covered = min(covered, float(view.mask.mean()))
    yield *_entries(camera, (near, far), pictures, depths, normals), covered


def decode_picture(content: bytes) -> np.ndarray:
  """A picture with straight alpha, uint8 [S, S, 4]."""
  with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
    return np.asarray(image.convert("RGBA"))


def encode_depth(
  depth: np.ndarray, mask: np.ndarray, near: float, far: float
) -> np.ndarray:
  """Depths as 16-bit numbers; see `records/schema.py`."""
  steps = np.round((depth - near) / (far - near) * _DEPTH_STEPS)
  return np.where(mask, 1 + np.clip(steps, 0, _DEPTH_STEPS), 0).astype(
    np.uint16
  )


def decode_depth(content: bytes, near: float, far: float) -> np.ndarray:
  """Depths in world units, float32 [S, S]; 0 outside of the object."""
  with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
    return depth_of_steps(np.asarray(image), near, far)


def depth_of_steps(steps: np.ndarray, near: float, far: float) -> np.ndarray:
  """Depths in world units of 16-bit numbers; 0 outside of the object."""
  steps = np.asarray(steps, np.float32)
  depth = near + (steps - 1) / _DEPTH_STEPS * (far - near)
  return np.where(steps > 0, depth, 0).astype(np.float32)


def encode_normals(normal: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Normals as bytes; see `records/schema.py`."""
  values = np.round(127.5 * (normal + 1)).clip(0, 255)
  return np.where(mask[..., None], values, 0).astype(np.uint8)


def decode_normals(content: bytes) -> np.ndarray:
  """Normals in world space, float32 [S, S, 3]; not defined outside."""
  with Image.open(io.BytesIO(content), formats=("PNG",)) as image:
    return np.asarray(image.convert("RGB")).astype(np.float32) / 127.5 - 1


def encode_png(pixels: np.ndarray) -> bytes:
  """Pixels, uint8 or uint16, as a PNG file."""
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, "PNG", compress_level=_PNG_LEVEL)
  return stream.getvalue()


def _entries(
  camera: cameras.Camera,
  depth_range: tuple[float, float],
  pictures: list[bytes],
  depths: list[bytes],
  normals: list[bytes],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
  pixels, ends = schema.pack(pictures)
  depth, depth_ends = schema.pack(depths)
  normal, normal_ends = schema.pack(normals)
  view = dict(
    pictures=pixels,
    ends=ends,
    camera_to_world=camera.camera_to_world.astype(np.float64),
    fov_degrees=np.array([camera.fov_degrees], np.float64),
  )
  buffers = dict(
    depth=depth,
    depth_ends=depth_ends,
    depth_range=np.array(depth_range),
    normal=normal,
    normal_ends=normal_ends,
  )
  return view, buffers
