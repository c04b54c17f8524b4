"""Sequences with known correspondences, for measuring registration.

Every frame is meshed separately by marching cubes and simplified, so topology
and tessellation change between frames. The truth consists of material points
with known motion: on the parts of a procedural clip, or on the faces of an
animated asset. Points that are hidden inside the object in some frame are
excluded, because no registration can determine their positions.
"""

import dataclasses
import functools
import pathlib
from typing import IO

import jax
import numpy as np

from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import cleanup
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import isosurface
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import mesh_distance
from sculpt4d_jax.geometry import sampling
from sculpt4d_jax.geometry import signed_distance
from sculpt4d_jax.geometry import watertight
from sculpt4d_jax.io.assets import animated_assets

NUM_POINTS = 4000
_HIDDEN = 0.004  # Distance to the surface beyond which a point is inside.


@dataclasses.dataclass(frozen=True)
class TrackedSequence:
  """Meshes of changing topology, with points known in all frames.

  Attributes:
    name: Name of the sequence.
    meshes: One mesh a frame.
    truth: Material points, float32 [F, P, 3].
  """

  name: str
  meshes: list[mesh_lib.TriangleMesh]
  truth: np.ndarray

  def save(self, file: IO[bytes]) -> None:
    """Writes a file that `load` reads."""
    arrays = {}
    for index, mesh in enumerate(self.meshes):
      arrays[f"vertices_{index}"] = mesh.vertices
      arrays[f"faces_{index}"] = mesh.faces
    np.savez(file, name=self.name, truth=self.truth, **arrays)


def load(path: pathlib.Path) -> TrackedSequence:
  """Reads a file of `TrackedSequence.save`."""
  with np.load(path) as file:
    truth = file["truth"]
    meshes = [
      mesh_lib.TriangleMesh(file[f"vertices_{i}"], file[f"faces_{i}"])
      for i in range(len(truth))
    ]
    return TrackedSequence(str(file["name"]), meshes, truth)


def procedural(
  seed: int, num_faces: int, resolution: int = 144, num_frames: int = 16
) -> TrackedSequence:
  """The procedural clip of a seed, with separately meshed frames."""
  clip = solids.make_clip(seed, num_frames)
  solid = clip_records.trim(clip.solid)
  meshes = []
  for index in range(num_frames):
    frame = jax.tree.map(lambda leaf: leaf[index], solid)
    grid = isosurface.coarse_to_fine_field(
      functools.partial(_distance_of, frame),
      resolution,
      bounds=1.01,
      band_cells=1.0,
      min_resolution=20,
    )
    surface = isosurface.extract_surface(grid.values, bounds=1.01)
    meshes.append(cleanup.simplify(surface, num_faces))
  guide = clip_records.guide_points(
    clip.solid, 4 * NUM_POINTS, np.random.default_rng(3)
  ).astype(np.float32)
  depth = np.asarray(clip_records.distances(solid, guide))
  seen = np.abs(depth).max(0) < _HIDDEN
  name = f"{clip.family} {seed}"
  return TrackedSequence(name, meshes, guide[:, seen][:, :NUM_POINTS])


def asset(
  path: pathlib.Path,
  clip_name: str,
  num_faces: int,
  resolution: int = 144,
  num_frames: int = 16,
) -> TrackedSequence:
  """A clip of an animated asset, made watertight and meshed per frame."""
  moving = played(path, clip_name, num_frames)
  settings = watertight.WatertightSettings(resolution=resolution)
  repair, _ = watertight.plan_repair(moving, settings, np.random.default_rng(0))
  meshes = []
  for frame in moving.frames():
    surface = watertight.close(frame, repair, settings)
    if surface is None:
      raise UserError(f"{path}, {clip_name}: a frame encloses nothing.")
    meshes.append(cleanup.simplify(surface, num_faces))
  points = sampling.sample_surface(
    moving.frame(0), 3 * NUM_POINTS, np.random.default_rng(1)
  )
  corners = moving.vertices[:, moving.faces[points.face_ids]]
  truth = np.einsum("pc,fpcx->fpx", points.barycentrics, corners)
  worst = np.max(
    [
      mesh_distance.unsigned_distance(mesh, frame)
      for mesh, frame in zip(meshes, truth)
    ],
    axis=0,
  )
  truth = truth[:, worst < 1.2 * settings.cell][:, :NUM_POINTS]
  name = f"{path.stem} {clip_name}"
  return TrackedSequence(name, meshes, truth.astype(np.float32))


def played(
  path: pathlib.Path, clip_name: str, num_frames: int
) -> deforming_mesh.DeformingMesh:
  """A clip of an animated asset with the original topology, normalised."""
  source = animated_assets.AnimatedAsset(path, attachments="none")
  names = [clip.name for clip in source.clips]
  if clip_name not in names:
    raise UserError(f"{path} has no clip {clip_name!r}, only {names}.")
  clip = source.clips[names.index(clip_name)]
  times = np.linspace(clip.start, clip.end, num_frames)
  return deforming_mesh.normalise(source.play(clip, times))


_field = jax.jit(signed_distance.signed_distance)


def _distance_of(
  frame: signed_distance.Solid, points: np.ndarray
) -> np.ndarray:
  return np.asarray(_field(frame, points.astype(np.float32)))
