"""Skins and blend shapes of a USD stage, at any time code.

USD's baking writes points at integer time codes and interpolates them linearly.
Here the joints are interpolated, as UsdSkel specifies, and then the skin is
evaluated.

Source: OpenUSD, UsdSkel, "Skinning" and "Blend Shapes".
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from sculpt4d_jax.io import usd_modules

if TYPE_CHECKING:
  from pxr import UsdSkel
  from pxr import Vt


class Skins:
  """The meshes of a stage that follow skeletons.

  Attributes:
    prims: Their paths.
  """

  def __init__(self, stage: Any):
    """Finds all skinned meshes; the stage has no instances."""
    pxr = usd_modules.load()
    Usd, UsdSkel = pxr.Usd, pxr.UsdSkel
    self._cache = UsdSkel.Cache()
    self._bound: dict[Any, tuple[Any, Any]] = {}
    predicate = Usd.PrimDefaultPredicate
    for prim in stage.Traverse():
      if not prim.IsA(UsdSkel.Root):
        continue
      root = UsdSkel.Root(prim)
      self._cache.Populate(root, predicate)
      for binding in self._cache.ComputeSkelBindings(root, predicate):
        skeleton = self._cache.GetSkelQuery(binding.GetSkeleton())
        if not skeleton:
          continue
        for skin in binding.GetSkinningTargets():
          self._bound[skin.GetPrim().GetPath()] = skeleton, skin

  @property
  def prims(self) -> frozenset[Any]:
    """Sdf paths of the skinned meshes."""
    return frozenset(self._bound)

  def times(self, path: Any) -> set[float]:
    """Time codes of the keys that move a mesh."""
    skeleton, _ = self._bound[path]
    animation = skeleton.GetAnimQuery()
    if not animation:
      return set()
    return {
      *animation.GetJointTransformTimeSamples(),
      *animation.GetBlendShapeWeightTimeSamples(),
    }

  def points(
    self, path: Any, points: Any, code: float, transforms: Any
  ) -> np.ndarray:
    """World positions of a skinned mesh, float64 [V, 3].

    Args:
      path: One of `prims`.
      points: The mesh's points, a Vt array, modified in place.
      code: Time code.
      transforms: A UsdGeom.XformCache of that code.
    """
    skeleton, skin = self._bound[path]
    if skin.HasBlendShapes():
      self._blend(skeleton, skin, points, code)
    space = skeleton.GetPrim()
    if not skin.HasJointInfluences():
      space = skin.GetPrim()
      result = np.asarray(points, np.float64).reshape(-1, 3)
    else:
      joints = skeleton.ComputeSkinningTransforms(code)
      if skin.IsRigidlyDeformed():
        joints = np.asarray(skin.ComputeSkinnedTransform(joints, code))
        result = np.asarray(points, np.float64).reshape(-1, 3)
        result = result @ joints[:3, :3] + joints[3, :3]
      else:
        if not skin.ComputeSkinnedPoints(joints, points, code):
          raise ValueError(f"{path} has no valid joint weights")
        result = np.asarray(points, np.float64).reshape(-1, 3)
    world = np.asarray(transforms.GetLocalToWorldTransform(space))
    return result @ world[:3, :3] + world[3, :3]

  def _blend(
    self,
    skeleton: "UsdSkel.SkeletonQuery",
    skin: "UsdSkel.SkinningQuery",
    points: "Vt.Vec3fArray",
    code: float,
  ) -> None:
    UsdSkel = usd_modules.load().UsdSkel
    animation, mapper = skeleton.GetAnimQuery(), skin.GetBlendShapeMapper()
    if not animation or not mapper:
      return
    weights = animation.ComputeBlendShapeWeights(code)
    weights = mapper.Remap(weights)
    query = UsdSkel.BlendShapeQuery(UsdSkel.BindingAPI(skin.GetPrim()))
    query.ComputeDeformedPoints(
      *query.ComputeSubShapeWeights(weights),
      query.ComputeBlendShapePointIndices(),
      query.ComputeSubShapePointOffsets(),
      points,
    )
