"""A complete registration: read, register, colour, rig and write meshes."""

from collections.abc import Sequence
import dataclasses
from typing import Any

from absl import logging
import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import mesh_distance
from sculpt4d_jax.geometry import textured_mesh
from sculpt4d_jax.geometry.registration import result
from sculpt4d_jax.inference import asset
from sculpt4d_jax.inference import outputs
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import registering
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io import paths
from sculpt4d_jax.io.assets import given_asset
from sculpt4d_jax.io.matting import crop
from sculpt4d_jax.io.meshes import sequence_input
from sculpt4d_jax.rendering import trapped_ground

_PICTURE_SIZE = 512  # Pixels a side of the cropped video.


@dataclasses.dataclass(frozen=True)
class Video:
  """The clip that a sequence was made from.

  Attributes:
    path: Video, folder of pictures, or picture.
    matte: Way to cut out the object, as in sampling.
    start: First second that was used.
    end: Last second that was used.
  """

  path: paths.PathLike
  matte: str = "auto"
  start: float | None = None
  end: float | None = None


@dataclasses.dataclass(frozen=True)
class Made:
  """Results of a run.

  Attributes:
    source: The meshes that were registered to.
    registered: The registration.
    parts: The mesh with its colours, one for each run of frames of one
      topology.
    pictures: The video, cropped like the model's input, uint8 [F, h, w, 3], or
      None.
    files: Paths of the files.
  """

  source: sequence_input.MeshSequence
  registered: result.Registered
  parts: tuple[textured_mesh.TexturedMesh, ...]
  pictures: np.ndarray | None
  files: Sequence[Any]

  @property
  def summary(self) -> str:
    """A sentence that summarises the result."""
    return registering.summary(self.registered)


def run(
  source: paths.PathLike,
  output: paths.PathLike,
  log: run_log.RunLog,
  *,
  key: str = "auto",
  mesh: paths.PathLike | None = None,
  max_faces: int | None = None,
  one_topology: bool = False,
  video: Video | None = None,
  bones: str = "0",
  **options: Any,
) -> Made:
  """Registers a sequence of files and writes the results.

  Args:
    source: Folder of meshes, animated GLB or USD file.
    output: Folder for the results; made if missing.
    log: Log that times the stages.
    key: Number of the frame whose topology is taken, or "auto".
    mesh: File of a mesh that is registered instead. Its topology is kept; of
      a GLB or glTF file also materials, texture coordinates and skeleton.
    max_faces: Face budget of the frames, at least 4.
    one_topology: Whether one mesh shows all frames, also those that it cannot
      show well.
    video: Clip that gives colours; None gives none.
    bones: Number of bones, "auto", or "0" for no skeleton.
    **options: Further fields of `asset.AssetOptions`.

  Raises:
    ValueError: An argument or a file cannot be used.
  """
  for name, value in (("key", key), ("bones", bones)):
    if value != "auto" and not value.isdigit():
      raise UserError(f"--{name}={value}: expected auto or a number.")
  if max_faces is not None and max_faces < 4:
    raise UserError(f"--max_faces={max_faces} must be at least 4.")
  settings = asset.AssetOptions(
    bones=bones if bones == "auto" else int(bones), **options
  )
  outputs.check_writable(output)
  with log.stage("read meshes"):
    sequence = sequence_input.read(source)
    given, own_mesh = _read_own(mesh) if mesh else (None, None)
  how = registering.Settings(find_segments=not one_topology)
  if settings.bones:  # A skeleton needs one topology in all frames.
    how = dataclasses.replace(how, max_added_topologies=0)
  registered = registering.register(
    sequence.meshes,
    key=None if key == "auto" else int(key),
    mesh=own_mesh,
    max_faces=max_faces,
    settings=how,
    log=log,
  )
  if given is not None:
    registered = _coloured(registered, given.colours)
    if given.skeleton is not None and settings.bones:
      logging.warning(
        "--bones is left out: %s has a skeleton, which is kept.", mesh
      )
      settings = dataclasses.replace(settings, bones=0)
  if video is None and not settings.bones:
    files = registering.write(output, registered, sequence, log, given)
    parts = registering.plain_parts(registered)
    return Made(sequence, registered, parts, None, files)
  frames, masks, ground = _read_video(video, len(sequence.meshes), log)
  made = asset.make_asset(
    registered,
    frames,
    masks,
    settings,
    output,
    fps=sequence.fps,
    times=sequence.times,
    ground=ground,
    errors=_errors(registered, sequence.meshes),
    title=sequence.name,
    details=registering.record(registered, sequence, log),
    given=given,
    log=log,
  )
  return Made(sequence, registered, made.parts, frames, made.files)


def _read_own(
  path: paths.PathLike,
) -> tuple[given_asset.GivenAsset | None, mesh_lib.TriangleMesh]:
  """A user's mesh; for a glTF asset also its materials and skeleton."""
  path = local_copies.fetch(path)
  if path.suffix.lower() not in (".glb", ".gltf") or not path.is_file():
    return None, sequence_input.read_mesh(path)
  try:
    given = given_asset.read(path)
  except given_asset.AssetError as error:
    raise UserError(f"{path}: {error}") from error
  return given, given.mesh


def _coloured(
  registered: result.Registered, colours: np.ndarray
) -> result.Registered:
  """The registration with colours of the vertices [V, 3]."""
  mesh = dataclasses.replace(registered.mesh, colours=colours)
  return dataclasses.replace(
    registered, mesh=mesh, segments=result.one_segment(mesh)
  )


def _errors(
  registered: result.Registered, meshes: Sequence[mesh_lib.TriangleMesh]
) -> np.ndarray:
  """Distances of the vertices to the frames' meshes over the size, [F, V]."""
  vertices = registered.mesh.vertices
  size = float((vertices.max((0, 1)) - vertices.min((0, 1))).max())
  return np.stack(
    [
      mesh_distance.unsigned_distance(mesh, points, cap=0.1 * size) / size
      for mesh, points in zip(meshes, vertices)
    ]
  )


def _read_video(
  video: Video | None, num_frames: int, log: run_log.RunLog
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
  """Pictures, masks and the background's colour; None without a video."""
  if video is None:
    return None, None, None
  clip = pipeline.read_clip(
    video.path,
    log,
    num_frames=num_frames,
    image_size=_PICTURE_SIZE,
    matte=video.matte,
    start=video.start,
    end=video.end,
  )
  cut = crop.crop_clip(clip.foreground.frames, _PICTURE_SIZE)
  ground = None
  if clip.foreground.method != "alpha":  # No background was filmed.
    ground = trapped_ground.colour_of(
      clip.source.frames[..., :3], clip.foreground.frames[..., 3]
    )
  return cut.images, cut.masks, ground
