import os

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.geometry import bone_tree
from sculpt4d_jax.geometry import skinning
from sculpt4d_jax.io.meshes import bvh

_AXES = {"X": [1, 0, 0], "Y": [0, 1, 0], "Z": [0, 0, 1]}


def _read(path):
  """An independent reader: world positions of joints and ends by frame."""
  words = path.read_text().split()
  assert words.pop(0) == "HIERARCHY"
  joints = []  # name, parent, offset, channels

  def block(parent):
    kind, name = words.pop(0), words.pop(0)
    index = len(joints)
    assert words.pop(0) == "{"
    joints.append([name, parent, None, []])
    while True:
      word = words.pop(0)
      if word == "OFFSET":
        joints[index][2] = np.array([float(words.pop(0)) for _ in range(3)])
      elif word == "CHANNELS":
        count = int(words.pop(0))
        joints[index][3] = [words.pop(0) for _ in range(count)]
      elif word in ("JOINT", "End"):
        words.insert(0, word)
        block(index)
      else:
        assert word == "}"
        return kind

  assert block(-1) == "ROOT"
  assert words[:2] == ["MOTION", "Frames:"]
  count, step = int(words[2]), float(words[5])
  values = np.array(words[6:], float).reshape(count, -1)
  frames = []
  for row in values:
    row, worlds = list(row), []
    for _, parent, offset, channels in joints:
      local = trimesh.transformations.translation_matrix(offset)
      shift, turn = np.zeros(3), np.eye(4)
      for channel in channels:
        value = row.pop(0)
        if channel.endswith("position"):
          shift["XYZ".index(channel[0])] = value
        else:
          turn = turn @ trimesh.transformations.rotation_matrix(
            np.radians(value), _AXES[channel[0]]
          )
      if channels and channels[0].endswith("position"):
        local = trimesh.transformations.translation_matrix(shift)
      local = local @ turn
      worlds.append(local if parent < 0 else worlds[parent] @ local)
    assert not row
    frames.append([world[:3, 3] for world in worlds])
  return [joint[0] for joint in joints], np.array(frames), step


def _rig(num_frames=6):
  """Three bones in a chain, each turned about another axis."""
  rng = np.random.default_rng(0)
  rest = rng.uniform(-1, 1, (60, 3))
  joints = np.array([[0, 0, 0], [0.5, 0, 0], [0.5, 0.7, 0]], float)
  tips = np.array([[0.5, 0, 0], [0.5, 0.7, 0], [0.5, 0.7, 0.4]])
  turns = np.zeros((num_frames, 3, 3, 3))
  for frame in range(num_frames):
    for bone, axis in enumerate("ZXY"):
      turns[frame, bone] = trimesh.transformations.rotation_matrix(
        0.5 * frame * (bone + 1), _AXES[axis]
      )[:3, :3]
  weights = np.eye(3)[rng.integers(0, 3, 60)]
  shifts = np.zeros((num_frames, 3, 3))
  skin = skinning.Skin(rest, weights, turns, shifts, rms=0.0)
  rig = bone_tree.Rig(
    skin, np.array([-1, 0, 1], np.int32), joints, tips, np.zeros(3)
  )
  return rig


def _hung(rig):
  """The rig with the translations that hold its joints together."""
  skin = rig.skin
  places = np.zeros_like(skin.translations)
  for bone in (1, 2):
    joint = rig.joints[bone]
    at_parent = skin.rotations[:, bone - 1] @ joint + places[:, bone - 1]
    places[:, bone] = at_parent - skin.rotations[:, bone] @ joint
  skin = skinning.Skin(skin.rest, skin.weights, skin.rotations, places, 0.0)
  return bone_tree.Rig(skin, rig.parents, rig.joints, rig.tips, rig.spreads)


def test_an_independent_reader_finds_every_joint(tmp_path):
  rig = _hung(_rig())
  trajectory = np.tile(np.eye(4), (6, 1, 1))
  trajectory[:, :3, :3] = trimesh.transformations.rotation_matrix(
    0.3, [0, 1, 0]
  )[:3, :3]
  trajectory[:, 0, 3] = 0.2 * np.arange(6)
  bvh.write_bvh(tmp_path / "a.bvh", rig, 12, trajectory=trajectory)
  names, places, step = _read(tmp_path / "a.bvh")
  assert names == ["bone_00", "bone_01", "bone_02", "Site"]
  assert step == pytest.approx(1 / 12, abs=1e-7)
  turn, shift = trajectory[:, :3, :3], trajectory[:, None, :3, 3]
  wanted = np.einsum("fij,fbj->fbi", turn, rig.joint_positions()) + shift
  np.testing.assert_allclose(places[:, :3], wanted, atol=1e-5)
  tip = rig.skin.rotations[:, 2] @ rig.tips[2] + rig.skin.translations[:, 2]
  tip = np.einsum("fij,fj->fi", turn, tip) + shift[:, 0]
  np.testing.assert_allclose(places[:, 3], tip, atol=1e-5)


def test_joints_that_come_apart_are_refused(tmp_path):
  with pytest.raises(ValueError, match="joints come apart"):
    bvh.write_bvh(tmp_path / "a.bvh", _rig(), 12)
  with pytest.raises(ValueError, match="ending in .bvh"):
    bvh.write_bvh(tmp_path / "a.txt", _hung(_rig()), 12)
  with pytest.raises(ValueError, match="fps must be"):
    bvh.write_bvh(tmp_path / "a.bvh", _hung(_rig()), 0)
  assert not os.listdir(tmp_path)
