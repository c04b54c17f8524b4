"""Small assets that are difficult to read, each with a known correct result.

The files in `cases` were made for these tests and are CC0-1.0.
"""

import pathlib

import numpy as np
import pytest

from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import watertight
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import mesh_sequences

CASES = pathlib.Path(__file__).parent / "cases"


def play(name, times=(0.0, 1.0), **options):
  if name.endswith("usda"):
    pytest.importorskip("pxr", reason="needs the extra `usd`")
  asset = animated_assets.AnimatedAsset(CASES / name, **options)
  return asset, asset.play(asset.clips[0], times)


def test_parts_of_a_car_with_a_skinned_driver_are_all_there():
  asset, mesh = play("car_with_driver.glb")
  _, whole = play("car_with_driver.glb", attachments="all")
  assert asset.num_meshes == 6 and not asset.left_out
  np.testing.assert_array_equal(mesh.faces, whole.faces)


@pytest.mark.parametrize(
  ("name", "colour"),
  [
    ("specular_glossiness_red.glb", (255, 0, 0)),
    ("texture_transform_blue.glb", (0, 0, 255)),
    ("emissive_red.glb", (255, 0, 0)),
  ],
)
def test_colours(name, colour):
  _, mesh = play(name)
  np.testing.assert_array_equal(np.unique(mesh.colours, axis=0), [colour])


def test_instances_are_all_there():
  _, mesh = play("instances_three.glb")
  assert mesh.num_vertices == 126
  bodies = mesh.vertices[0].reshape(3, 42, 3)
  # The same sphere three times, side by side.
  np.testing.assert_allclose(
    bodies - bodies.mean(1, keepdims=True),
    np.broadcast_to(bodies[0] - bodies[0].mean(0), bodies.shape),
    atol=1e-6,
  )
  assert np.ptp(bodies.mean(1)[:, 0]) == pytest.approx(2.0, abs=1e-6)


def test_a_matrix_keeps_its_scale_and_place_under_an_animated_rotation():
  _, mesh = play("matrix_and_animation.glb", (0.0, 0.5, 1.0))
  for frame in mesh.vertices:
    moved, still = frame[:8], frame[8:]
    moved = moved - [3, 0, 0]
    # Distances from the node's origin are halved for any rotation.
    np.testing.assert_allclose(
      np.linalg.norm(moved, axis=1),
      np.linalg.norm(still, axis=1) / 2,
      atol=1e-6,
    )
  turned = np.abs(mesh.vertices[1, :8] - mesh.vertices[0, :8]).max()
  assert turned > 0.1


def test_a_ball_far_from_the_origin_is_round():
  _, mesh = play("far_from_origin.glb", np.linspace(0, 1, 5))
  radius = np.linalg.norm(mesh.vertices, axis=-1)
  np.testing.assert_allclose(radius, 0.5, atol=1e-5)


def test_doubled_faces_are_a_solid():
  _, mesh = play("doubled_faces.glb")
  mesh = deforming_mesh.normalise(mesh)
  single = deforming_mesh.drop_doubled_faces(mesh)
  # An icosphere of 1,280 faces came twice, a slab of 12 once.
  assert (mesh.num_faces, single.num_faces) == (2572, 1292)
  settings = watertight.WatertightSettings(resolution=32, test_points=500)
  rng = np.random.default_rng(0)
  repair, _ = watertight.plan_repair(single, settings, rng)
  assert not repair.sheets.any()
  before, _ = watertight.plan_repair(mesh, settings, rng)
  assert before.sheets.mean() > 0.5
  assert deforming_mesh.drop_doubled_faces(single) is single


def test_what_macos_adds_to_a_zip_is_no_frame(tmp_path):
  asset, mesh = play("mac_made.zip")
  assert asset.clips[0].end == pytest.approx(11 / 24)
  assert mesh.num_vertices == 162
  for name in ("a1.ply", "a2.ply", "._a1.ply", ".a.ply"):
    (tmp_path / name).write_bytes(b"")
  names = [p.name for p in mesh_sequences.list_frames(tmp_path)]
  assert names == ["a1.ply", "a2.ply"]


def test_joints_turn_between_two_far_keys():
  """Linear blend skinning by hand: 170 degrees over 24 codes."""
  codes = np.array([0.0, 7.3, 12.0, 18.0, 24.0])
  _, mesh = play("skeleton_two_keys_no_range.usda", codes / 24)
  from pxr import Usd
  from pxr import UsdGeom
  from pxr import UsdSkel

  stage = Usd.Stage.Open(str(CASES / "skeleton_two_keys_no_range.usda"))
  prim = stage.GetPrimAtPath("/R/M")
  rest = np.asarray(UsdGeom.Mesh(prim).GetPointsAttr().Get(), np.float64)
  weights = UsdSkel.BindingAPI(prim).GetJointWeightsAttr().Get()
  share = np.asarray(weights).reshape(-1, 2)[:, 1:]
  for code, points in zip(codes, mesh.vertices):
    angle = np.radians(170 * code / 24)
    c, s = np.cos(angle), np.sin(angle)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    upper = (rest - [0, 2, 0]) @ turn.T + [0, 2, 0]
    expected = (1 - share) * rest + share * upper
    # The box has the size 4: a share of 1e-6 of it.
    np.testing.assert_allclose(points, expected, atol=4e-6)


def test_what_appears_is_left_out_and_named():
  asset, mesh = play("appears_at_12.usda")
  assert mesh.num_vertices == 26
  (left_out,) = asset.left_out
  assert left_out.name == "/N" and "appears" in left_out.reason


def test_the_range_of_the_stage_is_played():
  asset, mesh = play("playback_range_12_to_24.usda", (0.0, 0.5))
  assert asset.clips[0].end == pytest.approx(0.5)
  # It moves by 1 in 100 codes.
  np.testing.assert_allclose(
    mesh.vertices[1] - mesh.vertices[0],
    np.broadcast_to([12 / 100, 0, 0], mesh.rest.shape),
    atol=1e-6,
  )


@pytest.mark.parametrize("name", ["damaged_names.usdc", "damaged_values.usdc"])
def test_damage_that_usd_finds_late_is_a_message(name):
  """USD opens these, and raises where prims or points are read."""
  pytest.importorskip("pxr", reason="needs the extra `usd`")
  with pytest.raises(asset_files.AssetError, match="not a readable USD file"):
    asset = animated_assets.AnimatedAsset(CASES / name)
    asset.play(asset.clips[0], (0.0, 1.0))
