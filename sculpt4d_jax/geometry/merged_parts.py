"""Merges runs of frames of different topology into one mesh.

The viewer's page shows one mesh. In a frame, the vertices of the other
topologies lie in one point, so that their faces have no area.
"""

from collections.abc import Sequence

import numpy as np

from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import textured_mesh
from sculpt4d_jax.geometry import uv_atlas

TexturedMesh = textured_mesh.TexturedMesh


def merge(parts: Sequence[TexturedMesh]) -> TexturedMesh:
  """One mesh that looks like consecutive runs of frames.

  Args:
    parts: The runs in order, from frame 0. Either all have a texture, of equal
      size, or none; runs of the same topology have the same texture.

  Returns:
    One mesh for all frames; its texture has those of the topologies in a grid.
  """
  groups = deforming_mesh.by_topology([part.mesh for part in parts])
  distinct = [parts[group[0]] for group in groups]
  starts = np.cumsum([0, *(part.mesh.num_vertices for part in distinct)])
  count = sum(part.mesh.num_frames for part in parts)
  vertices = np.empty((count, starts[-1], 3), np.float32)
  for number, group in enumerate(groups):
    for part in (parts[index] for index in group):
      span = slice(part.first_frame, part.last_frame + 1)
      vertices[span] = part.mesh.vertices[:, :1]
      vertices[span, starts[number] : starts[number + 1]] = part.mesh.vertices
  colours = [part.mesh.colours for part in distinct]
  mesh = deforming_mesh.DeformingMesh(
    vertices,
    np.concatenate(
      [part.mesh.faces + start for part, start in zip(distinct, starts)]
    ),
    colours=_joined(colours),
  )
  atlas = image = None
  if all(part.image is not None for part in distinct):
    atlas, image = _merge_textures(distinct, starts)
  return TexturedMesh(mesh, atlas, image, is_lit=parts[0].is_lit)


def _joined(colours: Sequence[np.ndarray | None]) -> np.ndarray | None:
  if any(one is None for one in colours):
    return None
  return np.concatenate(colours)


def _merge_textures(
  parts: Sequence[TexturedMesh], starts: np.ndarray
) -> tuple[uv_atlas.UvAtlas, np.ndarray]:
  """The atlas and the picture of several topologies, in a grid."""
  height, width = parts[0].image.shape[:2]
  columns = int(np.ceil(np.sqrt(len(parts))))
  rows = -(-len(parts) // columns)
  image = np.zeros((rows * height, columns * width, 3), np.uint8)
  maps, faces, places = [], [], []
  first = 0
  for index, part in enumerate(parts):
    row, column = divmod(index, columns)
    top, left = row * height, column * width
    image[top : top + height, left : left + width] = part.image
    places.append((part.atlas.uv + [column, row]) / [columns, rows])
    maps.append(part.atlas.vertex_map + starts[index])
    faces.append(part.atlas.faces + first)
    first += part.atlas.num_vertices
  atlas = uv_atlas.UvAtlas(
    np.concatenate(maps),
    np.concatenate(faces),
    np.concatenate(places),
    columns * width,
    rows * height,
  )
  return atlas, image
