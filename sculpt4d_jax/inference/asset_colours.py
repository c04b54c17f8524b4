"""Colours of an asset: projected, mirrored, filled, as texture or vertices."""

from collections.abc import Sequence
import dataclasses
from typing import Any, Protocol

from absl import logging
import numpy as np

from sculpt4d_jax.geometry import bone_tree
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import skinning
from sculpt4d_jax.geometry import symmetry
from sculpt4d_jax.geometry import textured_mesh
from sculpt4d_jax.geometry import uv_atlas
from sculpt4d_jax.geometry.registration import result
from sculpt4d_jax.rendering import camera_fit
from sculpt4d_jax.rendering import light_estimate
from sculpt4d_jax.rendering import outline_warp
from sculpt4d_jax.rendering import texture_baking
from sculpt4d_jax.rendering import texture_fill

DeformingMesh = deforming_mesh.DeformingMesh
TexturedMesh = textured_mesh.TexturedMesh
Fill = texture_fill.Method

FILLS = texture_fill.METHODS
# Bones that separate parts from each other if no skeleton is requested.
_PART_BONES = 10
_PART_SETTINGS = skinning.SkinSettings(rounds=1, max_vertices=2000)
# Weights between which a texel's projected colour replaces the filled one.
_BLEND = (0.002, 0.02)


class Options(Protocol):
  """The options that affect colours; see `asset.AssetOptions`."""

  texture: str
  shading: str
  fill: Fill
  texture_size: int


@dataclasses.dataclass(frozen=True)
class Video:
  """The video with its camera.

  Attributes:
    frames: uint8 [F, h, w, 3].
    masks: uint8 [F, h, w], or float in [0, 1].
    camera: The camera of all frames.
  """

  frames: np.ndarray
  masks: np.ndarray
  camera: camera_fit.FittedCamera


def colour(
  segments: Sequence[result.Segment],
  video: Video | None,
  options: Options,
  rig: bone_tree.Rig | None = None,
) -> tuple[tuple[TexturedMesh, ...], dict[str, Any]]:
  """Colours every run of frames.

  Args:
    segments: Runs of one topology.
    video: The video, or None for plain meshes.
    options: Options that decide about colours.
    rig: Bones of the only run, or None.

  Returns:
    The meshes, and what registration.json says about their colours.
  """
  is_lit = video is None or options.shading == "lit"
  if video is None:
    plain = [
      TexturedMesh(s.mesh, is_lit=True, first_frame=s.first_frame)
      for s in segments
    ]
    return tuple(plain), {"kind": "none"}
  has_atlas = uv_atlas.has_xatlas()
  if not has_atlas:
    logging.warning(
      "Colours go to the vertices: xatlas is missing (pip install"
      " 'sculpt4d-jax[texture]')."
    )
  parts, facts = [], []
  for segment in segments:
    weights = None if rig is None else rig.skin.weights
    part, fact = _colour_segment(
      segment, video, options, weights, has_atlas, is_lit
    )
    parts.append(part)
    facts.append(fact)
  kind = "texture" if has_atlas else "vertex colours"
  return tuple(parts), {"kind": kind, "runs": facts}


def _colour_segment(
  segment: result.Segment,
  video: Video,
  options: Options,
  skin_weights: np.ndarray | None,
  has_atlas: bool,
  is_lit: bool,
) -> tuple[TexturedMesh, dict[str, Any]]:
  mesh = segment.mesh
  clip = _footage(segment, video)
  filmed_light = None
  if is_lit or options.texture == "all":
    light = light_estimate.estimate(clip, options.texture)
    if is_lit:
      clip = dataclasses.replace(clip, light=light)
    else:
      filmed_light = light
  points = uv_atlas.vertex_points(mesh.faces, mesh.num_vertices)
  seen = texture_baking.bake(clip, points, options.texture, filmed_light)
  colours, facts = fill_unseen(mesh, seen, options.fill, skin_weights)
  if not has_atlas:
    whole = dataclasses.replace(mesh, colours=_bytes(colours))
    return (
      TexturedMesh(whole, is_lit=is_lit, first_frame=segment.first_frame),
      facts,
    )
  atlas = uv_atlas.unwrap(mesh.rest_mesh(), options.texture_size)
  covered, texels = uv_atlas.texels(atlas)
  baked = texture_baking.bake(clip, texels, options.texture, filmed_light)
  filled = texels.interpolate(colours, mesh.faces)
  image = paint(covered, baked, filled)
  part = TexturedMesh(
    mesh, atlas, image, is_lit=is_lit, first_frame=segment.first_frame
  )
  return part, facts


def paint(
  covered: np.ndarray, baked: texture_baking.Observed, filled: np.ndarray
) -> np.ndarray:
  """The texture, uint8 [h, w, 3].

  Args:
    covered: Texels of charts, bool [h, w].
    baked: Observed colours of these texels.
    filled: Colours for texels that no frame shows, [P, 3].
  """
  share = np.clip((baked.weights - _BLEND[0]) / (_BLEND[1] - _BLEND[0]), 0, 1)
  image = np.zeros((*covered.shape, 3), np.float32)
  image[covered] = filled + share[:, None] * (baked.colours - filled)
  return _bytes(uv_atlas.grow_charts(image, covered))


def fill_unseen(
  mesh: DeformingMesh,
  seen: texture_baking.Observed,
  fill: Fill,
  skin_weights: np.ndarray | None = None,
) -> tuple[np.ndarray, dict[str, Any]]:
  """Colours of all vertices [V, 3], and the share of each source."""
  found = symmetry.find(mesh.vertices, mesh.faces)
  facts = {
    "seen": float((seen.weights > texture_fill.SEEN).mean()),
    "symmetry_error": None if found is None else found.error,
  }
  if found is not None:
    seen = texture_fill.mirror(seen, found)
  facts["seen_or_mirrored"] = float((seen.weights > texture_fill.SEEN).mean())
  if skin_weights is None and fill != "harmonic":
    skin_weights = _parts(mesh)
  return (
    texture_fill.fill(mesh.rest, mesh.faces, seen, fill, skin_weights),
    facts,
  )


def _parts(mesh: DeformingMesh) -> np.ndarray | None:
  """The part of each vertex, by a rough skin; None if nothing moves."""
  if mesh.num_frames < 2:
    return None
  return skinning.decompose(
    mesh.vertices, mesh.rest, _PART_BONES, _PART_SETTINGS
  ).weights


def _footage(segment: result.Segment, video: Video) -> texture_baking.Footage:
  span = slice(segment.first_frame, segment.last_frame + 1)
  clip = texture_baking.footage(
    segment.mesh.vertices,
    segment.mesh.faces,
    video.frames[span],
    video.masks[span],
    video.camera.camera,
  )
  if video.camera.iou >= camera_fit.LOW_IOU:
    return clip
  # Where the mesh extends beyond the object, it would take background colours.
  height, width = clip.masks.shape[1:]
  offsets = [
    outline_warp.outline_offsets(
      camera_fit.silhouette(clip.camera, vertices, clip.faces, height, width),
      mask > 0.5,
    )
    for vertices, mask in zip(clip.vertices, clip.masks)
  ]
  return dataclasses.replace(clip, offsets=np.stack(offsets))


def _bytes(colours: np.ndarray) -> np.ndarray:
  return np.round(np.clip(colours, 0, 1) * 255).astype(np.uint8)
