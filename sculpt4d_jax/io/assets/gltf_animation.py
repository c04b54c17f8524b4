"""Plays the animations of a glTF asset: key frames, nodes, morphs and skins.

A clip at given times becomes vertices in world space, all meshes of the scene
joined. Nodes may have any animation; a mesh may have morph targets and a skin.
The transform of a skinned mesh's own node has no effect, as the specification
demands.

Assets of characters often hang every weapon they have on the hands at once, as
separate meshes on one joint. `attachments` says what to do with those. Meshes
on nodes that are no joints, and meshes on one joint that are numbered parts of
one thing (Head_1, Head_2), are parts of the body, not alternatives.

Source: Khronos glTF 2.0 specification, sections 3.7 and 3.11, appendix C.
"""

from collections.abc import Sequence
import dataclasses
import hashlib
import re
from typing import Any, Literal

import numpy as np

from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import gltf_colours
from sculpt4d_jax.io.assets import gltf_container
from sculpt4d_jax.io.assets import gltf_mesh

AssetError = asset_files.AssetError
Attachments = Literal["one", "all", "none"]

_WIDTHS = {"translation": 3, "rotation": 4, "scale": 3}
_DEFAULTS = {
  "translation": (0.0, 0.0, 0.0),
  "rotation": (0.0, 0.0, 0.0, 1.0),
  "scale": (1.0, 1.0, 1.0),
}


@dataclasses.dataclass(frozen=True)
class Clip:
  """One animation of an asset.

  Attributes:
    index: Its number in the asset.
    name: Name in the asset.
    start: Time of the first key, seconds.
    end: Time of the last key.
  """

  index: int
  name: str
  start: float
  end: float


def list_clips(asset: gltf_container.GltfFile) -> list[Clip]:
  """All animations of an asset that move something.

  Raises:
    AssetError: An animation is malformed.
  """
  clips = []
  for index, animation in enumerate(asset.items("animations")):
    if not isinstance(animation, dict):
      raise AssetError(f"animations[{index}] must be an object.")
    times = []
    for sampler in gltf_container.rows(animation, "samplers"):
      keys = _key_times(asset, sampler)
      times += [float(keys[0]), float(keys[-1])]
    if times and gltf_container.rows(animation, "channels"):
      name = str(animation.get("name") or f"animation {index}")[:200]
      clips.append(Clip(index, name, min(times), max(times)))
  return clips


def evaluate(
  asset: gltf_container.GltfFile,
  clip: Clip,
  times: Sequence[float],
  *,
  attachments: Attachments = "one",
) -> deforming_mesh.DeformingMesh:
  """Plays a clip.

  Args:
    asset: The asset.
    clip: One of `list_clips`.
    times: Seconds, F of them; outside the clip its first or last key holds.
    attachments: Unskinned meshes on the joints of a skin: keep "all", "none",
      or "one" of the alternatives that hang on the same joint (the choice
      depends on the clip's name alone).

  Returns:
    All triangles of the scene. Its rest pose is that of the asset without any
    animation; its colours are those of the materials.

  Raises:
    AssetError: The asset is malformed, has no triangles, positions that are
      not finite, or more of anything than is allowed.
  """
  asset.budget.used = 0  # Of this clip alone.
  scene = Scene(asset)
  seed = int.from_bytes(hashlib.sha256(clip.name.encode()).digest()[:4])
  nodes = scene.mesh_nodes(attachments, seed)
  animation = asset.item("animations", clip.index)
  # The rest pose is played as one more frame, which no channel moves.
  moving = scene.play(animation, np.asarray(times, np.float64), nodes)
  resting = scene.play({}, np.zeros(1), nodes)
  faces, colours, count = [], [], 0
  for node in nodes:
    for primitive in scene.primitives(node):
      faces.append(primitive.faces + count)
      colours.append(gltf_colours.vertex_colours(asset, primitive))
      count += primitive.num_vertices
  return deforming_mesh.DeformingMesh(
    moving, np.concatenate(faces), resting[0], np.concatenate(colours)
  )


def rest_mesh(asset: gltf_container.GltfFile) -> mesh_lib.TriangleMesh:
  """All triangles of the default scene, without any animation.

  Raises:
    AssetError: The asset is malformed, has no triangles, positions that are
      not finite, or more of anything than is allowed.
  """
  asset.budget.used = 0
  scene = Scene(asset)
  nodes = scene.mesh_nodes("all", 0)
  [vertices] = scene.play({}, np.zeros(1), nodes)
  faces, count = [], 0
  for node in nodes:
    for primitive in scene.primitives(node):
      faces.append(primitive.faces + count)
      count += primitive.num_vertices
  return mesh_lib.TriangleMesh(vertices, np.concatenate(faces))


class Scene:
  """The nodes that the default scene reaches, parents before children."""

  def __init__(self, asset: gltf_container.GltfFile):
    self.asset = asset
    self.nodes = asset.items("nodes")
    if len(self.nodes) > asset.limits.nodes:
      raise AssetError(
        f"the asset has {len(self.nodes):,} nodes; the limit is"
        f" {asset.limits.nodes:,}."
      )
    self.parent: dict[int, int | None] = {}
    self.order = self._reachable(self._roots())
    self._primitives: dict[int, list[gltf_mesh.Primitive]] = {}

  def _children(self, index: int) -> list[int]:
    children = self.asset.item("nodes", index).get("children") or []
    if not isinstance(children, list) or not all(
      gltf_container.is_index(c) and c < len(self.nodes) for c in children
    ):
      raise AssetError(f"nodes[{index}] has children that do not exist.")
    return children

  def _roots(self) -> list[int]:
    scenes = self.asset.items("scenes")
    if scenes:
      scene = self.asset.item("scenes", self.asset.document.get("scene", 0))
      roots = scene.get("nodes") or []
      if isinstance(roots, list) and all(map(gltf_container.is_index, roots)):
        return roots
      raise AssetError("the scene's nodes are not a list of numbers.")
    below = {c for i in range(len(self.nodes)) for c in self._children(i)}
    return [i for i in range(len(self.nodes)) if i not in below]

  def _reachable(self, roots: list[int]) -> list[int]:
    order, waiting = [], [(root, None) for root in reversed(roots)]
    while waiting:
      index, parent = waiting.pop()
      if index in self.parent:
        raise AssetError(
          f"nodes[{index}] has two parents, or is its own ancestor."
        )
      self.parent[index] = parent
      order.append(index)
      children = self._children(index)
      waiting += [(child, index) for child in reversed(children)]
    return order

  def mesh_nodes(self, attachments: Attachments, seed: int) -> list[int]:
    """The nodes whose meshes are part of the object."""
    nodes = [i for i in self.order if "mesh" in self.nodes[i]]
    nodes = [i for i in nodes if self.primitives(i)]
    if not nodes:
      raise AssetError("the scene has no triangles.")
    loose = self._attached(nodes)
    is_skinned = any("skin" in self.nodes[i] for i in nodes)
    if attachments == "all" or not is_skinned:
      return nodes
    kept = set()
    if attachments == "one":
      for group in loose.values():
        kept.update(list(group.values())[seed % len(group)])
    dropped = {i for g in loose.values() for p in g.values() for i in p} - kept
    return [i for i in nodes if i not in dropped]

  def _attached(self, nodes: list[int]) -> dict[int, dict[str, list[int]]]:
    """Unskinned meshes by the joint they hang on and the thing they show."""
    joints = {
      joint
      for skin in self.asset.items("skins")
      if isinstance(skin, dict)
      for joint in skin.get("joints") or ()
      if gltf_container.is_index(joint)
    }
    groups: dict[int, dict[str, list[int]]] = {}
    for index in nodes:
      node, parent = self.nodes[index], self.parent[index]
      if "skin" in node or parent not in joints:
        continue
      thing = re.sub(r"[\W_]*\d+$", "", str(node.get("name", "")))
      group = groups.setdefault(parent, {})
      # Without names, each mesh is a thing by itself.
      group.setdefault(thing or f"{index}", []).append(index)
    return groups

  def primitives(self, node: int) -> list[gltf_mesh.Primitive]:
    index = self.nodes[node]["mesh"]
    if index not in self._primitives:
      self._primitives[index] = gltf_mesh.read_primitives(self.asset, index)
    return self._primitives[index]

  def play(
    self, animation: dict[str, Any], times: np.ndarray, nodes: list[int]
  ) -> np.ndarray:
    """World positions of all vertices of some nodes, float32 [F, V, 3]."""
    tracks = _tracks(self.asset, animation, times)
    worlds = self.world_transforms(tracks, len(times))
    counts = [sum(p.num_vertices for p in self.primitives(n)) for n in nodes]
    total, limits = sum(counts), self.asset.limits
    if total > limits.vertices:
      raise AssetError(
        f"the scene has {total:,} vertices; the limit is {limits.vertices:,}."
      )
    self.asset.budget.take(12 * len(times) * total, "the animated vertices")
    result = np.empty((len(times), total, 3), np.float32)
    begin = 0
    for node in nodes:
      for primitive in self.primitives(node):
        end = begin + primitive.num_vertices
        self._place(node, primitive, tracks, worlds, result[:, begin:end])
        begin = end
    if not np.isfinite(result).all():
      bad = np.count_nonzero(~np.isfinite(result).all(-1).all(0))
      raise AssetError(f"{bad:,} of {total:,} vertices are not finite.")
    return result

  def world_transforms(
    self, tracks: dict, num_frames: int
  ) -> dict[int, np.ndarray]:
    """World transforms, float64 [F, 4, 4], by node."""
    self.asset.budget.take(
      128 * num_frames * len(self.order), "the nodes' transforms"
    )
    worlds = {}
    for index in self.order:
      local = _local(self.nodes[index], index, tracks, num_frames)
      parent = self.parent[index]
      worlds[index] = local if parent is None else worlds[parent] @ local
    return worlds

  def _place(self, node, primitive, tracks, worlds, out) -> None:
    """Writes the world positions of one primitive, [F, V, 3]."""
    joints = self._joint_transforms(node, primitive, worlds)
    weights = self._morph_weights(node, primitive, tracks, len(out))
    for frame in range(len(out)):
      points = primitive.positions
      if weights is not None:
        points = points + np.tensordot(weights[frame], primitive.targets, 1)
      if joints is None:
        transform = worlds[node][frame]
        out[frame] = points @ transform[:3, :3].T + transform[:3, 3]
      else:
        out[frame] = gltf_mesh.skin(primitive, points, joints[:, frame])

  def _morph_weights(self, node, primitive, tracks, num_frames):
    count = len(primitive.targets)
    if not count:
      return None
    if (node, "weights") in tracks:
      weights = tracks[node, "weights"]
      if weights.shape[1] != count:
        raise AssetError(
          f"nodes[{node}] has {weights.shape[1]} animated weights and"
          f" {count} morph targets."
        )
      return weights
    mesh = self.asset.item("meshes", self.nodes[node]["mesh"])
    weights = self.nodes[node].get("weights", mesh.get("weights"))
    weights = numbers(weights or [0.0] * count, count, f"nodes[{node}].weights")
    return np.broadcast_to(weights, (num_frames, count))

  def _joint_transforms(self, node, primitive, worlds):
    """Transforms of a skin's joints, float64 [J, F, 4, 4]; None without."""
    if "skin" not in self.nodes[node] or primitive.joints is None:
      return None
    skin = self.asset.item("skins", self.nodes[node]["skin"])
    joints = skin.get("joints")
    if not isinstance(joints, list) or not joints:
      raise AssetError(f"the skin of nodes[{node}] has no joints.")
    if any(not gltf_container.is_index(j) or j not in worlds for j in joints):
      raise AssetError(
        f"the skin of nodes[{node}] has joints outside the scene."
      )
    if primitive.joints.max(initial=0) >= len(joints):
      raise AssetError(
        f"a vertex of nodes[{node}] follows joint {primitive.joints.max()} of"
        f" {len(joints)}."
      )
    frames = len(worlds[joints[0]])
    self.asset.budget.take(128 * frames * len(joints), "the joints' transforms")
    transforms = np.stack([worlds[j] for j in joints])
    if "inverseBindMatrices" in skin:
      inverse = self.asset.accessor(skin["inverseBindMatrices"], "MAT4")
      if len(inverse) < len(joints):
        raise AssetError(
          f"the skin has {len(joints)} joints and {len(inverse)} inverse bind"
          " matrices."
        )
      inverse = inverse[: len(joints)].reshape(-1, 1, 4, 4)
      transforms = transforms @ inverse.swapaxes(-1, -2).astype(np.float64)
    return transforms


def numbers(value: Any, count: int, name: str) -> np.ndarray:
  """A JSON list of `count` finite numbers, float64."""
  try:
    result = np.asarray(value, np.float64)
  except (TypeError, ValueError, OverflowError) as error:
    raise AssetError(f"{name} is not a list of numbers.") from error
  if result.shape != (count,) or not np.isfinite(result).all():
    raise AssetError(f"{name} must be {count} finite numbers.")
  return result


def _local(node, index, tracks, num_frames) -> np.ndarray:
  """The transform of a node in its parent, float64 [F, 4, 4]."""
  animated = any((index, path) in tracks for path in _WIDTHS)
  if "matrix" in node and not animated:
    matrix = numbers(node["matrix"], 16, f"nodes[{index}].matrix")
    return np.broadcast_to(matrix.reshape(4, 4).T, (num_frames, 4, 4))
  parts = {}
  for path, width in _WIDTHS.items():
    if (index, path) in tracks:
      parts[path] = tracks[index, path]
    else:
      value = numbers(
        node.get(path, _DEFAULTS[path]), width, f"nodes[{index}].{path}"
      )
      parts[path] = np.broadcast_to(value, (num_frames, width))
  result = np.zeros((num_frames, 4, 4))
  result[:, :3, :3] = _rotations(parts["rotation"]) * parts["scale"][:, None, :]
  result[:, :3, 3] = parts["translation"]
  result[:, 3, 3] = 1
  return result


def _rotations(quaternions: np.ndarray) -> np.ndarray:
  """Rotation matrices [F, 3, 3] of quaternions (x, y, z, w) [F, 4]."""
  length = np.linalg.norm(quaternions, axis=1, keepdims=True)
  x, y, z, w = (quaternions / np.maximum(length, 1e-12)).T
  return np.stack(
    [
      1 - 2 * (y * y + z * z),
      2 * (x * y - z * w),
      2 * (x * z + y * w),
      2 * (x * y + z * w),
      1 - 2 * (x * x + z * z),
      2 * (y * z - x * w),
      2 * (x * z - y * w),
      2 * (y * z + x * w),
      1 - 2 * (x * x + y * y),
    ],
    axis=-1,
  ).reshape(-1, 3, 3)


def _key_times(asset, sampler) -> np.ndarray:
  keys = asset.accessor(sampler.get("input"), "SCALAR")[:, 0]
  keys = keys.astype(np.float64)
  if not 1 <= len(keys) <= asset.limits.keys:
    raise AssetError(
      f"a channel has {len(keys):,} keys; expected 1 to {asset.limits.keys:,}."
    )
  if not np.isfinite(keys).all() or (np.diff(keys) < 0).any():
    raise AssetError("the times of a channel's keys do not increase.")
  return keys


def _tracks(asset, animation, times) -> dict[tuple[int, str], np.ndarray]:
  """Values [F, width] of everything that an animation moves."""
  tracks = {}
  samplers = gltf_container.rows(animation, "samplers")
  for channel in gltf_container.rows(animation, "channels"):
    target = gltf_container.table(channel, "target")
    node, path = target.get("node"), target.get("path")
    if node is None or path not in (*_WIDTHS, "weights"):
      continue  # Something that an extension animates.
    number = channel.get("sampler")
    if not gltf_container.is_index(number) or number >= len(samplers):
      raise AssetError(f"a channel of nodes[{node}] has no sampler.")
    tracks[node, path] = _sample(asset, samplers[number], path, times)
  return tracks


def _sample(asset, sampler, path, times) -> np.ndarray:
  """Values of one channel at times [F]: [F, width]."""
  keys = _key_times(asset, sampler)
  mode = sampler.get("interpolation", "LINEAR")
  kind = "SCALAR" if path == "weights" else f"VEC{_WIDTHS[path]}"
  output = asset.accessor(sampler.get("output"), kind).astype(np.float64)
  per_key = 3 if mode == "CUBICSPLINE" else 1
  if output.size == 0 or output.size % (len(keys) * per_key):
    raise AssetError(
      f"a channel has {len(keys)} keys and {len(output)} values."
    )
  values = output.reshape(len(keys), per_key, -1)
  if path != "weights" and values.shape[2] != _WIDTHS[path]:
    raise AssetError(
      f"a channel has {len(keys)} keys and {len(output)} values."
    )
  if path == "rotation" and mode != "CUBICSPLINE":
    result = _interpolate(keys, values, times, mode, _slerp)
  else:
    result = _interpolate(keys, values, times, mode, _lerp)
  if not np.isfinite(result).all():
    raise AssetError(f"the {path} keys of a channel are not finite.")
  return result


def _interpolate(keys, values, times, mode, between) -> np.ndarray:
  times = np.clip(times, keys[0], keys[-1])
  left = np.clip(
    np.searchsorted(keys, times, "right") - 1, 0, max(len(keys) - 2, 0)
  )
  right = np.minimum(left + 1, len(keys) - 1)
  span = np.maximum(keys[right] - keys[left], 1e-12)[:, None]
  u = (times - keys[left])[:, None] / span
  if mode == "STEP":
    return values[np.where(times >= keys[right], right, left), 0]
  if mode == "LINEAR":
    return between(values[left, 0], values[right, 0], np.clip(u, 0, 1))
  if mode != "CUBICSPLINE":
    raise AssetError(f"unknown interpolation {str(mode)[:20]!r}.")
  # A key holds its incoming tangent, its value and its outgoing tangent.
  start, leaving = values[left, 1], values[left, 2] * span
  end, arriving = values[right, 1], values[right, 0] * span
  return (
    (2 * u**3 - 3 * u**2 + 1) * start
    + (u**3 - 2 * u**2 + u) * leaving
    + (3 * u**2 - 2 * u**3) * end
    + (u**3 - u**2) * arriving
  )


def _lerp(a, b, u) -> np.ndarray:
  return a * (1 - u) + b * u


def _slerp(a, b, u) -> np.ndarray:
  """Between unit quaternions [F, 4] on the shorter arc."""
  cosine = np.sum(a * b, axis=1, keepdims=True)
  b = np.where(cosine < 0, -b, b)
  angle = np.arccos(np.clip(np.abs(cosine), 0, 1))
  sine = np.sin(angle)
  far = sine > 1e-6
  safe = np.where(far, sine, 1)
  return np.where(
    far,
    (np.sin((1 - u) * angle) * a + np.sin(u * angle) * b) / safe,
    _lerp(a, b, u),
  )
