"""Writes an animated, textured asset as USD, with time samples or UsdSkel.

Each topology is one mesh prim, visible in its frames; only its points change
over time. Texture coordinates belong to the corners of faces, so vertices at
seams are not split. The texture is a PNG next to a .usda or .usdc file, named
after it, and inside of a .usdz package. Colours that include the video's
lighting are emissive; others are diffuse.

With a rig, the mesh stays in its rest pose and a skeleton moves it: joints,
weights and a SkelAnimation of translations and rotations, as Unreal and Houdini
import it.

Needs the package usd-core, imported only here.
"""

from collections.abc import Sequence
import io
import os
import pathlib
import tempfile
import types
from typing import Any

import numpy as np
from PIL import Image

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import bone_tree
from sculpt4d_jax.geometry import skinning
from sculpt4d_jax.geometry import textured_mesh
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import usd_modules
from sculpt4d_jax.io.meshes import textured_glb
from sculpt4d_jax.io.meshes import usd

TexturedMesh = textured_mesh.TexturedMesh
PathLike = str | os.PathLike

_ROOT = "/Sculpt4D"
_CLAY = (0.62, 0.58, 0.54)


def write_points(
  path: PathLike,
  parts: Sequence[TexturedMesh],
  fps: float,
  *,
  times: Sequence[float] | None = None,
) -> list[pathlib.Path]:
  """Writes an asset whose points are sampled in time.

  Args:
    path: Output file; the suffix .usda, .usdc or .usdz chooses the format.
    parts: Meshes of consecutive runs of frames, one topology each.
    fps: Frames a second.
    times: Start of each frame, seconds, if frames are of unequal length.

  Returns:
    The files: the path, and the textures next to it.

  Raises:
    ValueError: The suffix is wrong, the parts do not cover the clip, or a
      position is not finite.
    ImportError: usd-core is not installed.
    OutputError: A file cannot be written.
  """
  num_frames = _check(path, parts, fps)
  codes, rate = usd.time_codes(num_frames, fps, times)
  pxr = usd_modules.load()
  stage = usd.new_stage(pxr, codes, rate)
  root = pxr.UsdGeom.Xform.Define(stage, _ROOT)
  stage.SetDefaultPrim(root.GetPrim())
  textures = {}
  for index, part in enumerate(parts):
    mesh = _define_mesh(pxr, stage, f"{_ROOT}/Mesh_{index}", part)
    for frame, points in enumerate(part.mesh.vertices):
      _set_points(pxr, mesh, points, codes[part.first_frame + frame])
    if len(parts) > 1:
      _set_visibility(pxr, mesh, part, codes)
    textures |= _bind(pxr, stage, mesh, part, index, path)
  return _export(pxr, stage, pathlib.Path(path), textures)


def write_skeleton(
  path: PathLike,
  part: TexturedMesh,
  rig: bone_tree.Rig,
  fps: float,
  *,
  trajectory: np.ndarray | None = None,
  times: Sequence[float] | None = None,
) -> list[pathlib.Path]:
  """Writes an asset moved by a skeleton.

  Args:
    path: Output file, as for `write_points`.
    part: The mesh; its topology and colours are used, its motion is the rig's.
    rig: The bones, in the mesh's frames.
    fps: Frames a second.
    trajectory: The global motion that was removed before the bones were fitted,
      rigid [F, 4, 4]; it becomes part of the root bone's motion.
    times: Start of each frame, seconds, if frames are of unequal length.

  Returns:
    The files.

  Raises:
    ValueError: See `write_points`; or the rig has other frames or vertices.
    ImportError: usd-core is not installed.
    OutputError: A file cannot be written.
  """
  num_frames = _check(path, [part], fps)
  if (rig.skin.num_frames, len(rig.skin.rest)) != (
    num_frames,
    part.mesh.num_vertices,
  ):
    raise UserError(
      f"the rig has {rig.skin.num_frames} frames of {len(rig.skin.rest)}"
      f" vertices, the mesh {num_frames} of {part.mesh.num_vertices}."
    )
  codes, rate = usd.time_codes(num_frames, fps, times)
  pxr = usd_modules.load()
  stage = usd.new_stage(pxr, codes, rate)
  root = pxr.UsdSkel.Root.Define(stage, _ROOT)
  stage.SetDefaultPrim(root.GetPrim())
  skeleton = _define_skeleton(pxr, stage, rig)
  _define_animation(pxr, stage, skeleton, rig, trajectory, codes)
  mesh = _define_mesh(pxr, stage, f"{_ROOT}/Mesh", part)
  _set_points(pxr, mesh, rig.skin.rest, None)
  _bind_skin(pxr, mesh, skeleton, rig)
  moved = part.mesh.vertices
  box = np.stack([moved.min((0, 1)), moved.max((0, 1))])
  boundable = pxr.UsdGeom.Boundable(root.GetPrim())
  boundable.CreateExtentAttr(_vectors(pxr, box))
  textures = _bind(pxr, stage, mesh, part, 0, path)
  return _export(pxr, stage, pathlib.Path(path), textures)


def _check(path: PathLike, parts: Sequence[TexturedMesh], fps: float) -> int:
  suffix = pathlib.Path(path).suffix.lower()
  if suffix not in usd.SUFFIXES:
    raise UserError(
      f"{os.fspath(path)}: expected a file ending in"
      f" {' or '.join(usd.SUFFIXES)}, got {suffix or 'no suffix'!r}."
    )
  return textured_mesh.check_parts(parts, fps)


def _vectors(pxr: types.SimpleNamespace, values: np.ndarray) -> Any:
  return pxr.Vt.Vec3fArray.FromNumpy(np.ascontiguousarray(values, np.float32))


def _define_mesh(
  pxr: types.SimpleNamespace, stage: Any, path: str, part: TexturedMesh
) -> Any:
  mesh = pxr.UsdGeom.Mesh.Define(stage, path)
  mesh.CreateSubdivisionSchemeAttr(pxr.UsdGeom.Tokens.none)
  mesh.CreateDoubleSidedAttr(True)
  mesh.SetNormalsInterpolation(pxr.UsdGeom.Tokens.vertex)
  faces = np.ascontiguousarray(part.mesh.faces.reshape(-1))
  counts = np.full(part.mesh.num_faces, 3, np.int32)
  mesh.CreateFaceVertexIndicesAttr(pxr.Vt.IntArray.FromNumpy(faces))
  mesh.CreateFaceVertexCountsAttr(pxr.Vt.IntArray.FromNumpy(counts))
  primvars = pxr.UsdGeom.PrimvarsAPI(mesh)
  if part.atlas is not None:
    # USD's v starts at the bottom.
    uv = part.atlas.uv * [1, -1] + [0, 1]
    primvar = primvars.CreatePrimvar(
      "st",
      pxr.Sdf.ValueTypeNames.TexCoord2fArray,
      pxr.UsdGeom.Tokens.faceVarying,
    )
    primvar.Set(
      pxr.Vt.Vec2fArray.FromNumpy(np.ascontiguousarray(uv, np.float32))
    )
    corners = np.ascontiguousarray(part.atlas.faces.reshape(-1))
    primvar.SetIndices(pxr.Vt.IntArray.FromNumpy(corners))
  elif part.mesh.colours is not None:
    colours = mesh.CreateDisplayColorPrimvar(pxr.UsdGeom.Tokens.vertex)
    linear = textured_mesh.linear_colours(part.mesh.colours)
    colours.Set(_vectors(pxr, linear))
  return mesh


def _set_points(
  pxr: types.SimpleNamespace, mesh: Any, points: np.ndarray, code: float | None
) -> None:
  """Points, normals and extent at a time code, or at all times."""
  faces = np.array(mesh.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
  normals = textured_glb.pose_normals(points, faces)
  extent = np.stack([points.min(0), points.max(0)])
  for attribute, values in (
    (mesh.GetPointsAttr(), points),
    (mesh.GetNormalsAttr(), normals),
    (mesh.GetExtentAttr(), extent),
  ):
    values = _vectors(pxr, values)
    if code is None:
      attribute.Set(values)
    else:
      attribute.Set(values, code)


def _set_visibility(
  pxr: types.SimpleNamespace,
  mesh: Any,
  part: TexturedMesh,
  codes: Sequence[float],
) -> None:
  tokens = pxr.UsdGeom.Tokens
  visibility = mesh.CreateVisibilityAttr()
  keys = {0: tokens.invisible, part.first_frame: tokens.inherited}
  if part.last_frame + 2 < len(codes):
    keys[part.last_frame + 1] = tokens.invisible
  for frame, value in keys.items():
    visibility.Set(value, codes[frame])


def _joint_paths(rig: bone_tree.Rig) -> list[str]:
  """Joints by their ancestors: "bone_00/bone_01"."""
  paths: list[str] = []
  for name, parent in zip(rig.names, rig.parents):
    paths.append(name if parent < 0 else f"{paths[parent]}/{name}")
  return paths


def _define_skeleton(
  pxr: types.SimpleNamespace, stage: Any, rig: bone_tree.Rig
) -> Any:
  skeleton = pxr.UsdSkel.Skeleton.Define(stage, f"{_ROOT}/Skeleton")
  skeleton.CreateJointsAttr(_joint_paths(rig))
  matrix = pxr.Gf.Matrix4d
  bind = [matrix().SetTranslate(pxr.Gf.Vec3d(*joint)) for joint in rig.joints]
  steps = rig.joints - np.where(
    rig.parents[:, None] >= 0, rig.joints[rig.parents], 0
  )
  rest = [matrix().SetTranslate(pxr.Gf.Vec3d(*step)) for step in steps]
  skeleton.CreateBindTransformsAttr(pxr.Vt.Matrix4dArray(bind))
  skeleton.CreateRestTransformsAttr(pxr.Vt.Matrix4dArray(rest))
  return skeleton


def _define_animation(
  pxr: types.SimpleNamespace,
  stage: Any,
  skeleton: Any,
  rig: bone_tree.Rig,
  trajectory: np.ndarray | None,
  codes: Sequence[float],
) -> None:
  path = f"{_ROOT}/Skeleton/Animation"
  animation = pxr.UsdSkel.Animation.Define(stage, path)
  animation.CreateJointsAttr(_joint_paths(rig))
  ones = pxr.Vt.Vec3hArray([pxr.Gf.Vec3h(1, 1, 1)] * rig.num_bones)
  animation.CreateScalesAttr(ones)
  rotations, places = rig.locals()
  if trajectory is not None:
    rotations[:, 0] = trajectory[:, :3, :3] @ rotations[:, 0]
    places[:, 0] = (
      np.einsum("fij,fj->fi", trajectory[:, :3, :3], places[:, 0])
      + trajectory[:, :3, 3]
    )
  quaternions = np.stack(
    [
      textured_glb.continuous_quaternions(rotations[:, bone])
      for bone in range(rig.num_bones)
    ],
    axis=1,
  )
  turns, moves = (
    animation.CreateRotationsAttr(),
    animation.CreateTranslationsAttr(),
  )
  for frame in range(rig.skin.num_frames):
    values = [
      pxr.Gf.Quatf(float(w), float(x), float(y), float(z))
      for x, y, z, w in quaternions[frame]
    ]
    turns.Set(pxr.Vt.QuatfArray(values), codes[frame])
    moves.Set(_vectors(pxr, places[frame]), codes[frame])
  binding = pxr.UsdSkel.BindingAPI.Apply(skeleton.GetPrim())
  binding.CreateAnimationSourceRel().SetTargets([animation.GetPath()])


def _bind_skin(
  pxr: types.SimpleNamespace, mesh: Any, skeleton: Any, rig: bone_tree.Rig
) -> None:
  binding = pxr.UsdSkel.BindingAPI.Apply(mesh.GetPrim())
  binding.CreateSkeletonRel().SetTargets([skeleton.GetPath()])
  binding.CreateGeomBindTransformAttr(pxr.Gf.Matrix4d(1.0))
  ids, weights = rig.skin.influences()
  count = skinning.INFLUENCES
  ids = np.ascontiguousarray(ids.reshape(-1), np.int32)
  weights = np.ascontiguousarray(weights.reshape(-1), np.float32)
  binding.CreateJointIndicesPrimvar(False, count).Set(
    pxr.Vt.IntArray.FromNumpy(ids)
  )
  binding.CreateJointWeightsPrimvar(False, count).Set(
    pxr.Vt.FloatArray.FromNumpy(weights)
  )


def _bind(
  pxr: types.SimpleNamespace,
  stage: Any,
  mesh: Any,
  part: TexturedMesh,
  index: int,
  path: PathLike,
) -> dict[str, bytes]:
  """Binds a material; its texture, name to content."""
  names = pxr.Sdf.ValueTypeNames
  place = f"{_ROOT}/Material_{index}"
  material = pxr.UsdShade.Material.Define(stage, place)
  surface = pxr.UsdShade.Shader.Define(stage, f"{place}/Surface")
  surface.CreateIdAttr("UsdPreviewSurface")
  surface.CreateInput("roughness", names.Float).Set(0.9)
  shown = "diffuseColor" if part.is_lit else "emissiveColor"
  if not part.is_lit:
    surface.CreateInput("diffuseColor", names.Color3f).Set((0.0, 0.0, 0.0))
  colour = surface.CreateInput(shown, names.Color3f)
  textures = {}
  source = _colour_source(pxr, stage, place, part)
  if source is None:
    colour.Set(_CLAY)
  else:
    colour.ConnectToSource(source)
  if part.image is not None:
    name = f"{pathlib.Path(path).stem}_texture_{index}.png"
    reader = pxr.UsdShade.Shader.Get(stage, f"{place}/Colour")
    reader.CreateInput("file", names.Asset).Set(pxr.Sdf.AssetPath(f"./{name}"))
    content = io.BytesIO()
    Image.fromarray(part.image).save(content, "PNG", optimize=True)
    textures[name] = content.getvalue()
  material.CreateSurfaceOutput().ConnectToSource(
    surface.ConnectableAPI(), "surface"
  )
  pxr.UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)
  return textures


def _colour_source(
  pxr: types.SimpleNamespace, stage: Any, place: str, part: TexturedMesh
) -> Any:
  """The shader output for the surface's colour; None for clay."""
  names = pxr.Sdf.ValueTypeNames
  if part.image is None and part.mesh.colours is None:
    return None
  if part.image is None:
    reader = pxr.UsdShade.Shader.Define(stage, f"{place}/Colour")
    reader.CreateIdAttr("UsdPrimvarReader_float3")
    reader.CreateInput("varname", names.String).Set("displayColor")
    return reader.CreateOutput("result", names.Float3)
  places = pxr.UsdShade.Shader.Define(stage, f"{place}/Places")
  places.CreateIdAttr("UsdPrimvarReader_float2")
  places.CreateInput("varname", names.String).Set("st")
  result = places.CreateOutput("result", names.Float2)
  texture = pxr.UsdShade.Shader.Define(stage, f"{place}/Colour")
  texture.CreateIdAttr("UsdUVTexture")
  texture.CreateInput("st", names.Float2).ConnectToSource(result)
  texture.CreateInput("wrapS", names.Token).Set("clamp")
  texture.CreateInput("wrapT", names.Token).Set("clamp")
  texture.CreateInput("sourceColorSpace", names.Token).Set("sRGB")
  return texture.CreateOutput("rgb", names.Float3)


def _export(
  pxr: types.SimpleNamespace,
  stage: Any,
  path: pathlib.Path,
  textures: dict[str, bytes],
) -> list[pathlib.Path]:
  if path.suffix.lower() == ".usdz":
    with atomic.atomic_path(path) as temporary:
      _export_package(pxr, stage, temporary, textures)
    return [path]
  for name, content in textures.items():
    atomic.write_bytes(path.with_name(name), content)
  with atomic.atomic_path(path) as temporary:
    usd.export_layer(pxr, stage, temporary)
  return [path, *(path.with_name(name) for name in textures)]


def _export_package(
  pxr: types.SimpleNamespace,
  stage: Any,
  path: pathlib.Path,
  textures: dict[str, bytes],
) -> None:
  with tempfile.TemporaryDirectory(dir=path.parent, prefix=".usdz-") as folder:
    layer = pathlib.Path(folder) / "sculpt4d.usdc"
    for name, content in textures.items():
      (layer.parent / name).write_bytes(content)
    usd.export_layer(pxr, stage, layer)
    asset = pxr.Sdf.AssetPath(os.fspath(layer))
    with usd.usd_errors(pxr):
      if not pxr.UsdUtils.CreateNewUsdzPackage(asset, os.fspath(path)):
        raise OSError("USD could not write the package")
