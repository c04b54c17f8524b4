"""Reads a sequence of meshes from a folder or a file.

  a folder     frame_*.ply of a sample, or any PLY, OBJ, STL and GLB files, one
               mesh a frame, in the order of the numbers in their names
  .glb .gltf   a file of this project, or any animated asset
  .usd*        a mesh with time samples, ours or any animated asset

A sample's run.json gives the frame rate and the times of its frames.
"""

from collections.abc import Sequence
import dataclasses
import json
import os
import pathlib
from typing import Any

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import gltf_animation
from sculpt4d_jax.io.assets import gltf_container
from sculpt4d_jax.io.assets import mesh_sequences
from sculpt4d_jax.io.assets import usd_trial
from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.io.meshes import played_glb
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.io.meshes import usd

TriangleMesh = mesh_lib.TriangleMesh
PathLike = str | os.PathLike

_GLTF = (".glb", ".gltf")
_USD = (*usd.SUFFIXES, ".usd")
_RUN = "run.json"
MAX_FRAMES = 1000


@dataclasses.dataclass(frozen=True)
class MeshSequence:
  """Meshes over time.

  Attributes:
    name: Name of the folder or file.
    meshes: One mesh a frame.
    fps: Frames a second.
    times: Start of each frame, seconds, [F]; None if they are even.
  """

  name: str
  meshes: list[TriangleMesh]
  fps: float
  times: np.ndarray | None = None


def read(path: PathLike) -> MeshSequence:
  """Reads a sequence; see the module for supported paths.

  Raises:
    ValueError: The path does not exist, holds no sequence, or is damaged.
    ImportError: It is a USD file, and usd-core is not installed.
  """
  path = local_copies.fetch(path)
  if path.is_dir():
    return _read_folder(path)
  if not path.is_file():
    raise UserError(f"there is no folder and no file at {path}.")
  suffix = path.suffix.lower()
  if suffix not in (*_GLTF, *_USD):
    raise UserError(
      f"{path}: expected a folder of meshes, or a file ending in"
      f" {', '.join((*_GLTF, *_USD))}."
    )
  try:
    reader = glb.read_animated_glb
    if suffix in _USD:
      reader = usd.read_animated_usd
      usd_trial.check(path)
    meshes, fps = reader(path)
    return MeshSequence(path.name, meshes, fps)
  except usd_trial.CrashError as error:
    raise UserError(f"{path}: {error}") from error
  except ValueError:  # Not in our format.
    return _read_asset(path)


def read_mesh(path: PathLike) -> TriangleMesh:
  """Reads one mesh from a PLY, OBJ, STL, GLB or glTF file.

  Raises:
    ValueError: The file is missing, damaged or of another kind.
  """
  path = local_copies.fetch(path)
  if not path.is_file():
    raise UserError(f"there is no mesh file at {path}.")
  if path.suffix.lower() in mesh_sequences.SUFFIXES:
    return mesh_sequences.parse_mesh(path.name, path.read_bytes())
  if path.suffix.lower() not in _GLTF:
    raise UserError(
      f"{path}: expected a mesh file ending in"
      f" {', '.join((*mesh_sequences.SUFFIXES, *_GLTF))}."
    )
  try:
    return gltf_animation.rest_mesh(gltf_container.GltfFile(path))
  except animated_assets.AssetError as error:
    raise UserError(f"{path} is not a readable mesh: {error}") from error


def _read_folder(folder: pathlib.Path) -> MeshSequence:
  fps, times = animated_assets.SEQUENCE_RATE, None
  if any(folder.glob("frame_*.ply")):
    meshes = ply_obj.read_mesh_sequence(folder)
    fps, times = _timing(folder / _RUN, len(meshes))
  else:
    files = [
      path
      for path in folder.iterdir()
      if path.suffix.lower() in (*mesh_sequences.SUFFIXES, *_GLTF)
      and path.is_file()
    ]
    files.sort(key=lambda path: mesh_sequences.natural_order(path.name))
    if not files:
      raise UserError(
        f"{folder} holds no frame_*.ply and no other PLY, OBJ, STL or GLB"
        " files; give the folder that a sample was written to."
      )
    _check_count(folder, len(files))
    meshes = [read_mesh(path) for path in files]
  return MeshSequence(folder.name, meshes, fps, times)


def _timing(
  path: pathlib.Path, num_frames: int
) -> tuple[float, np.ndarray | None]:
  """Rate and times of a sample's frames, from its run.json."""
  if not path.is_file():
    return animated_assets.SEQUENCE_RATE, None
  try:
    record: dict[str, Any] = json.loads(path.read_text())
    fps = float(record["input"]["fps"])
    times = np.asarray(record["input"]["timestamps"], np.float64)
  except (ValueError, KeyError, TypeError) as error:
    raise UserError(
      f"{path} is not the record of a sample ({type(error).__name__}:"
      f" {error}); remove it to use {animated_assets.SEQUENCE_RATE:g} frames a"
      " second."
    ) from error
  if not (np.isfinite(fps) and fps > 0):
    raise UserError(f"{path} gives {fps} frames a second; remove or fix it.")
  if times.shape != (num_frames,) or not (np.diff(times) > 0).all():
    return fps, None
  return fps, times - times[0]


def _read_asset(path: pathlib.Path) -> MeshSequence:
  """An animated asset at its frames."""
  try:
    found = path.suffix.lower() in _GLTF and played_glb.frame_starts(path)
    if found:
      rate, starts = found
      _check_count(path, len(starts))
      meshes = played_glb.play(path, starts)
      return MeshSequence(path.name, meshes, rate, starts)
    asset = animated_assets.AnimatedAsset(path)
    clip = asset.clips[0]
    rate = animated_assets.SEQUENCE_RATE
    count = max(1, int(np.floor((clip.end - clip.start) * rate + 1e-6)) + 1)
    _check_count(path, count)
    times: Sequence[float] = (clip.start + np.arange(count) / rate).tolist()
    frames = list(asset.play(clip, times).frames())
  except animated_assets.AssetError as reason:
    raise UserError(f"{path} holds no sequence: {reason}") from reason
  return MeshSequence(path.name, frames, rate)


def _check_count(path: pathlib.Path, count: int) -> None:
  if count > MAX_FRAMES:
    raise UserError(
      f"{path} has {count:,} frames; at most {MAX_FRAMES:,} can be read, give"
      " a part of them."
    )
