"""Reads mesh sequences in the formats of several programs, for evaluation.

  folder of meshes   one PLY, OBJ, STL, GLB or glTF file a frame, numbered:
                     frame_0000.ply (this project), mesh_00.glb (ActionMesh),
                     0.obj, ...; topologies may differ from frame to frame
  zip of meshes      the same in a zip; PLY, OBJ or STL
  .npy               a cloud of tracked points [F, P, 3 or 6]: index p is one
                     surface point in all frames; columns 3 to 5 (normals) are
                     not used. ActionBench's `surfaces.npy` is one
  folder with surfaces.npy
  .glb .gltf .usd .usda .usdc .usdz .abc
                     an animation. Files of this project with one mesh per frame
                     return these meshes; other animations are evaluated at the
                     requested number of times, evenly spaced from the first to
                     the last key

Every defect of a file is raised as a `SequenceError` whose message names it.
"""

import collections
from collections.abc import Sequence
import dataclasses
import os
import pathlib
import re
import zipfile

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.assets import alembic
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import gltf_animation
from sculpt4d_jax.io.assets import gltf_container
from sculpt4d_jax.io.assets import gltf_mesh
from sculpt4d_jax.io.assets import mesh_sequences
from sculpt4d_jax.io.assets import usd
from sculpt4d_jax.io.assets import usd_trial
from sculpt4d_jax.io.meshes import played_glb
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.io.meshes import usd as usd_writer

TriangleMesh = mesh_lib.TriangleMesh
PathLike = str | os.PathLike

CLOUD_NAME = "surfaces.npy"
_GLTF = (".glb", ".gltf")
_FRAME_SUFFIXES = (*mesh_sequences.SUFFIXES, *_GLTF)
_ANIMATED = (*_GLTF, *usd.SUFFIXES, *alembic.SUFFIXES)
_FILES = (*_ANIMATED, ".npy", ".zip")
# Names of frames of one sequence, even if they are GLB files.
_FRAME_NAME = re.compile(r"(frame|mesh)_?\d+\.", re.IGNORECASE)
_NUMBER = re.compile(r"\d+")
_LIMITS = asset_files.DEFAULT_LIMITS


class SequenceError(UserError):
  """A sequence cannot be read; the message names the file and the reason."""


@dataclasses.dataclass(frozen=True)
class ShapeSequence:
  """Surfaces in time: a mesh a frame, or a cloud of tracked points.

  Attributes:
    meshes: One mesh a frame; empty if there is only a cloud.
    cloud: Tracked points, float32 [F, P, 3], or None.
    source: Short description of its source.
  """

  meshes: tuple[TriangleMesh, ...] = ()
  cloud: np.ndarray | None = None
  source: str = "meshes"

  @property
  def num_frames(self) -> int:
    """Number of frames F, of the meshes or of the cloud."""
    return len(self.meshes) if self.cloud is None else len(self.cloud)

  def first(self, count: int) -> "ShapeSequence":
    """The first `count` frames."""
    cloud = None if self.cloud is None else self.cloud[:count]
    return dataclasses.replace(self, meshes=self.meshes[:count], cloud=cloud)


def is_sequence(path: PathLike) -> bool:
  """Whether a path is one sequence instead of a folder of several."""
  path = pathlib.Path(path)
  if path.is_dir():
    return bool((path / CLOUD_NAME).is_file() or _frame_files(path))
  return path.suffix.lower() in _FILES


def sequence_name(path: pathlib.Path) -> str:
  """Name of a sequence: that of its folder, or of its file without suffix."""
  return path.name if path.is_dir() else path.stem


def is_played(path: PathLike) -> bool:
  """Whether `read` chooses the times and therefore needs `num_frames`."""
  path = pathlib.Path(path)
  if path.is_dir() or path.suffix.lower() not in _ANIMATED:
    return False
  if path.suffix.lower() in _GLTF:
    return _switched_nodes(_open_gltf(path)) is None
  if path.suffix.lower() in usd.SUFFIXES:
    usd_trial.check(path)
    return not _is_own_usd(path)
  return True


def read(path: PathLike, num_frames: int | None = None) -> ShapeSequence:
  """Reads a sequence.

  Args:
    path: See the module.
    num_frames: Number of times at which an animation is evaluated, 16 by
      default; ignored for other sequences.

  Raises:
    SequenceError: It is missing, damaged, or of unknown format.
    ImportError: A package that reads USD or Alembic is not installed.
  """
  path = pathlib.Path(path)
  try:
    return _read(path, 16 if num_frames is None else num_frames)
  except SequenceError:
    raise
  except asset_files.AssetError as error:
    raise SequenceError(f"{path}: {error}") from error


def _read(path: pathlib.Path, num_frames: int) -> ShapeSequence:
  if path.is_dir():
    if (path / CLOUD_NAME).is_file():
      return _read_cloud(path / CLOUD_NAME)
    return _read_folder(path)
  suffix = path.suffix.lower()
  if not path.is_file():
    raise SequenceError(f"there is no file or folder {path}.")
  if suffix == ".npy":
    return _read_cloud(path)
  if suffix == ".zip":
    return _read_zip(path)
  if suffix in usd.SUFFIXES:
    usd_trial.check(path)
  if suffix in _GLTF:
    asset = _open_gltf(path)
    nodes = _switched_nodes(asset)
    if nodes is not None:
      return ShapeSequence(
        tuple(_node_mesh(asset, node) for node in nodes), source="GLB of meshes"
      )
    meshes = played_glb.read_meshes(path)
    if meshes is not None:
      return ShapeSequence(tuple(meshes), source="GLB of one moving mesh")
  elif suffix in usd.SUFFIXES and _is_own_usd(path):
    try:
      meshes, _ = usd_writer.read_animated_usd(path)
    except ValueError as error:
      raise SequenceError(str(error)) from error
    return ShapeSequence(tuple(meshes), source="USD of meshes")
  elif suffix not in _ANIMATED:
    raise SequenceError(
      f"{path} is not a mesh sequence; expected a folder with one mesh a frame"
      f" or a file ending in {', '.join(_FILES)}."
    )
  return _play(path, num_frames)


def _play(path: pathlib.Path, num_frames: int) -> ShapeSequence:
  if num_frames < 1:
    raise SequenceError(f"num_frames={num_frames} must be at least 1.")
  asset = animated_assets.AnimatedAsset(path)
  clip = asset.clips[0]
  times = np.linspace(clip.start, clip.end, num_frames)
  moving = asset.play(clip, times.tolist())
  return ShapeSequence(
    tuple(moving.frames()),
    source=f"{path.suffix[1:].upper()} played at {num_frames} times",
  )


def _read_folder(folder: pathlib.Path) -> ShapeSequence:
  files = _frame_files(folder)
  if not files:
    raise SequenceError(
      f"{folder} has no numbered meshes; expected one file a frame, such as"
      f" frame_0000.ply or mesh_00.glb (of {', '.join(_FRAME_SUFFIXES)})."
    )
  numbers = [_frame_number(path) for path in files]
  if len(set(numbers)) != len(numbers):
    raise SequenceError(f"{folder} has two meshes of one frame's number.")
  missing = sorted(set(range(numbers[0], numbers[-1] + 1)) - set(numbers))
  steps = {b - a for a, b in zip(numbers, numbers[1:])}
  if missing and len(steps) > 1:
    raise SequenceError(
      f"{folder} has {len(files)} meshes from {files[0].name} to"
      f" {files[-1].name}, but none for frame {missing[0]}"
      + (f" and {len(missing) - 1} more." if len(missing) > 1 else ".")
    )
  kind = files[0].suffix[1:].upper()
  return ShapeSequence(
    tuple(_read_frame(path) for path in files), source=f"{kind} a frame"
  )


def _read_frame(path: pathlib.Path) -> TriangleMesh:
  try:
    if path.suffix.lower() in _GLTF:
      return gltf_animation.rest_mesh(_open_gltf(path))
    content = asset_files.read_file(path, _LIMITS.file_bytes)
    if path.suffix.lower() == ".obj" and not content.strip():
      return ply_obj.empty_mesh()
    return mesh_sequences.parse_mesh(path.name, content)
  except asset_files.AssetError as error:
    raise SequenceError(f"{path}: {error}") from error


def _read_zip(path: pathlib.Path) -> ShapeSequence:
  if not zipfile.is_zipfile(path):
    raise SequenceError(f"{path} is not a zip file; it may be truncated.")
  contents = asset_files.unpack_zip(path, mesh_sequences.SUFFIXES, _LIMITS)
  if not contents:
    raise SequenceError(
      f"{path} holds no {', '.join(mesh_sequences.SUFFIXES)} files."
    )
  names = sorted(contents, key=lambda name: _natural(name))
  meshes = (mesh_sequences.parse_mesh(name, contents[name]) for name in names)
  return ShapeSequence(tuple(meshes), source="zip of meshes")


def _read_cloud(path: pathlib.Path) -> ShapeSequence:
  try:
    values = np.load(path, allow_pickle=False, mmap_mode="r")
  except (ValueError, OSError, EOFError) as error:
    raise SequenceError(
      f"{path} is not a readable .npy array ({str(error)[:120]}); expected"
      " floats [frames, points, 3 or 6]."
    ) from error
  if (
    not isinstance(values, np.ndarray)
    or values.ndim != 3
    or values.shape[2] not in (3, 6)
    or values.dtype.kind != "f"
    or not values.size
  ):
    what = (
      f"{values.dtype} {list(values.shape)}"
      if isinstance(values, np.ndarray)
      else "an archive"
    )
    raise SequenceError(
      f"{path} holds {what}; expected floats [frames, points, 3 or 6]."
    )
  points = np.array(values[..., :3], np.float32)
  if not np.isfinite(points).all():
    bad = np.count_nonzero(~np.isfinite(points).all(-1))
    raise SequenceError(f"{path}: {bad:,} points are not finite.")
  return ShapeSequence(cloud=points, source="tracked points")


def _frame_files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The meshes of one sequence in a folder, in the order of their numbers.

  Among several series (mesh_00.glb, ... and albedo_00.obj, ...), a known name
  has priority, then the longest series.
  """
  groups = collections.defaultdict(list)
  for path in folder.iterdir():
    suffix = path.suffix.lower()
    if suffix not in _FRAME_SUFFIXES or not path.is_file():
      continue
    if not _NUMBER.search(path.stem):
      continue
    stem = re.sub(r"\d+(?!.*\d)", "#", path.stem)
    groups[stem, suffix].append(path)
  candidates = [
    sorted(files, key=lambda path: _natural(path.name))
    for files in groups.values()
    if _are_frames(files)
  ]
  if not candidates:
    return []
  return max(
    candidates,
    key=lambda files: (
      _rank(files[0]),
      len(files),
      files[0].suffix == ".ply",
    ),
  )


def _rank(path: pathlib.Path) -> int:
  name = path.name.lower()
  if name.startswith("frame_") and name.endswith(".ply"):
    return 2
  return int(bool(_FRAME_NAME.match(name)))


def _are_frames(files: Sequence[pathlib.Path]) -> bool:
  """Whether files are frames instead of numbered clips."""
  first = files[0]
  if first.suffix.lower() not in _GLTF or _FRAME_NAME.match(first.name):
    return True
  try:
    return not gltf_container.GltfFile(first).items("animations")
  except asset_files.AssetError:
    return False


def _frame_number(path: pathlib.Path) -> int:
  return int(_NUMBER.findall(path.stem)[-1])


def _natural(name: str) -> list[tuple[int, str]]:
  """Sorts frame_2 before frame_10."""
  return [
    (int(part), "") if part.isdigit() else (-1, part)
    for part in re.split(r"(\d+)", name)
  ]


def _open_gltf(path: pathlib.Path) -> gltf_container.GltfFile:
  try:
    return gltf_container.GltfFile(path)
  except asset_files.AssetError as error:
    raise SequenceError(f"{path}: {error}") from error


def _switched_nodes(asset: gltf_container.GltfFile) -> list[dict] | None:
  """The nodes of a GLB with one mesh per frame; None for other GLB files."""
  animations = asset.items("animations")
  extras = animations and gltf_container.table(
    asset.item("animations", 0), "extras"
  )
  if not extras or "fps" not in extras or not asset.items("scenes"):
    return None
  roots = asset.item("scenes", 0).get("nodes") or []
  nodes = [asset.item("nodes", index) for index in roots]
  # The node that only extends the scene's bounds is not a frame.
  frames = [n for n in nodes if str(n.get("name", "")).startswith("frame_")]
  return frames or None


def _node_mesh(asset: gltf_container.GltfFile, node: dict) -> TriangleMesh:
  if "mesh" not in node:
    return ply_obj.empty_mesh()
  primitives = gltf_mesh.read_primitives(asset, node["mesh"])
  if not primitives:
    return ply_obj.empty_mesh()
  offsets = np.cumsum([0] + [p.num_vertices for p in primitives[:-1]])
  return TriangleMesh(
    np.concatenate([p.positions for p in primitives]),
    np.concatenate([p.faces + o for p, o in zip(primitives, offsets)]),
  )


def _is_own_usd(path: pathlib.Path) -> bool:
  try:
    return usd_writer.is_mesh_sequence(path)
  except ValueError as error:
    raise SequenceError(str(error)) from error
