"""Converts procedural clips to animated meshes, like other assets.

`solids` defines objects by formulas. Here their parts become bodies of one
deforming mesh with a fixed topology: round cones as spheres split at the rings
where the side is tangent, rounded boxes as cubes with bevelled edges. Bodies
intersect like the limbs of modelled characters; the smooth blends between parts
are missing.
"""

import functools

import numpy as np

from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.geometry import deforming_mesh

_CAP_RINGS = 7  # For each half of a round cone, including its pole.
_SECTORS = 20
_BOX_COORDINATES = (-1.0, -0.0, 0.0, 1.0)
_BOX_SIGNS = (-1.0, -1.0, 1.0, 1.0)


def deforming_clip(
  clip: solids.SyntheticClip,
) -> deforming_mesh.DeformingMesh:
  """All parts of a clip as one deforming mesh, coloured."""
  solid = clip.solid
  bodies, faces, colours, count = [], [], [], 0
  for part in np.flatnonzero(solid.cone_radii[0, :, 0] > 0):
    local = _cone_points(
      solid.cone_length[:, part].astype(np.float64),
      solid.cone_radii[:, part].astype(np.float64),
    )
    bodies.append(
      _placed(local, solid.cone_rotation[:, part], solid.cone_origin[:, part])
    )
    faces.append(_cone_faces() + count)
    colours.append(np.tile(clip.colours[part], (local.shape[1], 1)))
    count += local.shape[1]
  for part in np.flatnonzero(solid.box_rounding[0] > 0):
    rounding = solid.box_rounding[:, part, None, None].astype(np.float64)
    half = solid.box_half_size[:, part, None].astype(np.float64)
    signs, directions, box_faces = _box_template()
    local = signs * (half - rounding) + rounding * directions
    bodies.append(
      _placed(local, solid.box_rotation[:, part], solid.box_origin[:, part])
    )
    faces.append(box_faces + count)
    colour = clip.colours[len(solid.cone_length[0]) + part]
    colours.append(np.tile(colour, (local.shape[1], 1)))
    count += local.shape[1]
  return deforming_mesh.DeformingMesh(
    np.concatenate(bodies, axis=1),
    np.concatenate(faces),
    colours=np.round(255 * np.concatenate(colours)).astype(np.uint8),
  )


def _placed(
  local: np.ndarray, rotation: np.ndarray, origin: np.ndarray
) -> np.ndarray:
  """Points [F, V, 3] of a part's frame in the world."""
  return np.einsum("fij,fvj->fvi", rotation, local) + origin[:, None]


def _cone_points(length: np.ndarray, radii: np.ndarray) -> np.ndarray:
  """A round cone along +y from the origin, [F, V, 3]."""
  slope = np.clip((radii[:, 0] - radii[:, 1]) / length, -0.999, 0.999)
  tangent = np.arcsin(slope)  # Latitude where the side leaves the spheres.
  share = np.linspace(0, 1, _CAP_RINGS)
  lower = -np.pi / 2 + share * (tangent[:, None] + np.pi / 2)
  upper = tangent[:, None] + share * (np.pi / 2 - tangent[:, None])
  latitude = np.concatenate([lower, upper], axis=1)  # [F, rings]
  radius = np.repeat(radii, _CAP_RINGS, axis=1)
  height = radius * np.sin(latitude)
  height[:, _CAP_RINGS:] += length[:, None]
  width = radius * np.cos(latitude)
  angle = np.linspace(0, 2 * np.pi, _SECTORS, endpoint=False)
  rings = np.stack(
    [
      width[:, 1:-1, None] * np.cos(angle),
      np.broadcast_to(height[:, 1:-1, None], (*width[:, 1:-1].shape, _SECTORS)),
      width[:, 1:-1, None] * -np.sin(angle),
    ],
    axis=-1,
  )
  poles = np.zeros((len(length), 2, 3))
  poles[:, :, 1] = height[:, [0, -1]]
  return np.concatenate([rings.reshape(len(length), -1, 3), poles], axis=1)


@functools.cache
def _cone_faces() -> np.ndarray:
  rings = 2 * _CAP_RINGS - 2
  sector = np.arange(_SECTORS)
  after = (sector + 1) % _SECTORS
  faces = []
  for ring in range(rings - 1):
    low, high = ring * _SECTORS, (ring + 1) * _SECTORS
    faces.append(np.stack([low + sector, low + after, high + after], axis=1))
    faces.append(np.stack([low + sector, high + after, high + sector], axis=1))
  bottom, top = rings * _SECTORS, rings * _SECTORS + 1
  last = (rings - 1) * _SECTORS
  faces.append(np.stack([np.full_like(sector, bottom), after, sector], axis=1))
  faces.append(
    np.stack([np.full_like(sector, top), last + sector, last + after], axis=1)
  )
  return np.concatenate(faces).astype(np.int32)


@functools.cache
def _box_template() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Signs of the octant [V, 3], directions in it [V, 3], faces [T, 3].

  The grid of each side of a cube contains its middle lines twice, once for each
  half; separated, they give a flat side.
  """
  vertices: dict[tuple[float, ...], int] = {}
  faces = []

  def vertex(axis: int, side: float, i: int, j: int) -> int:
    direction, sign = np.zeros(3), np.zeros(3)
    direction[axis] = sign[axis] = side
    for offset, index in ((1, i), (2, j)):
      direction[(axis + offset) % 3] = _BOX_COORDINATES[index]
      sign[(axis + offset) % 3] = _BOX_SIGNS[index]
    key = (*(direction + 0.0).tolist(), *sign.tolist())
    return vertices.setdefault(key, len(vertices))

  steps = len(_BOX_COORDINATES) - 1
  for axis in range(3):
    for side in (-1.0, 1.0):
      for i in range(steps):
        for j in range(steps):
          a, b = vertex(axis, side, i, j), vertex(axis, side, i + 1, j)
          c, d = vertex(axis, side, i + 1, j + 1), vertex(axis, side, i, j + 1)
          quad = [a, b, c, d] if side > 0 else [a, d, c, b]
          faces += [[quad[0], quad[1], quad[2]], [quad[0], quad[2], quad[3]]]
  keys = np.array(list(vertices))
  directions = keys[:, :3]
  directions /= np.linalg.norm(directions, axis=1, keepdims=True)
  return keys[:, 3:], directions, np.array(faces, np.int32)
