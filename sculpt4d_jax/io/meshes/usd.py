"""Writes a mesh sequence as one USD file with time samples.

One mesh prim has time samples of points and normals, and of faces if these
change; constant faces are stored once. If all frames have one length, frame i
is time code i, and the stage plays `fps` time codes per second. Otherwise the
stage plays 24 time codes per second, each frame is at its start time, and
frames too short for a player's steps are lengthened. USD interpolates points
linearly between frames of one topology, and holds a frame where the number of
points changes. `.usda` is text, `.usdc` binary, `.usdz` the package that phones
open.

Needs the package usd-core, imported only here.
"""

from collections.abc import Iterator, Sequence
import contextlib
import errno
import math
import os
import pathlib
import tempfile
import types
from typing import TYPE_CHECKING, Any

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths
from sculpt4d_jax.io import usd_modules
from sculpt4d_jax.io.assets import usd as asset_usd
from sculpt4d_jax.io.meshes import frame_times
from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.io.meshes import ply_obj

if TYPE_CHECKING:
  from pxr import Usd
  from pxr import UsdGeom

TriangleMesh = mesh_lib.TriangleMesh
PathLike = str | os.PathLike

SUFFIXES = (".usdc", ".usda", ".usdz")
_MESH_PATH = "/Sculpt4D/Mesh"


def write_animated_usd(
  path: paths.PathLike,
  meshes: Sequence[TriangleMesh],
  fps: float,
  *,
  times: Sequence[float] | None = None,
) -> None:
  """Writes a mesh sequence as USD.

  Args:
    path: Output file; the suffix .usda, .usdc or .usdz chooses the format.
    meshes: One mesh a frame; topologies may differ and frames may be empty.
    fps: Frames a second.
    times: Start of each frame, seconds, increasing from 0; None spaces them by
      1 / fps.

  Raises:
    ValueError: There are no frames, the rate or the times are invalid, or a
      position is not finite.
    ImportError: usd-core is not installed.
    OutputError: The file cannot be written.
  """
  glb.check_sequence(path, meshes, fps, SUFFIXES)
  codes, rate = time_codes(len(meshes), fps, times)
  pxr = usd_modules.load()
  path = paths.of(path)
  with atomic.atomic_path(path) as temporary:
    stage = _build_stage(pxr, meshes, codes, rate)
    if path.suffix.lower() == ".usdz":
      _export_package(pxr, stage, temporary)
    else:
      export_layer(pxr, stage, temporary)


def read_animated_usd(path: PathLike) -> tuple[list[TriangleMesh], float]:
  """Reads the first mesh of a USD file at each of its time samples.

  Args:
    path: A USD file with one animated triangle mesh.

  Returns:
    One mesh a time sample, and the time codes a second.

  Raises:
    ValueError: The file is missing or damaged, has no mesh with time samples,
      or has faces that are not triangles.
    ImportError: usd-core is not installed.
  """
  pxr = usd_modules.load()
  if not pathlib.Path(path).is_file():
    raise UserError(f"there is no USD file at {os.fspath(path)}.")
  try:
    stage = pxr.Usd.Stage.Open(os.fspath(path))
  except pxr.Tf.ErrorException as error:
    raise UserError(
      f"{path} is not a readable USD file: {asset_usd.first_reason(error)}"
    ) from error
  prims = [prim for prim in stage.Traverse() if prim.IsA(pxr.UsdGeom.Mesh)]
  if not prims:
    raise UserError(f"{path} holds no mesh.")
  mesh = pxr.UsdGeom.Mesh(prims[0])
  times = mesh.GetPointsAttr().GetTimeSamples()
  if not times:
    raise UserError(f"{path}: the mesh {prims[0].GetPath()} is not animated.")
  meshes = [_read_sample(mesh, time, path) for time in times]
  return meshes, stage.GetTimeCodesPerSecond()


def is_mesh_sequence(path: PathLike) -> bool:
  """Whether a USD file holds a mesh a frame as `write_animated_usd` writes it.

  Raises:
    ValueError: The file is missing or damaged.
    ImportError: usd-core is not installed.
  """
  pxr = usd_modules.load()
  if not pathlib.Path(path).is_file():
    raise UserError(f"there is no USD file at {os.fspath(path)}.")
  try:
    stage = pxr.Usd.Stage.Open(os.fspath(path))
  except pxr.Tf.ErrorException as error:
    raise UserError(
      f"{path} is not a readable USD file: {asset_usd.first_reason(error)}"
    ) from error
  return bool(stage.GetPrimAtPath(_MESH_PATH))


def time_codes(
  num_frames: int, fps: float, times: Sequence[float] | None
) -> tuple[list[float], float]:
  """Time codes of all frame starts and the end, and codes per second."""
  edges = frame_times.frame_edges(num_frames, fps, times)
  if frame_times.is_even(edges):
    return [float(index) for index in range(num_frames + 1)], float(fps)
  rate = frame_times.PLAYER_RATE
  codes = rate * frame_times.for_players(edges, rate)
  whole = np.rint(codes)
  # An integer code must not be off by a rounding error.
  return np.where(np.abs(codes - whole) < 1e-6, whole, codes).tolist(), rate


def new_stage(
  pxr: types.SimpleNamespace, codes: Sequence[float], rate: float
) -> Any:
  """An empty stage; `codes` has one more entry than there are frames."""
  stage = pxr.Usd.Stage.CreateInMemory()
  pxr.UsdGeom.SetStageUpAxis(stage, pxr.UsdGeom.Tokens.y)
  pxr.UsdGeom.SetStageMetersPerUnit(stage, 1.0)
  stage.SetTimeCodesPerSecond(rate)
  stage.SetFramesPerSecond(rate)
  stage.SetStartTimeCode(0)
  # The last integer code at which the last frame is visible.
  stage.SetEndTimeCode(max(codes[-2], math.ceil(codes[-1]) - 1))
  return stage


def _build_stage(
  pxr: types.SimpleNamespace,
  meshes: Sequence[TriangleMesh],
  codes: Sequence[float],
  rate: float,
) -> Any:
  stage = new_stage(pxr, codes, rate)
  root = pxr.UsdGeom.Xform.Define(stage, "/Sculpt4D")
  stage.SetDefaultPrim(root.GetPrim())
  mesh = pxr.UsdGeom.Mesh.Define(stage, _MESH_PATH)
  mesh.CreateSubdivisionSchemeAttr(pxr.UsdGeom.Tokens.none)
  mesh.CreateDoubleSidedAttr(True)
  mesh.SetNormalsInterpolation(pxr.UsdGeom.Tokens.vertex)
  # Constant faces are stored once, so players need not read them in every frame
  # and importers recognise one deforming mesh.
  fixed = not meshes[0].is_empty and all(
    np.array_equal(frame.faces, meshes[0].faces) for frame in meshes
  )
  if fixed:
    _write_faces(pxr, mesh, meshes[0], pxr.Usd.TimeCode.Default())
  for code, frame in zip(codes, meshes):
    if not fixed:
      _write_faces(pxr, mesh, frame, code)
    _write_sample(pxr, mesh, code, frame)
  _bind_clay(pxr, stage, mesh)
  return stage


def _write_faces(
  pxr: types.SimpleNamespace, mesh: Any, frame: TriangleMesh, time: Any
) -> None:
  counts = np.full(frame.num_faces, 3, np.int32)
  indices = np.ascontiguousarray(frame.faces.reshape(-1))
  array = pxr.Vt.IntArray.FromNumpy
  mesh.GetFaceVertexIndicesAttr().Set(array(indices), time)
  mesh.GetFaceVertexCountsAttr().Set(array(counts), time)


def _write_sample(
  pxr: types.SimpleNamespace, mesh: Any, time: float, frame: TriangleMesh
) -> None:
  vt = pxr.Vt
  if frame.is_empty:
    frame = ply_obj.empty_mesh()
    extent = np.zeros((2, 3), np.float32)
  else:
    extent = np.stack([frame.vertices.min(axis=0), frame.vertices.max(axis=0)])
  normals = glb.unit_normals(frame)
  mesh.GetPointsAttr().Set(vt.Vec3fArray.FromNumpy(frame.vertices), time)
  mesh.GetNormalsAttr().Set(vt.Vec3fArray.FromNumpy(normals), time)
  mesh.GetExtentAttr().Set(vt.Vec3fArray.FromNumpy(extent), time)


def _bind_clay(
  pxr: types.SimpleNamespace, stage: "Usd.Stage", mesh: "UsdGeom.Mesh"
) -> None:
  types_ = pxr.Sdf.ValueTypeNames
  material = pxr.UsdShade.Material.Define(stage, "/Sculpt4D/Clay")
  shader = pxr.UsdShade.Shader.Define(stage, "/Sculpt4D/Clay/Surface")
  shader.CreateIdAttr("UsdPreviewSurface")
  shader.CreateInput("diffuseColor", types_.Color3f).Set((0.62, 0.58, 0.54))
  shader.CreateInput("roughness", types_.Float).Set(0.75)
  material.CreateSurfaceOutput().ConnectToSource(
    shader.ConnectableAPI(), "surface"
  )
  pxr.UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)


def export_layer(
  pxr: types.SimpleNamespace, stage: "Usd.Stage", path: pathlib.Path
) -> None:
  """Writes a stage as one layer; raises OSError if that fails."""
  with usd_errors(pxr):
    if not stage.GetRootLayer().Export(os.fspath(path)):
      raise OSError(errno.EIO, "USD could not write the file")


def _export_package(
  pxr: types.SimpleNamespace, stage: "Usd.Stage", path: pathlib.Path
) -> None:
  # The name inside the package must not depend on temporary names.
  with tempfile.TemporaryDirectory(dir=path.parent, prefix=".usdz-") as folder:
    layer = pathlib.Path(folder) / "sculpt4d.usdc"
    export_layer(pxr, stage, layer)
    asset = pxr.Sdf.AssetPath(os.fspath(layer))
    with usd_errors(pxr):
      if not pxr.UsdUtils.CreateNewUsdzPackage(asset, os.fspath(path)):
        raise OSError(errno.EIO, "USD could not write the package")


@contextlib.contextmanager
def usd_errors(pxr: types.SimpleNamespace) -> Iterator[None]:
  """Turns USD's errors of failed writes into the OSError that caused them."""
  try:
    yield
  except pxr.Tf.ErrorException as error:
    text = str(error)
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
      if os.strerror(number) in text:
        raise OSError(number, os.strerror(number)) from error
    first = (text.strip().splitlines() or ["unknown"])[0]
    raise OSError(errno.EIO, f"USD says {first}") from error


def _read_sample(
  mesh: "UsdGeom.Mesh", time: float, path: PathLike
) -> TriangleMesh:
  counts = np.array(mesh.GetFaceVertexCountsAttr().Get(time), np.int32)
  if not (counts == 3).all():
    raise UserError(
      f"{path}: the faces at time code {time:g} are not all triangles."
    )
  points = np.array(mesh.GetPointsAttr().Get(time), np.float32)
  indices = np.array(mesh.GetFaceVertexIndicesAttr().Get(time), np.int32)
  return TriangleMesh(points.reshape(-1, 3), indices.reshape(-1, 3))
