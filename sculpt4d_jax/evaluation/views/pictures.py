"""Pictures of a mesh sequence for networks that compare pictures.

Cameras orbit at the distance where a ball of radius sqrt 3, which holds
[-1, 1]^3, fits with 5 % to spare: perspective of 40 degrees, elevation 0, fixed
over the clip, white background. Shaded pictures are grey by the cosine between
normal and ray, as lit from the eye; normal pictures show world
normals as (n + 1) / 2. The scene is built once a frame for all cameras.
"""

from collections.abc import Callable, Sequence
import math

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.rendering import cameras
from sculpt4d_jax.rendering import rasterizer

TriangleMesh = mesh_lib.TriangleMesh

AZIMUTHS = (0.0, 90.0, 180.0, 270.0)  # As in MORPHOS; 0 is the input view.
FOV_DEGREES = 40.0
MARGIN = 1.05
# Smooth outlines matter for networks; normals must not be blended.
SHADED_SAMPLES = 2


def orbit(azimuths: Sequence[float] = AZIMUTHS) -> list[cameras.Camera]:
  """The cameras of an evaluation."""
  distance = MARGIN * cameras.BOX_RADIUS
  distance /= math.sin(math.radians(FOV_DEGREES) / 2)
  return [
    cameras.perspective(a, 0.0, fov_degrees=FOV_DEGREES, distance=distance)
    for a in azimuths
  ]


def shaded(
  meshes: Sequence[TriangleMesh],
  size: int,
  azimuths: Sequence[float] = AZIMUTHS,
) -> np.ndarray:
  """Head-light pictures, uint8 [views, F, size, size, 3]."""
  return _render(meshes, size, azimuths, SHADED_SAMPLES, _grey)


def normal_maps(
  meshes: Sequence[TriangleMesh],
  size: int,
  azimuths: Sequence[float] = AZIMUTHS,
) -> np.ndarray:
  """World normals as colours, uint8 [views, F, size, size, 3]."""
  return _render(meshes, size, azimuths, 1, _normal_colours)


def _render(
  meshes: Sequence[TriangleMesh],
  size: int,
  azimuths: Sequence[float],
  samples: int,
  colour: Callable[[rasterizer.Look], np.ndarray],
) -> np.ndarray:
  if size < 1:
    raise UserError(f"size={size} must be at least 1.")
  views = orbit(azimuths)
  pictures = np.empty((len(views), len(meshes), size, size, 3), np.uint8)
  for frame, mesh in enumerate(meshes):
    surface = rasterizer.Surface(mesh)
    for view, camera in enumerate(views):
      look = surface.look(camera, size, samples=samples)
      values = np.where(look.mask[..., None], colour(look), 1.0)
      values = values.reshape(size, samples, size, samples, 3).mean((1, 3))
      pictures[view, frame] = np.round(values * 255)
  return pictures


def _grey(look: rasterizer.Look) -> np.ndarray:
  return np.repeat(look.facing[..., None], 3, axis=-1)


def _normal_colours(look: rasterizer.Look) -> np.ndarray:
  return (look.normal + 1.0) / 2.0
