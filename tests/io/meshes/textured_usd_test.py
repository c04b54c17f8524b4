import os

import numpy as np
import pytest

from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.meshes import textured_usd
from sculpt4d_jax.io.meshes import usd
from tests.io.meshes import textured_assets

pytest.importorskip("pxr", reason="the extra `usd`")

FPS = textured_assets.FPS


@pytest.mark.parametrize("kind", ["textured", "coloured", "plain"])
def test_points_come_back(tmp_path, kind):
  part = textured_assets.asset(kind)
  files = textured_usd.write_points(tmp_path / "a.usdc", [part], FPS)
  meshes, rate = usd.read_animated_usd(tmp_path / "a.usdc")
  assert rate == FPS
  for mesh, vertices in zip(meshes, part.mesh.vertices, strict=True):
    np.testing.assert_allclose(mesh.vertices, vertices, atol=1e-6)
    np.testing.assert_array_equal(mesh.faces, part.mesh.faces)
  wanted = ["a.usdc"] + ["a_texture_0.png"] * (kind == "textured")
  assert sorted(os.listdir(tmp_path)) == wanted
  assert sorted(path.name for path in files) == wanted


def test_the_skeleton_moves_the_mesh(tmp_path):
  vertices, _, rig = textured_assets.bending_bar()
  trajectory = np.tile(np.eye(4), (5, 1, 1))
  trajectory[:, 1, 3] = 0.1 * np.arange(5)
  part = textured_assets.asset("textured")
  textured_usd.write_skeleton(
    tmp_path / "a.usda", part, rig, FPS, trajectory=trajectory
  )
  asset = animated_assets.AnimatedAsset(tmp_path / "a.usda")
  read = asset.play(asset.clips[0], np.arange(5) / FPS)
  wanted = vertices + trajectory[:, None, :3, 3]
  np.testing.assert_allclose(read.vertices, wanted, atol=1e-5)


def test_runs_of_frames_take_turns(tmp_path):
  from pxr import Usd
  from pxr import UsdGeom

  parts = [
    textured_assets.asset("plain", 2),
    textured_assets.asset("coloured", 3, first_frame=2),
  ]
  textured_usd.write_points(tmp_path / "a.usda", parts, FPS)
  stage = Usd.Stage.Open(str(tmp_path / "a.usda"))
  shown = [
    [
      UsdGeom.Imageable(prim).ComputeVisibility(frame) != "invisible"
      for prim in stage.Traverse()
      if prim.IsA(UsdGeom.Mesh)
    ]
    for frame in range(5)
  ]
  assert shown == [[True, False]] * 2 + [[False, True]] * 3


def test_texture_and_places_are_bound(tmp_path):
  from pxr import Usd
  from pxr import UsdShade

  part = textured_assets.asset("textured")
  textured_usd.write_points(tmp_path / "a.usdz", [part], FPS)
  assert os.listdir(tmp_path) == ["a.usdz"]
  stage = Usd.Stage.Open(str(tmp_path / "a.usdz"))
  mesh = stage.GetPrimAtPath("/Sculpt4D/Mesh_0")
  material, _ = UsdShade.MaterialBindingAPI(mesh).ComputeBoundMaterial()
  surface, _, _ = material.ComputeSurfaceSource()
  texture, _, _ = surface.GetInput("emissiveColor").GetConnectedSource()
  file = UsdShade.Shader(texture.GetPrim()).GetInput("file").Get()
  assert file.resolvedPath
  uv = np.array(mesh.GetAttribute("primvars:st").Get())
  np.testing.assert_allclose(uv[:, 1], 1 - part.atlas.uv[:, 1], atol=1e-6)


def test_bad_input_is_refused(tmp_path):
  part = textured_assets.asset("plain", 4)
  with pytest.raises(ValueError, match="ending in .usdc or"):
    textured_usd.write_points(tmp_path / "a.glb", [part], FPS)
  with pytest.raises(ValueError, match="the rig has 5 frames"):
    rig = textured_assets.bending_bar()[2]
    textured_usd.write_skeleton(tmp_path / "a.usdc", part, rig, FPS)
  assert not os.listdir(tmp_path)
