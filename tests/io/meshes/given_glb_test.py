import numpy as np
import pytest

from sculpt4d_jax.geometry import bone_tree
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import given_asset
from sculpt4d_jax.io.assets import gltf_container
from sculpt4d_jax.io.meshes import given_glb
from tests.geometry.registration import shapes
from tests.io import gltf_validator
from tests.io.meshes import given_assets

FPS = 8.0
ANGLES = (0.0, 0.4, 0.8)
PLACEMENT = np.diag([3.0, 3.0, 3.0, 1.0])
PLACEMENT[:3, 3] = (0.0, 5.0, 0.0)


@pytest.fixture(scope="module", name="asset")
def _asset(tmp_path_factory):
  path = tmp_path_factory.mktemp("given") / "mine.glb"
  given_assets.write(path)
  return given_asset.read(path)


def _motions():
  """The second joint turns about z of the world, [F, 2, 4, 4]."""
  motions = np.tile(np.eye(4), (len(ANGLES), 2, 1, 1))
  for frame, angle in enumerate(ANGLES):
    cosine, sine = np.cos(angle), np.sin(angle)
    motions[frame, 1, :2, :2] = [[cosine, -sine], [sine, cosine]]
  return motions


def _posed(asset):
  points = asset.mesh.vertices.astype(float)
  points = np.concatenate([points, np.ones((len(points), 1))], 1)
  return np.stack(
    [
      np.einsum("vb,bij,vj->vi", _shares(asset), motion, points)[:, :3]
      for motion in _motions()
    ]
  )


def _shares(asset):
  """Weights of the two joints; the box follows the second."""
  nodes = asset.skeleton.nodes
  weights = asset.skeleton.weights
  second = weights[:, nodes.index(given_assets.SECOND)]
  if given_assets.BOX in nodes:
    second = second + weights[:, nodes.index(given_assets.BOX)]
  return np.stack([1 - second, second], 1)


def _worlds(asset):
  motions = _motions()
  rows = [
    0 if node == given_assets.FIRST else 1 for node in asset.skeleton.nodes
  ]
  return motions[:, rows] @ asset.skeleton.worlds


def _placed(vertices):
  return vertices @ PLACEMENT[:3, :3].T + PLACEMENT[:3, 3]


def _play(path, clip=0):
  played = animated_assets.AnimatedAsset(path, attachments="all")
  times = np.arange(len(ANGLES)) / FPS
  return played.play(played.clips[clip], times), played.clips


def test_vertices_and_joints_stand_in_the_world(asset):
  bar = shapes.box((2, 0.4, 0.3), (20, 4, 3))
  half_turn = np.diag([-1.0, 1.0, -1.0])
  wanted = given_assets.SCALE * bar.vertices @ half_turn
  box, vertices = np.split(asset.mesh.vertices, [-bar.num_vertices])
  np.testing.assert_allclose(vertices, wanted, atol=1e-6)
  np.testing.assert_allclose(box.mean(0), [-0.55, 0, 0], atol=1e-6)
  assert asset.skeleton.nodes == (
    given_assets.FIRST,
    given_assets.SECOND,
    given_assets.BOX,
  )
  assert asset.skeleton.parents.tolist() == [-1, 0, 1]
  np.testing.assert_allclose(
    asset.skeleton.worlds[:, :3, 3],
    [[0.5, 0, 0], [0, 0, 0], [-0.55, 0, 0]],
    atol=1e-6,
  )
  np.testing.assert_allclose(asset.skeleton.weights.sum(1), 1, atol=1e-6)


def test_morph_targets_give_every_frame_back(tmp_path, asset):
  vertices = _posed(asset)
  given_glb.write_morph(tmp_path / "a.glb", asset, vertices, PLACEMENT, FPS)
  played, clips = _play(tmp_path / "a.glb")
  assert len(clips) == 1
  np.testing.assert_allclose(played.vertices, _placed(vertices), atol=1e-5)


def test_the_skeleton_gives_every_frame_back(tmp_path, asset):
  given_glb.write_skin(
    tmp_path / "a.glb", asset, _worlds(asset), PLACEMENT, FPS
  )
  played, clips = _play(tmp_path / "a.glb")
  np.testing.assert_allclose(played.vertices, _placed(_posed(asset)), atol=1e-5)
  assert [clip.name for clip in clips] == ["sculpt4d", "wave"]


def test_poses_of_the_skeleton_are_found_again(asset):
  vertices, skeleton = _posed(asset), asset.skeleton
  rig = bone_tree.pose_given(
    asset.mesh.vertices,
    skeleton.weights,
    skeleton.parents,
    skeleton.worlds[:, :3, 3],
    vertices,
  )
  assert rig.skin.rms < 1e-4
  np.testing.assert_allclose(
    rig.skin.rotations[:, 1], _motions()[:, 1, :3, :3], atol=2e-3
  )
  np.testing.assert_array_equal(rig.skin.weights, skeleton.weights)


@pytest.mark.parametrize("kind", ["morph", "skin"])
def test_what_the_file_held_stays(tmp_path, asset, kind):
  path = tmp_path / "a.glb"
  if kind == "morph":
    given_glb.write_morph(path, asset, _posed(asset), PLACEMENT, FPS)
  else:
    given_glb.write_skin(path, asset, _worlds(asset), PLACEMENT, FPS)
  written, given = gltf_container.GltfFile(path), asset.file
  for name in ("materials", "textures", "images"):
    assert written.document[name] == given.document[name]
  assert written.image_bytes(0) == given.image_bytes(0)
  names = [node.get("name") for node in written.document["nodes"]]
  assert names[:5] == ["armature", "first", "second", "bar", "box"]
  assert written.document["scenes"][0]["name"] == "mine"
  for mesh, given_mesh in zip(
    written.document["meshes"], given.document["meshes"], strict=True
  ):
    [primitive], [other] = mesh["primitives"], given_mesh["primitives"]
    for name in ("POSITION", "NORMAL", "TEXCOORD_0"):
      width = "VEC2" if name == "TEXCOORD_0" else "VEC3"
      np.testing.assert_array_equal(
        written.accessor(primitive["attributes"][name], width),
        given.accessor(other["attributes"][name], width),
      )
    np.testing.assert_array_equal(
      written.accessor(primitive["indices"], "SCALAR"),
      given.accessor(other["indices"], "SCALAR"),
    )


def test_normals_turn_with_the_surface(tmp_path, asset):
  path = tmp_path / "a.glb"
  given_glb.write_morph(path, asset, _posed(asset), PLACEMENT, FPS)
  written = gltf_container.GltfFile(path)
  [box] = written.document["meshes"][1]["primitives"]
  base = written.accessor(box["attributes"]["NORMAL"], "VEC3")
  moved = base + written.accessor(box["targets"][2]["NORMAL"], "VEC3")
  # The armature's half turn about y turns the joint's turn about z over.
  cosine, sine = np.cos(-ANGLES[2]), np.sin(-ANGLES[2])
  turn = np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]])
  np.testing.assert_allclose(moved, base @ turn.T, atol=1e-5)


@pytest.mark.parametrize("kind", ["morph", "skin"])
def test_the_khronos_validator_finds_nothing(tmp_path, asset, kind):
  path = tmp_path / "a.glb"
  if kind == "morph":
    given_glb.write_morph(path, asset, _posed(asset), PLACEMENT, FPS)
  else:
    given_glb.write_skin(path, asset, _worlds(asset), PLACEMENT, FPS)
  issues = gltf_validator.validate(path)["issues"]
  assert issues["numErrors"] == 0, issues
  assert issues["numWarnings"] == 0, issues


def test_a_file_that_is_no_asset_is_refused(tmp_path):
  path = tmp_path / "a.glb"
  path.write_bytes(b"glTF and nothing else")
  with pytest.raises(given_asset.AssetError):
    given_asset.read(path)
