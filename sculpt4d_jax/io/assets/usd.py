"""Animated USD files as deforming meshes.

All meshes of a stage that are seen are joined, in world space and with y up:
animated points, animated transforms, instances, and skeletons with their skins
and blend shapes (UsdSkel), which USD itself bakes. Polygons become triangle
fans; subdivision surfaces are read as their cages; point instancers are left
out. Layers may refer to other files of the same folder only.

USD comes from the package usd-core, which only these functions import.
"""

from collections.abc import Sequence
import os
import pathlib

import numpy as np

from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import polygons

AssetError = asset_files.AssetError
PathLike = str | os.PathLike

SUFFIXES = (".usd", ".usda", ".usdc", ".usdz")
_MAX_LAYERS = 64


def _pxr():
  try:
    from pxr import Sdf
    from pxr import Tf
    from pxr import Usd
    from pxr import UsdGeom
    from pxr import UsdSkel
  except ImportError as error:
    raise MissingPackageError(
      "USD files need the package usd-core: pip install 'sculpt4d-jax[usd]'"
      " or pip install usd-core."
    ) from error
  return Sdf, Tf, Usd, UsdGeom, UsdSkel


class UsdAsset:
  """An open stage.

  Attributes:
    start: First time code.
    end: Last one.
    rate: Time codes a second.
  """

  def __init__(
    self,
    path: PathLike,
    limits: asset_files.AssetLimits = asset_files.DEFAULT_LIMITS,
  ):
    """Opens a USD file and bakes its skins.

    Raises:
      AssetError: It cannot be read, refers to files elsewhere, or has no
        animation.
      ImportError: usd-core is not installed.
    """
    _, Tf, Usd, UsdGeom, UsdSkel = _pxr()
    path = pathlib.Path(path)
    self.limits = limits
    if path.stat().st_size > limits.file_bytes:
      raise AssetError(f"{path.name!r} is larger than allowed.")
    try:
      _check_layers(path, path.parent)
      self._stage = Usd.Stage.Open(os.fspath(path))
      # What is written for this reading stays in memory.
      session = self._stage.GetSessionLayer()
      # Or USD would scale the times of baked points between the two layers.
      session.timeCodesPerSecond = self._stage.GetTimeCodesPerSecond()
      self._stage.SetEditTarget(session)
      self._dissolve_instances()
      UsdSkel.BakeSkinning(self._stage.Traverse())
    except Tf.ErrorException as error:
      raise AssetError(
        f"{path.name!r} is not a readable USD file: {str(error)[:200]}"
      ) from error
    self._prims = [p for p in self._stage.Traverse() if _is_seen(UsdGeom, p)]
    if not self._prims:
      raise AssetError(f"{path.name!r} holds no mesh.")
    samples = sorted(self._time_samples(UsdGeom))
    if len(samples) < 2:
      raise AssetError(f"{path.name!r} has no animation.")
    self.start, self.end = samples[0], samples[-1]
    self.rate = float(self._stage.GetTimeCodesPerSecond()) or 24.0

  def evaluate(self, times: Sequence[float]) -> deforming_mesh.DeformingMesh:
    """The meshes at times, in seconds after the first time code.

    Raises:
      AssetError: Topology changes, positions are not finite, or there are more
        of them than allowed.
    """
    _, _, _, UsdGeom, _ = _pxr()
    codes = (self.start + float(time) * self.rate for time in times)
    frames = (self._frame(UsdGeom, code) for code in codes)
    return polygons.join_frames(frames, self.limits.decoded_bytes)

  def _dissolve_instances(self) -> None:
    """Makes instances separate prims: a skin can only be baked on those."""
    found = True
    while found:
      found, count = [], 0
      for prim in self._stage.Traverse():
        count += 1
        if count > self.limits.nodes:
          raise AssetError(
            f"the stage has more than {self.limits.nodes:,} prims."
          )
        if prim.IsInstance():
          found.append(prim)
      for prim in found:
        prim.SetInstanceable(False)

  def _time_samples(self, UsdGeom) -> set[float]:
    times = set()
    for prim in self._prims:
      times.update(UsdGeom.Mesh(prim).GetPointsAttr().GetTimeSamples())
      while prim and not prim.IsPseudoRoot():
        if prim.IsA(UsdGeom.Xformable):
          times.update(UsdGeom.Xformable(prim).GetTimeSamples())
        prim = prim.GetParent()
    return times

  def _frame(self, UsdGeom, code: float) -> tuple[np.ndarray, np.ndarray]:
    cache = UsdGeom.XformCache(code)
    vertices, faces, count = [], [], 0
    for prim in self._prims:
      mesh = UsdGeom.Mesh(prim)
      points = np.asarray(mesh.GetPointsAttr().Get(code) or [], np.float64)
      points = points.reshape(-1, 3)
      transform = np.asarray(cache.GetLocalToWorldTransform(prim))
      vertices.append(points @ transform[:3, :3] + transform[3, :3])
      triangles = _triangles(mesh, code, len(points))
      if mesh.GetOrientationAttr().Get() == UsdGeom.Tokens.leftHanded:
        triangles = triangles[:, ::-1]
      faces.append(triangles + count)
      count += len(points)
      if count > self.limits.vertices:
        raise AssetError(
          f"the stage has more than {self.limits.vertices:,} vertices."
        )
    vertices = np.concatenate(vertices)
    if UsdGeom.GetStageUpAxis(self._stage) == UsdGeom.Tokens.z:
      x, y, z = vertices.T
      vertices = np.stack([x, z, -y], axis=1)
    return vertices.astype(np.float32), np.concatenate(faces)


def _is_seen(UsdGeom, prim) -> bool:
  """Whether a prim is a mesh of the final picture."""
  if not prim.IsA(UsdGeom.Mesh):
    return False
  image, tokens = UsdGeom.Imageable(prim), UsdGeom.Tokens
  if image.ComputePurpose() not in (tokens.default_, tokens.render):
    return False
  return image.ComputeVisibility() != tokens.invisible


def _triangles(mesh, code: float, num_points: int) -> np.ndarray:
  counts = np.asarray(mesh.GetFaceVertexCountsAttr().Get(code) or [], np.int64)
  corners = np.asarray(
    mesh.GetFaceVertexIndicesAttr().Get(code) or [], np.int64
  )
  return polygons.fan_triangles(counts, corners, num_points)


def _check_layers(path: pathlib.Path, folder: pathlib.Path) -> None:
  """Refuses layers that refer to files outside of the folder."""
  Sdf = _pxr()[0]
  if path.suffix.lower() == ".usdz":
    return  # A package resolves names within itself.
  waiting, seen = [path], set()
  while waiting:
    layer_path = waiting.pop().resolve()
    if layer_path in seen or not layer_path.is_file():
      continue
    seen.add(layer_path)
    if len(seen) > _MAX_LAYERS:
      raise AssetError(f"the stage has more than {_MAX_LAYERS} layers.")
    layer = Sdf.Layer.OpenAsAnonymous(os.fspath(layer_path))
    if layer is None:
      raise AssetError(f"{layer_path.name!r} is not a readable USD layer.")
    names = layer.GetCompositionAssetDependencies()
    for name in [*names, *layer.GetExternalAssetDependencies()]:
      if name:
        target = asset_files.path_inside(folder, name)
        if target.suffix.lower() in SUFFIXES:
          waiting.append(target)
    _refuse_value_clips(layer)


def _refuse_value_clips(layer) -> None:
  waiting = list(layer.rootPrims)
  while waiting:
    prim = waiting.pop()
    if "clips" in prim.ListInfoKeys():
      raise AssetError("value clips are not supported; flatten the stage.")
    waiting += list(prim.nameChildren)
