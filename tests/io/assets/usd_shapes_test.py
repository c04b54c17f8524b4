"""USD's shapes have the volume of their formulas, and lie along their axis."""

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.io.assets import animated_assets

Usd = pytest.importorskip("pxr.Usd", reason="needs the extra `usd`")
UsdGeom = pytest.importorskip("pxr.UsdGeom", reason="needs the extra `usd`")

R, H = 0.5, 3.0
SHAPES = {
  "Cube": ({"Size": 2.0}, 8.0, (2, 2, 2)),
  "Sphere": ({"Radius": R}, 4 / 3 * np.pi * R**3, (1, 1, 1)),
  "Cylinder": ({"Radius": R, "Height": H}, np.pi * R**2 * H, (1, 1, H)),
  "Cone": ({"Radius": R, "Height": H}, np.pi * R**2 * H / 3, (1, 1, H)),
  "Capsule": (
    {"Radius": R, "Height": H},
    np.pi * R**2 * H + 4 / 3 * np.pi * R**3,
    (1, 1, H + 1),
  ),
}


@pytest.mark.parametrize("axis", ["X", "Y", "Z"])
@pytest.mark.parametrize("kind", SHAPES)
def test_shapes(tmp_path, kind, axis):
  values, volume, size = SHAPES[kind]
  stage = Usd.Stage.CreateNew(str(tmp_path / "a.usda"))
  UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
  shape = getattr(UsdGeom, kind).Define(stage, "/shape")
  for name, value in values.items():
    getattr(shape, f"Create{name}Attr")(value)
  if hasattr(shape, "CreateAxisAttr"):
    shape.CreateAxisAttr(axis)
  move = shape.AddTranslateOp()
  move.Set((0, 0, 0), 0)
  move.Set((5, 0, 0), 24)
  stage.Save()
  asset = animated_assets.AnimatedAsset(tmp_path / "a.usda")
  mesh = asset.play(asset.clips[0], (0.0, 1.0))
  solid = trimesh.Trimesh(mesh.vertices[0], mesh.faces)
  assert solid.is_watertight
  # Flat facets cut 2 % off round things; a negative one would be inside out.
  assert solid.volume == pytest.approx(volume, rel=0.03)
  along = {"X": 0, "Y": 1, "Z": 2}[axis]
  expected = np.full(3, float(size[0]))
  expected[along] = size[2]
  np.testing.assert_allclose(np.ptp(mesh.vertices[0], axis=0), expected, 0.01)
  np.testing.assert_allclose(
    (mesh.vertices[1] - mesh.vertices[0]).mean(0), [5, 0, 0], atol=1e-5
  )
