"""The nodes of a glTF scene: hierarchy, visibility and instances.

A node has a transform relative to its parent, and may show a mesh once or at
the instances that EXT_mesh_gpu_instancing lists.

Character assets often attach all alternative weapons to the hands at once, as
separate meshes on one joint; `Attachments` selects among them. Meshes on nodes
that are not joints, and numbered meshes on one joint (Head_1, Head_2), are
parts of the body, not alternatives.

Source: Khronos glTF 2.0 specification, sections 3.5 and 3.7; the extensions
EXT_mesh_gpu_instancing and KHR_node_visibility.
"""

from collections.abc import Mapping
import re
from typing import Any, Literal

import numpy as np
from scipy import spatial

from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import gltf_container
from sculpt4d_jax.io.assets import gltf_mesh
from sculpt4d_jax.io.assets import gltf_tracks

AssetError = asset_files.AssetError
Attachments = Literal["one", "all", "none"]
Tracks = Mapping[tuple[int, str], np.ndarray]

_DEFAULTS = {
  "translation": (0.0, 0.0, 0.0),
  "rotation": (0.0, 0.0, 0.0, 1.0),
  "scale": (1.0, 1.0, 1.0),
}
_INSTANCING = "EXT_mesh_gpu_instancing"
# Largest cosine between columns of a matrix that is decomposed into rotation
# and scale.
_SHEAR = 1e-4


class Nodes:
  """The nodes that the default scene reaches, parents before children.

  Attributes:
    asset: The asset.
    nodes: All nodes of the asset, reached or not.
    parent: Number of a node's parent, None for a root.
    order: Numbers of the reachable nodes.
  """

  def __init__(self, asset: gltf_container.GltfFile):
    """Walks the scene.

    Raises:
      AssetError: It is malformed or too large.
    """
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
    self._instances: dict[int, np.ndarray] = {}

  def primitives(self, node: int) -> list[gltf_mesh.Primitive]:
    """The triangles of a node's mesh."""
    index = self.nodes[node]["mesh"]
    if index not in self._primitives:
      self._primitives[index] = gltf_mesh.read_primitives(self.asset, index)
    return self._primitives[index]

  def instances(self, node: int) -> np.ndarray:
    """Transforms of a node's instances relative to the node, [I, 4, 4]."""
    if node not in self._instances:
      self._instances[node] = self._read_instances(node)
    return self._instances[node]

  def name(self, node: int) -> str:
    """The name of a node for messages."""
    return str(self.nodes[node].get("name") or f"nodes[{node}]")[:80]

  def mesh_nodes(
    self, attachments: Attachments, seed: int
  ) -> tuple[list[int], dict[int, str]]:
    """The nodes whose meshes are part of the object.

    Args:
      attachments: Unskinned meshes on the joints of a skin: "all", "none", or
        "one" of the alternatives on each joint.
      seed: Chooses among alternatives.

    Returns:
      Numbers of nodes, and the reasons for which others were left out.

    Raises:
      AssetError: There are none.
    """
    nodes = [i for i in self.order if "mesh" in self.nodes[i]]
    nodes = [i for i in nodes if self.primitives(i) and self._is_visible(i)]
    if not nodes:
      raise AssetError("the scene has no triangles.")
    is_skinned = any("skin" in self.nodes[i] for i in nodes)
    if attachments == "all" or not is_skinned:
      return nodes, {}
    dropped = {}
    for joint, group in self._attached(nodes).items():
      things = list(group.values())
      kept = things[seed % len(things)] if attachments == "one" else []
      reason = f"hangs on the joint {self.name(joint)!r}"
      if kept:
        reason += f", on which {self.name(kept[0])!r} was taken"
      for i in (i for thing in things for i in thing if i not in kept):
        dropped[i] = reason
    return [i for i in nodes if i not in dropped], dropped

  def _is_visible(self, node: int | None) -> bool:
    while node is not None:
      extensions = gltf_container.table(self.nodes[node], "extensions")
      shown = gltf_container.table(extensions, "KHR_node_visibility")
      if shown.get("visible") is False:
        return False
      node = self.parent[node]
    return True

  def _attached(self, nodes: list[int]) -> dict[int, dict[str, list[int]]]:
    """Unskinned meshes, by their joint and the object they are part of."""
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
      # A mesh without a name is a separate object.
      group.setdefault(thing or f"{index}", []).append(index)
    return groups

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

  def _read_instances(self, node: int) -> np.ndarray:
    extensions = gltf_container.table(self.nodes[node], "extensions")
    # Instances of a skinned mesh are not defined.
    if _INSTANCING not in extensions or "skin" in self.nodes[node]:
      return np.eye(4)[None]
    extension = gltf_container.table(extensions, _INSTANCING)
    attributes = gltf_container.table(extension, "attributes")
    parts, counts = {}, set()
    for path, width in gltf_tracks.WIDTHS.items():
      if path.upper() in attributes:
        values = self.asset.accessor(attributes[path.upper()], f"VEC{width}")
        parts[path] = values.astype(np.float64)
        counts.add(len(values))
    if len(counts) != 1 or not all(
      np.isfinite(p).all() for p in parts.values()
    ):
      raise AssetError(
        f"the instances of {self.name(node)!r} have no places, or several"
        " numbers of them."
      )
    (count,) = counts
    if count > self.asset.limits.nodes:
      raise AssetError(
        f"{self.name(node)!r} has {count:,} instances; the limit is"
        f" {self.asset.limits.nodes:,}."
      )
    for path, value in _DEFAULTS.items():
      parts.setdefault(path, np.broadcast_to(value, (count, len(value))))
    return compose(**parts)


def local_transforms(
  node: dict[str, Any], index: int, tracks: Tracks, num_frames: int
) -> np.ndarray:
  """The transform of a node in its parent, float64 [F, 4, 4].

  A matrix on an animated node is forbidden by the specification but written by
  old exporters. It is decomposed first, because a channel replaces only its
  part.
  """
  animated = any((index, path) in tracks for path in gltf_tracks.WIDTHS)
  still = {path: node.get(path, default) for path, default in _DEFAULTS.items()}
  if "matrix" in node:
    matrix = numbers(node["matrix"], 16, f"nodes[{index}].matrix")
    matrix = matrix.reshape(4, 4).T
    if not animated:
      return np.broadcast_to(matrix, (num_frames, 4, 4))
    still = _take_apart(matrix, index)
  parts = {}
  for path, width in gltf_tracks.WIDTHS.items():
    if (index, path) in tracks:
      parts[path] = tracks[index, path]
    else:
      value = numbers(still[path], width, f"nodes[{index}].{path}")
      parts[path] = np.broadcast_to(value, (num_frames, width))
  return compose(**parts)


def compose(
  translation: np.ndarray, rotation: np.ndarray, scale: np.ndarray
) -> np.ndarray:
  """Transforms [F, 4, 4] that scale, then rotate, then translate."""
  result = np.zeros((len(translation), 4, 4))
  result[:, :3, :3] = _rotations(rotation) * scale[:, None, :]
  result[:, :3, 3] = translation
  result[:, 3, 3] = 1
  return result


def numbers(value: Any, count: int, name: str) -> np.ndarray:
  """A JSON list of `count` finite numbers, float64."""
  try:
    result = np.asarray(value, np.float64)
  except (TypeError, ValueError, OverflowError) as error:
    raise AssetError(f"{name} is not a list of numbers.") from error
  if result.shape != (count,) or not np.isfinite(result).all():
    raise AssetError(f"{name} must be {count} finite numbers.")
  return result


def _take_apart(matrix: np.ndarray, index: int) -> dict[str, np.ndarray]:
  """Translation, rotation and scale of a matrix without shear."""
  columns = matrix[:3, :3]
  scale = np.linalg.norm(columns, axis=0)
  if scale.min() <= 0:
    raise AssetError(f"nodes[{index}].matrix is animated and flat.")
  if np.linalg.det(columns) < 0:
    scale = scale * [-1, 1, 1]
  rotation = columns / scale
  if np.abs(rotation.T @ rotation - np.eye(3)).max() > _SHEAR:
    raise AssetError(
      f"nodes[{index}] is animated and has a matrix with shear, which is no"
      " translation, rotation and scale."
    )
  quaternion = spatial.transform.Rotation.from_matrix(rotation).as_quat()
  return {
    "translation": matrix[:3, 3],
    "rotation": quaternion,
    "scale": scale,
  }


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
