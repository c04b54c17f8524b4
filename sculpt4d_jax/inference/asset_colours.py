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
from sculpt4d_jax.rendering import trapped_ground

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
    ground: Colour of the background before it was cut out, 0 to 255, [F, 3],
      NaN where it has no single colour; None if unknown.
  """

  frames: np.ndarray
  masks: np.ndarray
  camera: camera_fit.FittedCamera
  ground: np.ndarray | None = None

  def without_trapped_ground(self) -> "Video":
    """The video with a coverage of 0 where background is inside the mask."""
    if self.ground is None:
      return self
    masks = camera_fit.coverage(self.masks)
    masks = trapped_ground.trusted(self.frames, masks, self.ground)
    return dataclasses.replace(self, masks=masks, ground=None)


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
  video = video.without_trapped_ground()
  parts, facts = {}, []
  weights = None if rig is None else rig.skin.weights
  # Runs of the same topology share their colours.
  for group in result.groups_of(segments):
    runs = [segments[index] for index in group]
    coloured, fact = _colour_runs(
      runs, video, options, weights, has_atlas, is_lit
    )
    parts |= dict(zip(group, coloured))
    facts.append(fact)
  kind = "texture" if has_atlas else "vertex colours"
  ordered = tuple(parts[index] for index in range(len(segments)))
  return ordered, {"kind": kind, "runs": facts}


def _colour_runs(
  runs: Sequence[result.Segment],
  video: Video,
  options: Options,
  skin_weights: np.ndarray | None,
  has_atlas: bool,
  is_lit: bool,
) -> tuple[list[TexturedMesh], dict[str, Any]]:
  """Colours runs of one topology alike, from the frames of all of them."""
  vertices = np.concatenate([run.mesh.vertices for run in runs])
  mesh = dataclasses.replace(runs[0].mesh, vertices=vertices)
  clip = _footage(runs, mesh, video)
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
    painted = [
      TexturedMesh(
        dataclasses.replace(run.mesh, colours=_bytes(colours)),
        is_lit=is_lit,
        first_frame=run.first_frame,
      )
      for run in runs
    ]
    return painted, facts
  atlas = uv_atlas.unwrap(mesh.rest_mesh(), options.texture_size)
  covered, texels = uv_atlas.texels(atlas)
  baked = texture_baking.bake(clip, texels, options.texture, filmed_light)
  filled = texels.interpolate(colours, mesh.faces)
  image = paint(covered, baked, filled)
  painted = [
    TexturedMesh(
      run.mesh, atlas, image, is_lit=is_lit, first_frame=run.first_frame
    )
    for run in runs
  ]
  return painted, facts


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
  known = seen if found is None else texture_fill.mirror(seen, found)
  facts["seen_or_mirrored"] = float((known.weights > texture_fill.SEEN).mean())
  if skin_weights is None and fill != "harmonic":
    skin_weights = _parts(mesh)
  return (
    texture_fill.fill(mesh.rest, mesh.faces, seen, fill, skin_weights, found),
    facts,
  )


def _parts(mesh: DeformingMesh) -> np.ndarray | None:
  """The part of each vertex, by a rough skin; None if nothing moves."""
  if mesh.num_frames < 2:
    return None
  return skinning.decompose(
    mesh.vertices, mesh.rest, _PART_BONES, _PART_SETTINGS
  ).weights


def _footage(
  runs: Sequence[result.Segment], mesh: DeformingMesh, video: Video
) -> texture_baking.Footage:
  spans = [np.arange(run.first_frame, run.last_frame + 1) for run in runs]
  shown = np.concatenate(spans)
  clip = texture_baking.footage(
    mesh.vertices,
    mesh.faces,
    video.frames[shown],
    video.masks[shown],
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
