"""Animated USD stages, made by the library and played."""

import numpy as np
import pytest

pxr = pytest.importorskip("pxr", reason="needs the extra `usd`")
from pxr import Gf
from pxr import Sdf
from pxr import Usd
from pxr import UsdGeom
from pxr import UsdSkel
from pxr import Vt

from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import asset_files

_SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)


def _stage(path, root="Xform"):
  stage = Usd.Stage.CreateNew(str(path))
  stage.SetTimeCodesPerSecond(10)
  UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
  stage.DefinePrim("/root", root)
  return stage


def _square(stage, path="/root/square", points=_SQUARE):
  mesh = UsdGeom.Mesh.Define(stage, path)
  mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(points.astype(np.float32)))
  mesh.CreateFaceVertexCountsAttr([4])
  mesh.CreateFaceVertexIndicesAttr([0, 1, 2, 3])
  return mesh


def _play(path, times):
  asset = animated_assets.AnimatedAsset(path)
  [clip] = asset.clips
  return clip, asset.play(clip, times)


def test_points_are_interpolated(tmp_path):
  stage = _stage(tmp_path / "a.usdc")
  points = _square(stage).GetPointsAttr()
  for code, size in ((5, 1.0), (15, 3.0)):
    points.Set(Vt.Vec3fArray.FromNumpy((size * _SQUARE).astype("f4")), code)
  stage.Save()
  clip, mesh = _play(tmp_path / "a.usdc", [0.0, 0.5, 1.0])
  assert (clip.start, clip.end) == (0.0, 1.0)
  np.testing.assert_array_equal(mesh.faces, [[0, 1, 2], [0, 2, 3]])
  np.testing.assert_allclose(mesh.vertices[1], 2 * _SQUARE, atol=1e-6)


def test_transforms_of_parents_are_played_and_z_up_is_turned(tmp_path):
  stage = _stage(tmp_path / "a.usda")
  UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.z)
  root = UsdGeom.Xformable(stage.GetPrimAtPath("/root"))
  moved, turned = root.AddTranslateOp(), root.AddRotateZOp()
  for code, x, angle in ((0, 0.0, 0.0), (10, 4.0, 90.0)):
    moved.Set(Gf.Vec3d(x, 0, 0), code)
    turned.Set(angle, code)
  mesh = _square(stage)
  UsdGeom.Xformable(mesh).AddScaleOp().Set(Gf.Vec3f(2, 2, 2))
  mesh.CreateOrientationAttr(UsdGeom.Tokens.leftHanded)
  stage.Save()
  _, played = _play(tmp_path / "a.usda", [0.0, 1.0])
  np.testing.assert_array_equal(played.faces, [[2, 1, 0], [3, 2, 0]])
  # Doubled, turned about z from x to y, moved; then z becomes y, y becomes -z.
  np.testing.assert_allclose(
    played.vertices[1],
    [[4, 0, 0], [4, 0, -2], [2, 0, -2], [2, 0, 0]],
    atol=1e-5,
  )


def _skinned(path, blend=False):
  """A square whose upper corners follow a joint that turns by 90 degrees."""
  stage = _stage(path, "SkelRoot")
  mesh = _square(stage)
  skeleton = UsdSkel.Skeleton.Define(stage, "/root/skeleton")
  joints = Vt.TokenArray(["hip", "hip/top"])
  hip, top = Gf.Matrix4d(1), Gf.Matrix4d(1).SetTranslate(Gf.Vec3d(0, 1, 0))
  skeleton.CreateJointsAttr(joints)
  skeleton.CreateBindTransformsAttr(Vt.Matrix4dArray([hip, top]))
  skeleton.CreateRestTransformsAttr(Vt.Matrix4dArray([hip, top]))
  motion = UsdSkel.Animation.Define(stage, "/root/skeleton/motion")
  motion.CreateJointsAttr(joints)
  motion.CreateTranslationsAttr(
    Vt.Vec3fArray([Gf.Vec3f(0, 0, 0), Gf.Vec3f(0, 1, 0)])
  )
  motion.CreateScalesAttr(Vt.Vec3hArray([Gf.Vec3h(1, 1, 1)] * 2))
  turns = motion.CreateRotationsAttr()
  still, half = Gf.Quatf(1, 0, 0, 0), 0.5**0.5
  turns.Set(Vt.QuatfArray([still, still]), 0)
  turns.Set(Vt.QuatfArray([still, Gf.Quatf(half, 0, 0, half)]), 10)
  binding = UsdSkel.BindingAPI.Apply(mesh.GetPrim())
  binding.CreateSkeletonRel().SetTargets([skeleton.GetPath()])
  binding.CreateJointIndicesPrimvar(False, 1).Set(Vt.IntArray([0, 0, 1, 1]))
  binding.CreateJointWeightsPrimvar(False, 1).Set(Vt.FloatArray([1.0] * 4))
  binding.CreateGeomBindTransformAttr(Gf.Matrix4d(1))
  UsdSkel.BindingAPI.Apply(
    skeleton.GetPrim()
  ).CreateAnimationSourceRel().SetTargets([motion.GetPath()])
  if blend:
    shape = UsdSkel.BlendShape.Define(stage, "/root/square/lifted")
    shape.CreateOffsetsAttr(Vt.Vec3fArray([Gf.Vec3f(0, 0, 3)]))
    shape.CreatePointIndicesAttr(Vt.IntArray([0]))
    binding.CreateBlendShapesAttr(Vt.TokenArray(["lifted"]))
    binding.CreateBlendShapeTargetsRel().SetTargets([shape.GetPath()])
    motion.CreateBlendShapesAttr(Vt.TokenArray(["lifted"]))
    weights = motion.CreateBlendShapeWeightsAttr()
    weights.Set(Vt.FloatArray([0.0]), 0)
    weights.Set(Vt.FloatArray([1.0]), 10)
  stage.Save()
  return path


@pytest.mark.parametrize("blend", [False, True])
def test_skins_and_blend_shapes_are_played(blend, tmp_path):
  _, mesh = _play(_skinned(tmp_path / "a.usdc", blend), [0.0, 1.0])
  np.testing.assert_allclose(mesh.vertices[0], _SQUARE, atol=1e-6)
  # The upper corners turn about (0, 1, 0): x to y.
  lift = 3.0 * blend
  np.testing.assert_allclose(
    mesh.vertices[1],
    [[0, 0, lift], [1, 0, 0], [0, 2, 0], [0, 1, 0]],
    atol=1e-5,
  )


def test_instances_are_played_and_what_is_unseen_is_not(tmp_path):
  stage = _stage(tmp_path / "a.usda")
  _square(stage, "/proto/square")
  for name, x in (("one", 0.0), ("two", 5.0)):
    prim = stage.DefinePrim(f"/root/{name}", "Xform")
    prim.GetReferences().AddInternalReference(Sdf.Path("/proto"))
    prim.SetInstanceable(True)
    moved = UsdGeom.Xformable(prim).AddTranslateOp()
    moved.Set(Gf.Vec3d(x, 0, 0), 0)
    moved.Set(Gf.Vec3d(x, 1, 0), 10)
  stage.GetPrimAtPath("/proto").SetSpecifier(Sdf.SpecifierOver)
  hidden = _square(stage, "/root/hidden")
  hidden.CreateVisibilityAttr(UsdGeom.Tokens.invisible)
  _square(stage, "/root/guide").CreatePurposeAttr(UsdGeom.Tokens.guide)
  stage.Save()
  content = (tmp_path / "a.usda").read_bytes()
  _, mesh = _play(tmp_path / "a.usda", [1.0])
  np.testing.assert_allclose(
    mesh.vertices[0],
    np.concatenate([_SQUARE + [0, 1, 0], _SQUARE + [5, 1, 0]]),
    atol=1e-6,
  )
  assert (tmp_path / "a.usda").read_bytes() == content


def test_stages_that_cannot_be_used_say_why(tmp_path):
  def refused(match, name="a.usda"):
    with pytest.raises(asset_files.AssetError, match=match):
      _play(tmp_path / name, [0.0, 1.0])

  stage = _stage(tmp_path / "a.usda")
  stage.Save()
  refused("no mesh")
  mesh = _square(stage)
  stage.Save()
  refused("no animation")
  counts = mesh.GetFaceVertexCountsAttr()
  counts.Set([4], 0)
  counts.Set([3], 10)
  points = mesh.GetPointsAttr()
  for code in (0, 10):
    points.Set(Vt.Vec3fArray.FromNumpy(_SQUARE.astype("f4")), code)
  stage.Save()
  refused("do not match")
  counts.Clear()
  counts.Set([4])
  stage.GetPrimAtPath("/root").GetReferences().AddReference("../b.usda")
  stage.Save()
  refused("leads out")
  (tmp_path / "b.usdc").write_bytes(b"PXR-USDC and nothing")
  refused("readable", "b.usdc")
