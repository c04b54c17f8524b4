"""Animated Alembic files (.abc, Ogawa) as deforming meshes.

All polygon meshes of an archive are joined in world space, with animated points
and transforms. Subdivision surfaces are read as their control cages. Alembic's
faces are wound clockwise seen from outside, so the winding is reversed; y is up
and times are in seconds. Between samples, positions are interpolated linearly,
and transforms by their polar decomposition.

Needs the package alembic3d, imported only here: third-party wheels of the
Alembic project's Python bindings for CPython 3.10 to 3.14 on Linux and Windows
(x86-64) and macOS (arm64). Neither usd-core (it has no usdAbc plug-in) nor
trimesh reads these files. On other platforms, and for archives in the old HDF5
format, Blender converts them to .glb or .usdc.
"""

from collections.abc import Sequence
import dataclasses
import os
import pathlib
import types
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial import transform as rotations

from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import polygons

if TYPE_CHECKING:
  from alembic3d import Abc
  from alembic3d import AbcGeom
  import imath

  _Schema = AbcGeom.IXformSchema | AbcGeom.IPolyMeshSchema | AbcGeom.ISubDSchema

AssetError = asset_files.AssetError
PathLike = str | os.PathLike

SUFFIXES = (".abc",)
_OGAWA = b"Ogawa"


def _alembic() -> tuple[types.ModuleType, types.ModuleType]:
  try:
    from alembic3d import Abc
    from alembic3d import AbcGeom
  except ImportError as error:
    raise MissingPackageError(
      "Alembic files need the package alembic3d: pip install"
      " 'sculpt4d-jax[alembic]' or pip install alembic3d. Where it has no"
      " wheel, export .glb or .usdc from the program that made the file, or"
      " from Blender."
    ) from error
  return Abc, AbcGeom


@dataclasses.dataclass(frozen=True)
class _Mesh:
  """A mesh of the archive.

  Attributes:
    schema: Its samples.
    times: Times of the samples, seconds [n].
    parents: Samples and their times of the transforms above it, the topmost
      first.
  """

  schema: Any
  times: np.ndarray
  parents: tuple[tuple[Any, np.ndarray], ...]


class AlembicAsset:
  """An open archive.

  Attributes:
    start: Time of its first sample, seconds.
    end: Time of the last sample (s).
    left_out: Meshes that are no part of the object; here none are reported, as
      hidden ones are skipped.
    num_meshes: Number of visible meshes.
  """

  def __init__(
    self,
    path: PathLike,
    limits: asset_files.AssetLimits = asset_files.DEFAULT_LIMITS,
  ):
    """Opens an archive.

    Raises:
      AssetError: It cannot be read or has no animation.
      ImportError: alembic3d is not installed.
    """
    Abc, _ = _alembic()
    path = pathlib.Path(path)
    self.limits = limits
    if path.stat().st_size > limits.file_bytes:
      raise AssetError(f"{path.name!r} is larger than allowed.")
    with open(path, "rb") as file:
      if file.read(len(_OGAWA)) != _OGAWA:
        raise AssetError(
          f"{path.name!r} is no Ogawa archive; convert it with abcconvert"
          " -toOgawa, or with Blender."
        )
    try:
      self._archive = Abc.IArchive(os.fspath(path))
      self._faces = polygons.Faces()
      self._meshes = self._find(self._archive.getTop())
    except RuntimeError as error:  # Raised by the library for damaged files.
      raise AssetError(
        f"{path.name!r} is not a readable Alembic file: {str(error)[:200]}"
      ) from error
    if not self._meshes:
      raise AssetError(f"{path.name!r} holds no polygon mesh.")
    times = [
      times
      for mesh in self._meshes
      for times in (mesh.times, *(times for _, times in mesh.parents))
      if len(times) > 1
    ]
    if not times:
      raise AssetError(f"{path.name!r} has no animation.")
    self.start = min(float(t[0]) for t in times)
    self.end = max(float(t[-1]) for t in times)
    self.left_out: tuple[asset_files.LeftOut, ...] = ()
    self.num_meshes = len(self._meshes)

  def evaluate(self, times: Sequence[float]) -> deforming_mesh.DeformingMesh:
    """The meshes at times, in seconds after the first sample.

    Raises:
      AssetError: Topology changes, positions are not finite, or their number
        exceeds the limits.
    """
    frames = (self._frame(self.start + float(time)) for time in times)
    return polygons.join_frames(frames, self.limits.decoded_bytes)

  def _find(self, top: "Abc.IObject") -> list[_Mesh]:
    """All visible meshes, in the order of the archive."""
    Abc, AbcGeom = _alembic()
    meshes: list[_Mesh] = []
    waiting, seen = [(top, ())], 0
    while waiting:
      node, parents = waiting.pop()
      seen += 1
      if seen > self.limits.nodes:
        raise AssetError(
          f"the archive has more than {self.limits.nodes:,} objects."
        )
      header, existing = node.getHeader(), Abc.WrapExistingFlag.kWrapExisting
      hidden = AbcGeom.ObjectVisibility.kVisibilityHidden
      if AbcGeom.GetVisibility(node, Abc.ISampleSelector(0.0)) == hidden:
        continue
      if AbcGeom.IXform.matches(header):
        schema = AbcGeom.IXform(node, existing).getSchema()
        inherited = schema.getInheritsXforms(Abc.ISampleSelector(0.0))
        own = (schema, self._sample_times(schema))
        parents = (*(parents if inherited else ()), own)
      for kind in (AbcGeom.IPolyMesh, AbcGeom.ISubD):
        if kind.matches(header):
          schema = kind(node, existing).getSchema()
          meshes.append(_Mesh(schema, self._sample_times(schema), parents))
      children = [node.getChild(i) for i in range(node.getNumChildren())]
      waiting += [(child, parents) for child in reversed(children)]
    return meshes

  def _sample_times(
    self,
    schema: "_Schema",
  ) -> np.ndarray:
    count = schema.getNumSamples()
    if count > self.limits.keys:
      raise AssetError(f"an object has more than {self.limits.keys:,} samples.")
    sampling = schema.getTimeSampling()
    return np.array([sampling.getSampleTime(i) for i in range(count)])

  def _frame(self, time: float) -> tuple[np.ndarray, np.ndarray]:
    vertices, faces, count = [], [], 0
    for mesh in self._meshes:
      points, triangles = _polygons(mesh, time, self._faces)
      count += len(points)
      if count > self.limits.vertices:
        raise AssetError(
          f"the archive has more than {self.limits.vertices:,} vertices."
        )
      for schema, times in reversed(mesh.parents):
        matrix = _matrix(schema, times, time)
        points = points @ matrix[:3, :3] + matrix[3, :3]
      vertices.append(points)
      faces.append(triangles[:, ::-1] + (count - len(points)))
    return np.concatenate(vertices), np.concatenate(faces)


def _polygons(
  mesh: _Mesh, time: float, faces: polygons.Faces
) -> tuple[np.ndarray, np.ndarray]:
  """Points float64 [V, 3] and triangles of a mesh at a time."""
  if not len(mesh.times):
    return np.zeros((0, 3)), np.zeros((0, 3), np.int32)
  before, after, share = _around(mesh.times, time)
  sample = _sample(mesh.schema, mesh.times[before])
  points = _array(sample.getPositions(), np.float64).reshape(-1, 3)
  triangles = faces.triangles(
    id(mesh),
    _array(sample.getFaceCounts(), np.int64),
    _array(sample.getFaceIndices(), np.int64),
    points,
  )
  if share:
    later = _sample(mesh.schema, mesh.times[after]).getPositions()
    later = _array(later, np.float64)
    if later.size != points.size:
      raise AssetError("the faces change over time; no point can be followed.")
    points = (1 - share) * points + share * later.reshape(-1, 3)
  return points, triangles


def _matrix(
  schema: "AbcGeom.IXformSchema", times: np.ndarray, time: float
) -> np.ndarray:
  """A transform at a time, for row vectors [4, 4]."""
  if not len(times):
    return np.eye(4)
  before, after, share = _around(times, time)
  first = _array4(_sample(schema, times[before]).getMatrix())
  if not share:
    return first
  second = _array4(_sample(schema, times[after]).getMatrix())
  result = (1 - share) * first + share * second
  turns, stretches = zip(*(_polar(m[:3, :3]) for m in (first, second)))
  turn = rotations.Slerp([0, 1], rotations.Rotation.from_matrix(turns))(share)
  stretch = (1 - share) * stretches[0] + share * stretches[1]
  result[:3, :3] = stretch @ turn.as_matrix()
  return result


def _polar(linear: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Polar decomposition, matrix = stretch @ rotation: (rotation, stretch)."""
  if not np.isfinite(linear).all():
    raise AssetError("a transform is not finite.")
  left, sizes, right = np.linalg.svd(linear)
  turn = left @ right
  if np.linalg.det(turn) < 0:  # A reflection belongs to the stretch.
    turn, sizes = -turn, -sizes
  return turn, left @ np.diag(sizes) @ left.T


def _around(times: np.ndarray, time: float) -> tuple[int, int, float]:
  """Samples before and after a time, and the weight of the later one."""
  after = int(np.clip(np.searchsorted(times, time), 0, len(times) - 1))
  before = max(after - 1, 0)
  span = times[after] - times[before]
  share = float(np.clip((time - times[before]) / span, 0, 1)) if span > 0 else 0
  return (after, after, 0.0) if share == 1 else (before, after, share)


def _sample(
  schema: "_Schema",
  time: float,
) -> "AbcGeom.XformSample | AbcGeom.IPolyMeshSchemaSample":
  """Reads the sample at a time, given as a float for the bindings to accept."""
  Abc, _ = _alembic()
  try:
    return schema.getValue(Abc.ISampleSelector(float(time)))
  except RuntimeError as error:
    raise AssetError(f"a sample cannot be read: {str(error)[:200]}") from error


def _array(
  values: "imath.V3fArray | imath.IntArray | None", dtype: type
) -> np.ndarray:
  return np.zeros(0, dtype) if values is None else np.array(values, dtype)


def _array4(matrix: "imath.M44d") -> np.ndarray:
  return np.array([[matrix[i][j] for j in range(4)] for i in range(4)])
