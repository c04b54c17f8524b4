"""Encodes an asset of one topology as data of the viewer's page.

Numbers are quantised, deflated and base64-coded, like meshes; `layers.js`
decodes them. Texture coordinates are in units of 1/65535, errors in units of
1/255 of their limit.
"""

import base64
from collections.abc import Mapping, Sequence
from typing import Any
import zlib

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import bone_tree
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import textured_mesh
from sculpt4d_jax.io.viewer import page

TexturedMesh = textured_mesh.TexturedMesh
TriangleMesh = mesh_lib.TriangleMesh

NUM_TRAILS = 40
_MAX_TEXTURE = 2048


def asset_page(
  part: TexturedMesh,
  fps: float,
  video_frames: np.ndarray | None = None,
  *,
  rig: bone_tree.Rig | None = None,
  trajectory: np.ndarray | None = None,
  errors: np.ndarray | None = None,
  has_trails: bool = True,
  times: Sequence[float] | None = None,
  title: str = "Sculpt4D",
  details: Mapping[str, Any] | None = None,
) -> str:
  """The viewer's page of an asset, as HTML.

  Args:
    part: The asset: one topology in all frames.
    fps: Frames a second.
    video_frames: The input, uint8 [F, h, w, 3], or None.
    rig: Its bones, or None.
    trajectory: The global motion that was removed before the bones were fitted,
      rigid [F, 4, 4].
    errors: Distances of the vertices to the frames' own meshes, as shares of
      the size, [F, V], or None for no heat map.
    has_trails: Whether trails of points can be shown.
    times: Start of each frame, seconds, if frames are of unequal length.
    title: The page's title.
    details: Name -> value, listed next to the asset.

  Raises:
    ValueError: The video or the errors do not fit the asset.
  """
  mesh = part.mesh
  if errors is not None and errors.shape != mesh.vertices.shape[:2]:
    raise UserError(
      f"errors must be {list(mesh.vertices.shape[:2])}, got"
      f" {list(errors.shape)}."
    )
  meshes = [
    TriangleMesh(vertices[part.vertex_map], part.file_faces)
    for vertices in mesh.vertices
  ]
  trails = _trails(part) if has_trails else []
  asset: dict[str, Any] = {"isLit": part.is_lit, "trails": trails}
  if part.image is not None:
    asset |= {
      "texture": page.data_uri(part.image, _MAX_TEXTURE),
      "uv": _packed(np.round(part.atlas.uv * 65535).astype("<u2")),
      "welds": _packed(_first_of(part.vertex_map).astype("<u4")),
    }
  if rig is not None:
    asset["bones"] = _bones(rig, trajectory)
  if errors is not None:
    asset |= _heat(errors[:, part.vertex_map])
  return page.viewer_page(
    meshes,
    fps,
    video_frames,
    times=times,
    title=title,
    details=details,
    max_faces=None,
    more={"asset": asset},
  )


def _packed(values: np.ndarray) -> str:
  return base64.b64encode(zlib.compress(values.tobytes(), 6)).decode("ascii")


def _first_of(vertex_map: np.ndarray) -> np.ndarray:
  """For each of a file's vertices, the first one at the same position."""
  _, first, inverse = np.unique(
    vertex_map, return_index=True, return_inverse=True
  )
  return first[inverse]


def _trails(part: TexturedMesh) -> list[int]:
  """Vertices that lie far from each other on the surface."""
  points = part.mesh.rest[part.vertex_map]
  count = min(NUM_TRAILS, len(points))
  chosen = [0]
  gap = np.full(len(points), np.inf)
  for _ in range(count - 1):
    step = np.linalg.norm(points - points[chosen[-1]], axis=1)
    gap = np.minimum(gap, step)
    chosen.append(int(gap.argmax()))
  return chosen


def _bones(rig: bone_tree.Rig, trajectory: np.ndarray | None) -> dict[str, Any]:
  places = rig.joint_positions()
  tips = np.einsum("fbij,bj->fbi", rig.skin.rotations, rig.tips)
  tips = tips + rig.skin.translations
  if trajectory is not None:
    turn, shift = trajectory[:, :3, :3], trajectory[:, None, :3, 3]
    places = np.einsum("fij,fbj->fbi", turn, places) + shift
    tips = np.einsum("fij,fbj->fbi", turn, tips) + shift
  return {
    "parents": rig.parents.tolist(),
    "frames": _rounded(places),
    "tips": _rounded(tips),
  }


def _rounded(places: np.ndarray) -> list[list[float]]:
  return np.round(places.reshape(len(places), -1), 4).tolist()


def _heat(errors: np.ndarray) -> dict[str, Any]:
  limit = max(float(np.quantile(errors, 0.99)), 1e-6)
  shares = np.round(np.clip(errors / limit, 0, 1) * 255).astype("u1")
  return {
    "errors": [_packed(frame) for frame in shares],
    "errorLimit": limit,
  }
