"""Animated USD files as deforming meshes.

All visible meshes of a stage are joined in world space with y up: animated
points, animated transforms, instances, skeletons with skins and blend shapes
(UsdSkel), and parametric shapes such as cubes and spheres. Subdivision surfaces
are read as their control cages. Meshes without corresponding points over time
are left out and reported: meshes that appear or vanish, point instancers,
patches. Layers may only refer to files of the same folder.

The animation lasts from the first key to the last one, within the stage's start
and end codes where it has any.

Needs the package usd-core, imported only here.
"""

from collections.abc import Iterator, Sequence
import contextlib
import os
import pathlib
import re
import types
from typing import TYPE_CHECKING

import numpy as np

from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.io import usd_modules
from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import polygons
from sculpt4d_jax.io.assets import usd_shapes
from sculpt4d_jax.io.assets import usd_skins

if TYPE_CHECKING:
  from pxr import Sdf
  from pxr import Usd
  from pxr import UsdGeom

AssetError = asset_files.AssetError
PathLike = str | os.PathLike

SUFFIXES = (".usd", ".usda", ".usdc", ".usdz")
_MAX_LAYERS = 64
_MAX_REASON = 200  # Characters of a message.


class UsdAsset:
  """An open stage.

  Attributes:
    start: First time code.
    end: Last one.
    rate: Time codes a second.
    left_out: Meshes that are no part of the object.
    num_meshes: Meshes of the stage, those among them.
  """

  def __init__(
    self,
    path: PathLike,
    limits: asset_files.AssetLimits = asset_files.DEFAULT_LIMITS,
  ):
    """Opens a USD file.

    Raises:
      AssetError: It cannot be read, refers to files elsewhere, or has no
        animation.
      ImportError: usd-core is not installed.
    """
    path = pathlib.Path(path)
    self.limits = limits
    self._name = path.name
    if path.stat().st_size > limits.file_bytes:
      raise AssetError(f"{path.name!r} is larger than allowed.")
    with self._as_asset_errors():
      _check_layers(path, path.parent)
      self._stage = usd_modules.load().Usd.Stage.Open(os.fspath(path))
      # Edits for this reading go to an in-memory layer.
      session = self._stage.GetSessionLayer()
      self._stage.SetEditTarget(session)
      self._dissolve_instances()
      self._skins = usd_skins.Skins(self._stage)
      self._find_meshes()

  @contextlib.contextmanager
  def _as_asset_errors(self) -> Iterator[None]:
    """Turns USD's exceptions into one sentence."""
    Tf = usd_modules.load().Tf
    try:
      yield
    except Tf.ErrorException as error:
      raise AssetError(
        f"{self._name!r} is not a readable USD file: {first_reason(error)}"
      ) from error

  def _find_meshes(self) -> None:
    """Finds what is part of the object, and how long it moves."""
    UsdGeom = usd_modules.load().UsdGeom
    self._faces = polygons.Faces()
    self._prims, left_out = [], []
    for prim in self._stage.Traverse():
      reason = _reason_to_leave_out(UsdGeom, prim)
      if reason is None:
        self._prims.append(prim)
      elif reason:
        name = str(prim.GetPath())
        left_out.append(asset_files.LeftOut(name, None, reason))
    self.left_out = tuple(left_out)
    self.num_meshes = len(self._prims) + len(left_out)
    if not self._prims and left_out:
      raise AssetError(f"no mesh can be used: {left_out[0]}.")
    if not self._prims:
      raise AssetError(f"{self._name!r} holds no mesh.")
    samples = sorted(self._time_samples(UsdGeom))
    if len(samples) < 2:
      raise AssetError(f"{self._name!r} has no animation.")
    self.start, self.end = samples[0], samples[-1]
    if self._stage.HasAuthoredTimeCodeRange():
      start = max(self.start, self._stage.GetStartTimeCode())
      end = min(self.end, self._stage.GetEndTimeCode())
      if start < end:
        self.start, self.end = start, end
    self.rate = float(self._stage.GetTimeCodesPerSecond()) or 24.0

  def evaluate(self, times: Sequence[float]) -> deforming_mesh.DeformingMesh:
    """The meshes at times, in seconds after the first time code.

    Raises:
      AssetError: Topology changes, positions are not finite, or their number
        exceeds the limits.
    """
    UsdGeom = usd_modules.load().UsdGeom
    codes = (self.start + float(time) * self.rate for time in times)
    frames = (self._frame(UsdGeom, code) for code in codes)
    with self._as_asset_errors():
      return polygons.join_frames(frames, self.limits.decoded_bytes)

  def _dissolve_instances(self) -> None:
    """Makes instances editable prims, as each may follow another skeleton."""
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

  def _time_samples(self, UsdGeom: types.ModuleType) -> set[float]:
    times = set()
    for prim in self._prims:
      if prim.IsA(UsdGeom.Mesh):
        times.update(UsdGeom.Mesh(prim).GetPointsAttr().GetTimeSamples())
      else:
        for attribute in prim.GetAuthoredAttributes():
          times.update(attribute.GetTimeSamples())
      if prim.GetPath() in self._skins.prims:
        times.update(self._skins.times(prim.GetPath()))
      while prim and not prim.IsPseudoRoot():
        if prim.IsA(UsdGeom.Xformable):
          times.update(UsdGeom.Xformable(prim).GetTimeSamples())
        prim = prim.GetParent()
    return times

  def _frame(
    self, UsdGeom: types.ModuleType, code: float
  ) -> tuple[np.ndarray, np.ndarray]:
    cache = UsdGeom.XformCache(code)
    vertices, faces, count = [], [], 0
    for prim in self._prims:
      points, triangles = self._surface(UsdGeom, prim, code, cache)
      vertices.append(points)
      is_left = UsdGeom.Gprim(prim).GetOrientationAttr().Get()
      if is_left == UsdGeom.Tokens.leftHanded:
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
    return vertices, np.concatenate(faces)

  def _surface(
    self,
    UsdGeom: types.ModuleType,
    prim: "Usd.Prim",
    code: float,
    cache: "UsdGeom.XformCache",
  ) -> tuple[np.ndarray, np.ndarray]:
    """World positions [V, 3] and triangles of a prim at a time code."""
    transform = np.asarray(cache.GetLocalToWorldTransform(prim))
    if not prim.IsA(UsdGeom.Mesh):
      points, triangles = usd_shapes.triangles(UsdGeom, prim, code)
      return points @ transform[:3, :3] + transform[3, :3], triangles
    mesh = UsdGeom.Mesh(prim)
    array = mesh.GetPointsAttr().Get(code)
    points = np.array(array or [], np.float64).reshape(-1, 3)
    triangles = self._faces.triangles(
      prim.GetPath(),
      np.asarray(mesh.GetFaceVertexCountsAttr().Get(code) or [], np.int64),
      np.asarray(mesh.GetFaceVertexIndicesAttr().Get(code) or [], np.int64),
      points,
    )
    if prim.GetPath() in self._skins.prims:
      points = self._skins.points(prim.GetPath(), array, code, cache)
    else:
      points = points @ transform[:3, :3] + transform[3, :3]
    return points, triangles


def first_reason(error: Exception) -> str:
  """The first reason of an error of USD's, as a part of a sentence.

  USD lists every function that the error passed, with its source file; the
  reason is in quotes behind it.
  """
  found = re.search(r" : '(.*?)'\s*(?:\n\tError in |$)", str(error), re.DOTALL)
  text = " ".join((found[1] if found else str(error)).split())
  return text[:_MAX_REASON] + ("..." if len(text) > _MAX_REASON else "")


def _reason_to_leave_out(
  UsdGeom: types.ModuleType, prim: "Usd.Prim"
) -> str | None:
  """Why a prim is left out; None if it is used, "" if no report is needed."""
  is_mesh = prim.IsA(UsdGeom.Mesh) or prim.GetTypeName() in usd_shapes.KINDS
  is_other = prim.GetTypeName() in ("PointInstancer", "NurbsPatch")
  if not is_mesh and not is_other:
    return ""
  image, tokens = UsdGeom.Imageable(prim), UsdGeom.Tokens
  if image.ComputePurpose() not in (tokens.default_, tokens.render):
    return ""
  if is_other:
    return f"is a {prim.GetTypeName()}, which is not read"
  changes = _visibility_samples(UsdGeom, prim)
  if not changes:
    hidden = image.ComputeVisibility() == tokens.invisible
    return "" if hidden else None
  seen = {image.ComputeVisibility(code) != tokens.invisible for code in changes}
  if seen == {True}:
    return None
  return "appears or vanishes" if True in seen else ""


def _visibility_samples(
  UsdGeom: types.ModuleType, prim: "Usd.Prim"
) -> set[float]:
  """Time codes at which a prim or what it hangs on is shown or hidden."""
  codes = set()
  while prim and not prim.IsPseudoRoot():
    if prim.IsA(UsdGeom.Imageable):
      visibility = UsdGeom.Imageable(prim).GetVisibilityAttr()
      codes.update(visibility.GetTimeSamples())
    prim = prim.GetParent()
  return codes


def _check_layers(path: pathlib.Path, folder: pathlib.Path) -> None:
  """Rejects layers that refer to files outside of the folder."""
  Sdf = usd_modules.load().Sdf
  if path.suffix.lower() == ".usdz":
    return  # A package resolves its names internally.
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


def _refuse_value_clips(layer: "Sdf.Layer") -> None:
  waiting = list(layer.rootPrims)
  while waiting:
    prim = waiting.pop()
    if "clips" in prim.ListInfoKeys():
      raise AssetError("value clips are not supported; flatten the stage.")
    waiting += list(prim.nameChildren)
