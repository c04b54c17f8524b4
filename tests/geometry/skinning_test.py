import numpy as np
import pytest
import trimesh

from sculpt4d_jax.geometry import bone_tree
from sculpt4d_jax.geometry import skinning

HINGE = np.array([0.0, 0.0, 0.0])


def _arm(num_frames=9):
  """A bar along x whose right half turns about z through the origin."""
  bar = trimesh.creation.box((2, 0.3, 0.3))
  for _ in range(4):
    bar = bar.subdivide()
  rest = np.asarray(bar.vertices)
  share = np.clip(rest[:, 0] / 0.2 + 0.5, 0, 1)  # Blends at the elbow.
  frames = []
  for angle in np.linspace(0, 1.2, num_frames):
    turn = trimesh.transformations.rotation_matrix(angle, [0, 0, 1])[:3, :3]
    frames.append(
      share[:, None] * (rest @ turn.T) + (1 - share[:, None]) * rest
    )
  return np.stack(frames), rest, np.asarray(bar.faces), share


def test_two_known_bones_are_found():
  frames, rest, _, share = _arm()
  skin = skinning.decompose(frames, rest, bones=2)
  assert skin.num_bones == 2 and skin.rms < 0.002
  moving = int(np.abs(skin.rotations[-1] - np.eye(3)).sum((1, 2)).argmax())
  np.testing.assert_allclose(skin.weights[:, moving], share, atol=0.06)
  angle = np.arctan2(
    skin.rotations[-1, moving, 1, 0], skin.rotations[-1, moving, 0, 0]
  )
  assert angle == pytest.approx(1.2, abs=0.02)
  np.testing.assert_allclose(skin.posed(), frames, atol=0.03)


def test_auto_takes_the_fewest_bones():
  frames, rest, _, _ = _arm()
  skin = skinning.decompose(frames, rest)
  assert skin.num_bones == 2 and skin.rms < skinning.TARGET_RMS
  still = skinning.decompose(np.stack([rest] * 3), rest)
  assert still.num_bones == 1 and still.rms < 1e-9


def test_weights_are_convex_and_few():
  rng = np.random.default_rng(0)
  rest = rng.uniform(-1, 1, (400, 3))
  frames = np.stack(
    [rest + 0.2 * np.sin(3 * rest[:, [1, 2, 0]] + t) for t in range(6)]
  )
  skin = skinning.decompose(frames, rest, bones=8)
  assert (skin.weights >= 0).all()
  np.testing.assert_allclose(skin.weights.sum(1), 1)
  assert ((skin.weights > 0).sum(1) <= skinning.INFLUENCES).all()
  np.testing.assert_allclose(np.linalg.det(skin.rotations), 1)
  ids, weights = skin.influences()
  rebuilt = np.zeros_like(skin.weights)
  for column in range(skinning.INFLUENCES):
    rebuilt[np.arange(400), ids[:, column]] += weights[:, column]
  np.testing.assert_allclose(rebuilt, skin.weights, atol=1e-12)


def test_thinned_search_fits_all_vertices_and_frames():
  frames, rest, _, _ = _arm(num_frames=20)
  settings = skinning.SkinSettings(max_vertices=300, max_frames=7)
  skin = skinning.decompose(frames, rest, bones=2, settings=settings)
  assert skin.weights.shape == (len(rest), 2)
  assert skin.rotations.shape == (20, 2, 3, 3)
  assert skin.rms < 0.003


def test_more_bones_fit_better():
  rng = np.random.default_rng(1)
  rest = rng.uniform(-1, 1, (500, 3))
  frames = np.stack(
    [rest + 0.3 * np.sin(2 * rest[:, [1, 2, 0]] * t) for t in (0, 0.5, 1)]
  )
  errors = [skinning.decompose(frames, rest, bones=n).rms for n in (1, 4, 12)]
  assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize(
  "points, expected",
  [
    ([0.2, 0.3, 0.5], [0.2, 0.3, 0.5]),
    ([2, 0, 0], [1, 0, 0]),
    ([1, 1, -5], [0.5, 0.5, 0]),
  ],
)
def test_projection_onto_the_simplex_by_hand(points, expected):
  projected = skinning._project(np.array([points], float))
  np.testing.assert_allclose(projected[0], expected)


def test_the_joint_is_the_hinge():
  frames, rest, _, _ = _arm()
  rig = bone_tree.build(skinning.decompose(frames, rest, bones=2))
  assert rig.parents.tolist() == [-1, 0]
  # Every point of the hinge's axis, z, will do.
  np.testing.assert_allclose(rig.joints[1, :2], HINGE[:2], atol=0.03)
  assert rig.spreads[1] < 0.01
  assert abs(rig.tips[1, 0]) > 0.8


def test_local_motions_compose_to_the_bones():
  frames, rest, _, _ = _arm()
  rig = bone_tree.build(skinning.decompose(frames, rest, bones=3))
  rotations, offsets = rig.locals()
  world_rotations, places = rotations.copy(), offsets.copy()
  for bone, parent in enumerate(rig.parents):
    if parent >= 0:
      assert parent < bone
      turn = world_rotations[:, parent]
      world_rotations[:, bone] = turn @ rotations[:, bone]
      places[:, bone] = places[:, parent] + np.einsum(
        "fij,fj->fi", turn, offsets[:, bone]
      )
  np.testing.assert_allclose(world_rotations, rig.skin.rotations, atol=1e-9)
  np.testing.assert_allclose(places, rig.joint_positions(), atol=1e-9)


def test_joints_held_together_do_not_come_apart():
  frames, rest, _, _ = _arm()
  rig = bone_tree.build(skinning.decompose(frames, rest, bones=2))
  held = bone_tree.hold_together(rig, frames)
  parent, child = held.skin.rotations[:, 0], held.skin.rotations[:, 1]
  joint = held.joints[1]
  np.testing.assert_allclose(
    parent @ joint + held.skin.translations[:, 0],
    child @ joint + held.skin.translations[:, 1],
    atol=1e-9,
  )
  assert held.skin.rms < 0.005


def test_bad_input_is_refused():
  frames, rest, _, _ = _arm()
  with pytest.raises(ValueError, match="bones=0"):
    skinning.decompose(frames, rest, bones=0)
  with pytest.raises(ValueError, match="expected vertices"):
    skinning.decompose(frames[:, 1:], rest)
