"""Makes one asset from a registered sequence and its video.

  camera -> texture -> unseen parts -> bones -> files

`make_asset` is what `launch.register` calls. Without a video there is no
texture and no overlay; without xatlas, colours go to the vertices.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any, Literal

from absl import logging
import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import bone_tree
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import merged_parts
from sculpt4d_jax.geometry import skinning
from sculpt4d_jax.geometry import textured_mesh
from sculpt4d_jax.geometry.registration import result
from sculpt4d_jax.inference import asset_colours
from sculpt4d_jax.inference import asset_pictures
from sculpt4d_jax.inference import given_files
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths
from sculpt4d_jax.io import staged
from sculpt4d_jax.io.assets import given_asset
from sculpt4d_jax.io.meshes import bvh
from sculpt4d_jax.io.meshes import textured_glb
from sculpt4d_jax.io.meshes import textured_usd
from sculpt4d_jax.io.video import writer
from sculpt4d_jax.io.viewer import asset_layers
from sculpt4d_jax.rendering import camera_fit

Registered = result.Registered
TexturedMesh = textured_mesh.TexturedMesh
PathLike = str | os.PathLike

GLB, SKIN_GLB = given_files.GLB, given_files.SKIN_GLB
USD, SKELETON_USD = "registered.usdc", "registered_skeleton.usdc"
BVH, VERTICES, REPORT = "registered.bvh", "vertices.npz", "registration.json"
OVERLAY, TURNTABLE, FIGURE = "overlay.mp4", "turntable.mp4", "figure.png"
VIEWER = "viewer.html"


@dataclasses.dataclass(frozen=True)
class AssetOptions:
  """Parts of the asset to make.

  Attributes:
    texture: "first" takes colours from the first frame alone, "all" from the
      other frames where the first one shows nothing, "none" leaves them out.
    shading: "unlit" keeps the filmed lighting in the colours; "lit" removes it,
      for viewers that light the asset themselves.
    fill: Method that colours parts which no frame shows, after mirroring.
    bones: Number of bones, "auto", or 0 for no skeleton.
    texture_size: Side of the texture in texels.
    videos: Whether overlay.mp4 and turntable.mp4 are made.
    usd: Whether USD files are written; they need usd-core.
  """

  texture: Literal["first", "all", "none"] = "all"
  shading: Literal["unlit", "lit"] = "unlit"
  fill: asset_colours.Fill = "within_parts"
  bones: int | Literal["auto"] = 0
  texture_size: int = 1024
  videos: bool = True
  usd: bool = True

  def __post_init__(self):
    for name, choices in (
      ("texture", ("first", "all", "none")),
      ("shading", ("unlit", "lit")),
      ("fill", asset_colours.FILLS),
    ):
      if getattr(self, name) not in choices:
        raise UserError(
          f"{name}={getattr(self, name)!r}: choose one of {choices}."
        )
    if self.bones != "auto" and not 0 <= self.bones <= 256:
      raise UserError(f'bones={self.bones} must be 0 to 256, or "auto".')
    if not 16 <= self.texture_size <= 8192:
      raise UserError(
        f"texture_size={self.texture_size} must be 16 to 8192 texels."
      )


@dataclasses.dataclass(frozen=True)
class Asset:
  """A finished asset.

  Attributes:
    parts: The mesh with its colours, one for each run of frames of one
      topology.
    camera: The fitted camera; None without a video.
    rig: The bones of the first run; None without.
    trajectory: The global motion that was removed before the bones were fitted.
    files: Paths of the files.
    report: Content of registration.json.
  """

  parts: tuple[TexturedMesh, ...]
  camera: camera_fit.FittedCamera | None
  rig: bone_tree.Rig | None
  trajectory: np.ndarray
  files: tuple[paths.LocalPath | paths.StorePath, ...]
  report: dict[str, Any]


def make_asset(
  registered: Registered,
  frames: np.ndarray | None,
  masks: np.ndarray | None,
  options: AssetOptions,
  folder: PathLike,
  *,
  fps: float,
  times: Sequence[float] | None = None,
  ground: np.ndarray | None = None,
  errors: np.ndarray | None = None,
  title: str = "Sculpt4D",
  details: dict[str, Any] | None = None,
  given: given_asset.GivenAsset | None = None,
  log: run_log.RunLog | None = None,
) -> Asset:
  """Makes the asset and writes all of its files, or none if something fails.

  Files: registered.glb with morph targets, registered.usdc, vertices.npz,
  registration.json, viewer.html, turntable.mp4, figure.png; with a video
  overlay.mp4; with bones registered_skin.glb, registered_skeleton.usdc and
  registered.bvh.

  Args:
    registered: The registration.
    frames: The video as the model received it, uint8 [F, h, w, 3], or None.
    masks: The object in it, uint8 [F, h, w] or float in [0, 1], or None.
    options: Parts of the asset to make, and their sizes.
    folder: Output folder; made if missing.
    fps: Frames a second.
    times: Start of each frame, seconds, if frames are of unequal length.
    ground: Colour of the video's background, [F, 3], 0 to 255; None if unknown.
      Background that is inside the masks then colours nothing.
    errors: Distances of the mesh's vertices to the frames' own meshes, as
      shares of the size, [F, V]; shown by the viewer as a heat map.
    title: Title of the viewer's page.
    details: Added to registration.json.
    given: The asset whose mesh was registered. Its materials are kept, so no
      colours are taken from the video, and so is its skeleton.
    log: Times the stages.

  Returns:
    The asset and its files.

  Raises:
    ValueError: The video has another number of frames or no object.
    OutputError: The folder cannot be written to.
  """
  log = log or run_log.RunLog(progress=False)
  segments = registered.segments
  _check_video(frames, masks, registered.num_frames)
  longest = max(segments, key=lambda s: s.mesh.num_frames)
  camera = None
  if frames is not None:
    with log.stage("fit the camera"):
      span = slice(longest.first_frame, longest.last_frame + 1)
      camera = camera_fit.fit(
        longest.mesh.vertices, longest.mesh.faces, masks[span]
      )
    if camera.warning:
      logging.warning("%s", camera.warning)
  rig, trajectory = None, registered.trajectory
  if options.bones and len(segments) == 1:
    with log.stage("find the bones"):
      rig = find_rig(segments[0].mesh, trajectory, options.bones)
  elif options.bones:
    logging.warning(
      "No skeleton: the clip has %d topologies, and bones need one.",
      len(segments),
    )
  with log.stage("bake the texture"):
    video = None
    if camera is not None and options.texture != "none" and given is None:
      video = asset_colours.Video(frames, masks, camera, ground)
    parts, seen = asset_colours.colour(segments, video, options, rig)
  report = _report(registered, camera, options, seen) | (details or {})
  with log.stage("write the asset"), staged.staged_folder(folder) as staging:
    report |= _write_models(
      staging, parts, rig, registered, options, fps, times, given
    )
    _write_pictures(staging, parts, frames, camera, options, fps)
    text = _viewer_page(
      parts, rig, trajectory, frames, errors, fps, times, title
    )
    atomic.write_bytes(staging / VIEWER, text.encode("utf-8"))
    _write_vertices(staging, registered)
    report["stages"] = log.summary()
    text = json.dumps(report, indent=2) + "\n"
    atomic.write_bytes(staging / REPORT, text.encode())
    names = sorted(p.name for p in staging.iterdir() if p.name[0] != ".")
  files = tuple(paths.of(folder) / name for name in names)
  return Asset(parts, camera, rig, trajectory, files, report)


def find_rig(
  mesh: deforming_mesh.DeformingMesh,
  trajectory: np.ndarray,
  bones: int | Literal["auto"],
) -> bone_tree.Rig:
  """Bones of a mesh without its global motion.

  Args:
    mesh: The mesh in all frames.
    trajectory: The global motion, rigid [F, 4, 4].
    bones: Number of bones, or "auto".
  """
  turn, shift = trajectory[:, :3, :3], trajectory[:, None, :3, 3]
  still = np.einsum("fyx,fvy->fvx", turn, mesh.vertices - shift)
  return bone_tree.build(
    skinning.decompose(still, np.asarray(mesh.rest, np.float64), bones)
  )


def _check_video(
  frames: np.ndarray | None, masks: np.ndarray | None, num_frames: int
) -> None:
  if (frames is None) != (masks is None):
    raise UserError("frames and masks are given together.")
  if frames is None:
    return
  if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
    raise UserError(
      f"frames must be uint8 [F, h, w, 3], got {frames.dtype}"
      f" {list(frames.shape)}."
    )
  if len(frames) != num_frames or masks.shape != frames.shape[:3]:
    raise UserError(
      f"expected {num_frames} frames with masks, got {list(frames.shape)} and"
      f" {list(masks.shape)}."
    )


def _write_models(
  staging: pathlib.Path,
  parts: Sequence[TexturedMesh],
  rig: bone_tree.Rig | None,
  registered: Registered,
  options: AssetOptions,
  fps: float,
  times: Sequence[float] | None,
  given: given_asset.GivenAsset | None,
) -> dict[str, Any]:
  """Writes the files; returns what the report says about the skeleton."""
  report: dict[str, Any] = {}
  trajectory = registered.trajectory
  if given is None:
    textured_glb.write_morph(staging / GLB, parts, fps, times=times)
  else:
    report = given_files.write(staging, given, registered, fps, times=times)
  if rig is not None:
    textured_glb.write_skin(
      staging / SKIN_GLB, parts[0], rig, fps, trajectory=trajectory, times=times
    )
    mesh = parts[0].mesh
    turn, shift = trajectory[:, :3, :3], trajectory[:, None, :3, 3]
    still = np.einsum("fyx,fvy->fvx", turn, mesh.vertices - shift)
    held = bone_tree.hold_together(rig, still)
    report["skeleton"] = _skeleton_report(rig) | {
      "rms_held_together": held.skin.rms
    }
    bvh.write_bvh(staging / BVH, held, fps, trajectory=trajectory)
  if not options.usd:
    return report
  try:
    textured_usd.write_points(staging / USD, parts, fps, times=times)
    if rig is not None:
      textured_usd.write_skeleton(
        staging / SKELETON_USD,
        parts[0],
        rig,
        fps,
        trajectory=trajectory,
        times=times,
      )
  except ImportError as error:
    logging.warning("%s is left out: %s", USD, error)
  return report


def _write_pictures(
  staging: pathlib.Path,
  parts: Sequence[TexturedMesh],
  frames: np.ndarray | None,
  camera: camera_fit.FittedCamera | None,
  options: AssetOptions,
  fps: float,
) -> None:
  num_frames = parts[-1].last_frame + 1
  sheet = asset_pictures.figure(parts, num_frames, frames)
  asset_pictures.write_png(staging / FIGURE, sheet)
  if not options.videos:
    return
  if camera is not None:
    pictures = asset_pictures.overlay_frames(parts, frames, camera.camera)
    writer.write_video(staging / OVERLAY, pictures, fps)
  pictures = asset_pictures.turntable_frames(parts, num_frames)
  writer.write_video(staging / TURNTABLE, pictures, fps)


def _viewer_page(
  parts: Sequence[TexturedMesh],
  rig: bone_tree.Rig | None,
  trajectory: np.ndarray,
  frames: np.ndarray | None,
  errors: np.ndarray | None,
  fps: float,
  times: Sequence[float] | None,
  title: str,
) -> str:
  is_one = len(parts) == 1
  return asset_layers.asset_page(
    parts[0] if is_one else merged_parts.merge(parts),
    fps,
    frames,
    rig=rig,
    trajectory=trajectory,
    errors=errors if is_one else None,
    # No point belongs to all topologies.
    has_trails=is_one,
    times=times,
    title=title,
  )


def _write_vertices(staging: pathlib.Path, registered: Registered) -> None:
  """Positions, faces, the rest pose and the global motion."""
  mesh = registered.mesh
  arrays = {
    "vertices": mesh.vertices,
    "faces": mesh.faces,
    "rest": mesh.rest,
    "trajectory": registered.trajectory,
  }
  if len(registered.segments) > 1:
    for index, segment in enumerate(registered.segments):
      arrays |= {
        f"segment_{index}_vertices": segment.mesh.vertices,
        f"segment_{index}_faces": segment.mesh.faces,
      }
  with atomic.atomic_write(staging / VERTICES) as file:
    np.savez_compressed(file, **arrays)


def _report(
  registered: Registered,
  camera: camera_fit.FittedCamera | None,
  options: AssetOptions,
  seen: dict[str, Any],
) -> dict[str, Any]:
  report: dict[str, Any] = {
    "key": registered.key,
    "frames": [
      dataclasses.asdict(frame) | {"verdict": str(frame.verdict)}
      for frame in registered.reports
    ],
    "segments": [
      {
        "first_frame": first,
        "last_frame": last,
        "vertices": mesh.num_vertices,
        "faces": mesh.num_faces,
      }
      for first, last, mesh in registered.segments
    ],
    "options": dataclasses.asdict(options),
    "texture": seen,
  }
  if camera is not None:
    report["camera"] = {
      "azimuth": camera.azimuth,
      "elevation": camera.elevation,
      "distance": camera.distance,
      "fov_degrees": camera.camera.fov_degrees,
      "shift": list(camera.camera.shift),
      "camera_to_world": camera.camera.camera_to_world.tolist(),
      "iou": camera.iou,
      "frame_ious": camera.frame_ious.tolist(),
      "warning": camera.warning,
    }
  return report


def _skeleton_report(rig: bone_tree.Rig) -> dict[str, Any]:
  return {
    "bones": rig.num_bones,
    "parents": rig.parents.tolist(),
    "rms": rig.skin.rms,
    "spreads": rig.spreads.tolist(),
  }
