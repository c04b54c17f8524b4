"""Joins bones to a tree, with a joint between each bone and its parent.

A joint of two bones is the point that both move to the same position in all
frames. If the bones rotate about one axis, every point on it qualifies, so the
search is weakly attracted to the centre of the vertices that both move. The
distance between the joint's positions under the two bones (its spread) is the
cost of joining them; bones without common vertices are penalised by the gap
between them. The tree is the minimum spanning tree; its root is the bone with
the largest weight.

The bones of `build` keep their translations, so the tree changes no vertex. For
formats with rotations only (BVH), `hold_together` fits poses in which all
joints are connected.

Source: Le and Deng, Robust and Accurate Skeletal Rigging from Mesh Sequences,
2014, for joints as least-squares points and the spanning tree.
"""

import dataclasses

import numpy as np
from scipy import sparse
from scipy import spatial
from scipy.sparse import csgraph
from scipy.spatial import transform

from sculpt4d_jax.geometry import skinning
from sculpt4d_jax.geometry.registration import result

Skin = skinning.Skin

_PULL = 0.02  # Towards the centre of shared vertices, per frame.
_POSE_STEPS = 12
_POSE_VERTICES = 1500
_FEWEST = 6  # Vertices needed for a bone's initial pose.
# Cost per length of a gap between bones without common vertices.
_GAP = 3.0


@dataclasses.dataclass(frozen=True)
class Rig:
  """A skin whose bones form a tree; parents precede their children.

  Attributes:
    skin: Weights and motions of the bones, in the tree's order.
    parents: Parent of each bone, int32 [B]; -1 for the root, which is bone 0.
    joints: Rest position of each bone's joint with its parent, float64 [B, 3];
      the root's is the weighted mean of its vertices.
    tips: A point at the other end of each bone at rest, float64 [B, 3].
    spreads: Root mean square distance over frames between the joint's positions
      under a bone and its parent, world units, [B]; 0 for the root.
  """

  skin: Skin
  parents: np.ndarray
  joints: np.ndarray
  tips: np.ndarray
  spreads: np.ndarray

  @property
  def num_bones(self) -> int:
    """Number of bones, the root included."""
    return self.skin.num_bones

  @property
  def names(self) -> list[str]:
    """Names bone_00, bone_01, ... in the order of the tree."""
    return [f"bone_{bone:02d}" for bone in range(self.num_bones)]

  def joint_positions(self) -> np.ndarray:
    """Positions of the joints under their bones, float64 [F, B, 3]."""
    moved = np.einsum("fbij,bj->fbi", self.skin.rotations, self.joints)
    return moved + self.skin.translations

  def locals(self) -> tuple[np.ndarray, np.ndarray]:
    """Rotations [F, B, 3, 3], positions [F, B, 3] of joints in their parents.

    A joint's coordinate frame is at the joint and is axis-aligned at rest.
    """
    places = self.joint_positions()
    rotations, offsets = self.skin.rotations.copy(), places.copy()
    for bone, parent in enumerate(self.parents):
      if parent < 0:
        continue
      back = self.skin.rotations[:, parent].swapaxes(1, 2)
      rotations[:, bone] = back @ self.skin.rotations[:, bone]
      offset = places[:, bone] - places[:, parent]
      offsets[:, bone] = np.einsum("fij,fj->fi", back, offset)
    return rotations, offsets


def build(skin: Skin) -> Rig:
  """Joins the bones of a skin; the skin's motion stays the same."""
  count = skin.num_bones
  joints, spreads, costs = _pairs(skin)
  root = int(skin.weights.sum(0).argmax())
  tree = csgraph.minimum_spanning_tree(sparse.csr_matrix(costs))
  order, parents = csgraph.breadth_first_order(tree, root, directed=False)
  place = np.empty(count, int)
  place[order] = np.arange(count)
  middles = (skin.weights.T @ skin.rest) / skin.weights.sum(0)[:, None]
  new_parents = np.full(count, -1, np.int32)
  new_joints, new_spreads = middles[order].copy(), np.zeros(count)
  for new, bone in enumerate(order[1:], 1):
    parent = parents[bone]
    new_parents[new] = place[parent]
    new_joints[new] = joints[bone, parent]
    new_spreads[new] = spreads[bone, parent]
  ordered = dataclasses.replace(
    skin,
    weights=skin.weights[:, order],
    rotations=skin.rotations[:, order],
    translations=skin.translations[:, order],
  )
  return Rig(
    ordered, new_parents, new_joints, _tips(ordered, new_joints), new_spreads
  )


def hold_together(rig: Rig, vertices: np.ndarray, rounds: int = 3) -> Rig:
  """The rig with every joint fixed in its parent, moved only by rotations.

  Poses are fitted to the vertices by Gauss-Newton on all rotations and the
  root's position together, alternating with the weights.

  Args:
    rig: Start.
    vertices: Target positions, float64 [F, V, 3].
    rounds: Alternations of poses and weights.
  """
  skin = rig.skin
  vertices = np.asarray(vertices, np.float64)
  for _ in range(rounds):
    skin = skinning.with_new_weights(_fit_poses(rig, skin, vertices), vertices)
  return dataclasses.replace(rig, skin=skin, spreads=np.zeros(rig.num_bones))


def pose_given(
  rest: np.ndarray,
  weights: np.ndarray,
  parents: np.ndarray,
  joints: np.ndarray,
  vertices: np.ndarray,
) -> Rig:
  """Fits poses of a given skeleton; its weights and joints are kept.

  Bones are initialised by the rigid motion of the vertices that they influence
  most; bones with few vertices follow their parent. The rest is as in
  `hold_together`.

  Args:
    rest: Positions in the bind pose [V, 3].
    weights: Rows sum to 1, [V, B]; bones without vertices are allowed.
    parents: Parent of each bone [B]; -1 for bone 0, others after their parent.
    joints: Places of the joints at rest [B, 3].
    vertices: Target positions [F, V, 3].
  """
  rest = np.asarray(rest, np.float64)
  vertices = np.asarray(vertices, np.float64)
  whole = result.fit_trajectory(vertices, rest)
  motions = np.tile(whole[:, None], (1, len(parents), 1, 1))
  for bone, parent in enumerate(parents):
    rows = np.flatnonzero(weights[:, bone] > 0)
    if len(rows) >= _FEWEST:
      motions[:, bone] = result.fit_trajectory(
        vertices[:, rows], rest[rows], weights[rows, bone] ** 2
      )
    elif parent >= 0:
      motions[:, bone] = motions[:, parent]
  skin = Skin(rest, weights, motions[..., :3, :3], motions[..., :3, 3], np.inf)
  joints = np.asarray(joints, np.float64)
  rig = Rig(skin, np.asarray(parents), joints, joints, np.zeros(len(joints)))
  return dataclasses.replace(rig, skin=_fit_poses(rig, skin, vertices))


def _fit_poses(rig: Rig, skin: Skin, vertices: np.ndarray) -> Skin:
  """The skin in poses with connected joints, and its error."""
  poses = [
    _fit_pose(rig, skin, frame, index) for index, frame in enumerate(vertices)
  ]
  return skinning.with_motion(
    skin,
    np.stack([pose[0] for pose in poses]),
    np.stack([pose[1] for pose in poses]),
    vertices,
  )


def _fit_pose(
  rig: Rig, skin: Skin, goal: np.ndarray, frame: int
) -> tuple[np.ndarray, np.ndarray]:
  """Rotations [B, 3, 3] and translations [B, 3] of one frame."""
  some = slice(None, None, max(1, len(goal) // _POSE_VERTICES))
  rest, weights, goal = skin.rest[some], skin.weights[some], goal[some]
  below = weights.copy()  # Weight of a bone and its descendants, [V, B].
  for bone in range(rig.num_bones - 1, 0, -1):
    below[:, rig.parents[bone]] += below[:, bone]
  rotations = skin.rotations[frame].copy()
  root = rotations[0] @ rig.joints[0] + skin.translations[frame, 0]
  for _ in range(_POSE_STEPS):
    translations = _hang(rig, rotations, root)
    posed = skinning.pose(rest, weights, rotations[None], translations[None])[0]
    turns, shift = _pose_step(
      rig, rest, weights, below, rotations, goal - posed
    )
    rotations = transform.Rotation.from_rotvec(turns).as_matrix() @ rotations
    root = root + shift
    if np.abs(turns).max() < 1e-4:
      break
  return rotations, _hang(rig, rotations, root)


def _pose_step(
  rig: Rig,
  rest: np.ndarray,
  weights: np.ndarray,
  below: np.ndarray,
  rotations: np.ndarray,
  left: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
  """Rotations [B, 3] of the bones in the world, and the root's shift [3]."""
  count = rig.num_bones
  jacobian = np.zeros((len(rest), 3, 3 * count + 3))
  for bone in range(count):
    lever = weights[:, bone, None] * (rest - rig.joints[bone])
    for child in np.flatnonzero(rig.parents == bone):
      arm = rig.joints[child] - rig.joints[bone]
      lever = lever + below[:, child, None] * arm
    lever = lever @ rotations[bone].T
    # turn x lever, as a matrix applied to the turn.
    for axis in range(3):
      jacobian[:, :, 3 * bone + axis] = np.cross(np.eye(3)[axis], lever)
  jacobian[:, :, 3 * count :] = np.eye(3)
  flat = jacobian.reshape(-1, 3 * count + 3)
  matrix = flat.T @ flat
  damping = 1e-4 * np.trace(matrix) / len(matrix)
  step = np.linalg.solve(
    matrix + damping * np.eye(len(matrix)), flat.T @ left.reshape(-1)
  )
  return step[: 3 * count].reshape(-1, 3), step[3 * count :]


def _hang(rig: Rig, rotations: np.ndarray, root: np.ndarray) -> np.ndarray:
  """Translations [B, 3] that keep every joint fixed in its parent."""
  places = np.empty((rig.num_bones, 3))
  places[0] = root
  for bone in range(1, rig.num_bones):
    parent = rig.parents[bone]
    arm = rig.joints[bone] - rig.joints[parent]
    places[bone] = places[parent] + rotations[parent] @ arm
  return places - np.einsum("bij,bj->bi", rotations, rig.joints)


def _pairs(skin: Skin) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Joints [B, B, 3], spreads [B, B] and costs [B, B] of all pairs."""
  count = skin.num_bones
  joints = np.zeros((count, count, 3))
  spreads, costs = np.zeros((count, count)), np.zeros((count, count))
  owner = skin.weights.argmax(1)
  own = [skin.rest[owner == bone] for bone in range(count)]
  for a in range(count):
    for b in range(a):
      middle, gap = _contact(skin, own, a, b)
      joint, spread = _joint(skin, a, b, middle)
      joints[a, b] = joints[b, a] = joint
      spreads[a, b] = spreads[b, a] = spread
      # Joints far from the contact of the two bones are implausible, even if
      # their spread is small.
      away = np.linalg.norm(joint - middle)
      cost = 1e-6 + spread + 0.1 * away + _GAP * gap
      costs[a, b] = costs[b, a] = cost
  return joints, spreads, costs


def _contact(
  skin: Skin, own: list[np.ndarray], a: int, b: int
) -> tuple[np.ndarray, float]:
  """The centre of two bones' shared vertices, and the gap between them."""
  shared = skin.weights[:, a] * skin.weights[:, b]
  if shared.sum() > 1e-3:
    return shared @ skin.rest / shared.sum(), 0.0
  first = own[a] if len(own[a]) else skin.rest
  second = own[b] if len(own[b]) else skin.rest
  distances, near = spatial.cKDTree(second).query(first)
  best = int(distances.argmin())
  middle = (first[best] + second[near[best]]) / 2
  return middle, float(distances[best])


def _joint(
  skin: Skin, a: int, b: int, middle: np.ndarray
) -> tuple[np.ndarray, float]:
  """The point that two bones move alike, and its spread."""
  turn = skin.rotations[:, a] - skin.rotations[:, b]
  shift = skin.translations[:, b] - skin.translations[:, a]
  pull = _PULL * skin.num_frames
  matrix = np.einsum("fij,fik->jk", turn, turn) + pull * np.eye(3)
  joint = np.linalg.solve(
    matrix, np.einsum("fij,fi->j", turn, shift) + pull * middle
  )
  gap = turn @ joint - shift
  return joint, float(np.sqrt((gap**2).sum(-1).mean()))


def _tips(skin: Skin, joints: np.ndarray) -> np.ndarray:
  """The point of a bone's vertices that is farthest from its joint."""
  tips = joints.copy()
  for bone, joint in enumerate(joints):
    weights = skin.weights[:, bone]
    middle = weights @ skin.rest / weights.sum()
    length = np.linalg.norm(middle - joint)
    if length < 1e-9:
      tips[bone] = joint + [0.0, 1e-3, 0.0]
      continue
    direction = (middle - joint) / length
    reach = (skin.rest[weights > 0.3] - joint) @ direction
    end = np.quantile(reach, 0.98) if len(reach) else length
    tips[bone] = joint + max(end, length) * direction
  return tips
