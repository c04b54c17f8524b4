"""A moving mesh with colours, the input of the asset writers."""

from collections.abc import Sequence
import dataclasses

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import uv_atlas

DeformingMesh = deforming_mesh.DeformingMesh


@dataclasses.dataclass(frozen=True)
class TexturedMesh:
  """A moving mesh with a texture, with vertex colours, or plain.

  Attributes:
    mesh: Positions in its frames; its `colours`, if any, are used if there is
      no texture.
    atlas: Texture coordinates, or None.
    image: The texture, uint8 sRGB [h, w, 3]; given together with `atlas`.
    is_lit: Whether viewers light the surface. Filmed colours already include
      the video's shading and are shown unlit.
    first_frame: Frame of the clip that corresponds to the mesh's frame 0.
  """

  mesh: DeformingMesh
  atlas: uv_atlas.UvAtlas | None = None
  image: np.ndarray | None = None
  is_lit: bool = True
  first_frame: int = 0

  def __post_init__(self):
    if (self.atlas is None) != (self.image is None):
      raise UserError("an atlas and its picture are given together.")
    if self.atlas is None:
      return
    image = np.ascontiguousarray(self.image)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
      raise UserError(
        f"the texture must be uint8 [h, w, 3], got {image.dtype}"
        f" {list(image.shape)}."
      )
    mapped = self.atlas.vertex_map[self.atlas.faces]
    if not np.array_equal(mapped, self.mesh.faces):
      raise UserError("the atlas has other faces than the mesh.")
    object.__setattr__(self, "image", image)

  @property
  def last_frame(self) -> int:
    """Number of its last frame in the clip, inclusive."""
    return self.first_frame + self.mesh.num_frames - 1

  @property
  def vertex_map(self) -> np.ndarray:
    """Vertices of the mesh in the order of files, int32 [W]."""
    if self.atlas is None:
      return np.arange(self.mesh.num_vertices, dtype=np.int32)
    return self.atlas.vertex_map

  @property
  def file_faces(self) -> np.ndarray:
    """Faces in the vertices of files, int32 [T, 3]."""
    return self.mesh.faces if self.atlas is None else self.atlas.faces

  def colours_at(self, points: uv_atlas.SurfacePoints) -> np.ndarray | None:
    """Colours of surface points, sRGB in [0, 1], [P, 3]; None if plain."""
    if self.atlas is not None:
      uv = points.interpolate(self.atlas.uv, self.atlas.faces)
      return uv_atlas.sample(self.image.astype(np.float32) / 255, uv)
    if self.mesh.colours is None:
      return None
    colours = self.mesh.colours.astype(np.float32) / 255
    return points.interpolate(colours, self.mesh.faces)


def check_parts(parts: Sequence[TexturedMesh], fps: float) -> int:
  """The clip's number of frames.

  Raises:
    ValueError: There are no parts, they have gaps or overlaps, a position is
      not finite or the frame rate is not positive.
  """
  if not parts:
    raise UserError("an asset needs at least one mesh, got none.")
  if not (np.isfinite(fps) and fps > 0):
    raise UserError(f"fps must be a positive number, got {fps}.")
  expected = 0
  for part in parts:
    if part.first_frame != expected:
      raise UserError(
        f"the mesh that starts at frame {part.first_frame} should start at"
        f" frame {expected}."
      )
    if not np.isfinite(part.mesh.vertices).all():
      raise UserError(
        f"the mesh of frames {part.first_frame}..{part.last_frame} has"
        " positions that are not finite."
      )
    if not part.mesh.num_faces:
      raise UserError(
        f"the mesh of frames {part.first_frame}..{part.last_frame} has no"
        " faces."
      )
    expected = part.last_frame + 1
  return expected


def linear_colours(colours: np.ndarray) -> np.ndarray:
  """Linear light in [0, 1], float32, of sRGB bytes [..., 3].

  Source: IEC 61966-2-1.
  """
  values = np.asarray(colours, np.float32) / 255
  return np.where(
    values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4
  ).astype(np.float32)
