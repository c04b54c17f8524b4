"""Evaluates the animations of a glTF asset: nodes, morphs, skins, instances.

A clip is evaluated at given times to vertices in world space, with all meshes
of the scene joined. Nodes may have any animation; a mesh may have morph targets
and a skin. The transform of a skinned mesh's node is ignored, as the
specification requires.

Far from the origin, float32 cannot resolve the shape of a small object.
Positions are therefore computed in float64, and a distant object is moved to
the origin before rounding.

Source: Khronos glTF 2.0 specification, sections 3.7 and 3.11.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
from typing import Any

import numpy as np

from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import gltf_colours
from sculpt4d_jax.io.assets import gltf_container
from sculpt4d_jax.io.assets import gltf_mesh
from sculpt4d_jax.io.assets import gltf_nodes
from sculpt4d_jax.io.assets import gltf_tracks

AssetError = asset_files.AssetError
Attachments = gltf_nodes.Attachments
Clip = gltf_tracks.Clip
list_clips = gltf_tracks.list_clips


@dataclasses.dataclass(frozen=True)
class Evaluation:
  """An evaluated clip.

  Attributes:
    mesh: All triangles that are part of the object.
    left_out: Meshes of the scene that are not part of it.
    num_meshes: Number of meshes in the scene, including those left out.
  """

  mesh: deforming_mesh.DeformingMesh
  left_out: tuple[asset_files.LeftOut, ...]
  num_meshes: int


def evaluate(
  asset: gltf_container.GltfFile,
  clip: Clip,
  times: Sequence[float],
  *,
  attachments: Attachments = "one",
) -> Evaluation:
  """Evaluates a clip.

  Args:
    asset: The asset.
    clip: One of `list_clips`.
    times: Seconds [F]; before and after the clip its first or last key is used.
    attachments: Unskinned meshes on the joints of a skin: keep "all", "none",
      or "one" of the alternatives on the same joint (the choice depends only on
      the clip's name).

  Returns:
    The triangles of the scene. Their rest pose is that of the asset without any
    animation; their colours are those of the materials.

  Raises:
    AssetError: The asset is malformed, has no triangles, positions that are
      not finite, or more of anything than is allowed.
  """
  asset.budget.used = 0  # The budget is per clip.
  scene = gltf_nodes.Nodes(asset)
  seed = int.from_bytes(hashlib.sha256(clip.name.encode()).digest()[:4])
  nodes, dropped = scene.mesh_nodes(attachments, seed)
  animation = gltf_tracks.animation_of(asset, clip)
  times = np.asarray(times, np.float64)
  offset = _offset(scene, animation, times[:1], nodes)
  # The rest pose is evaluated as one more frame, without any channel.
  moving = _play(scene, animation, times, nodes, offset)
  resting = _play(scene, {}, np.zeros(1), nodes, offset)
  faces, colours = _surface(scene, nodes)
  mesh = deforming_mesh.DeformingMesh(moving, faces, resting[0], colours)
  left_out = _left_out(scene, animation, times[:1], dropped, mesh)
  return Evaluation(mesh, left_out, len(nodes) + len(dropped))


def rest_mesh(asset: gltf_container.GltfFile) -> mesh_lib.TriangleMesh:
  """All triangles of the default scene, without any animation.

  Raises:
    AssetError: The asset is malformed, has no triangles, positions that are
      not finite, or more of anything than is allowed.
  """
  asset.budget.used = 0
  scene = gltf_nodes.Nodes(asset)
  nodes, _ = scene.mesh_nodes("all", 0)
  [vertices] = _play(scene, {}, np.zeros(1), nodes, np.zeros(3))
  return mesh_lib.TriangleMesh(vertices, _surface(scene, nodes)[0])


def _shown(
  scene: gltf_nodes.Nodes, nodes: Sequence[int]
) -> Iterator[tuple[int, np.ndarray, gltf_mesh.Primitive]]:
  """Yields every primitive once for each of its instances."""
  for node in nodes:
    for instance in scene.instances(node):
      for primitive in scene.primitives(node):
        yield node, instance, primitive


def _surface(
  scene: gltf_nodes.Nodes, nodes: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
  """Faces [T, 3] and colours [V, 3]."""
  faces, colours, count = [], [], 0
  painted: dict[int, np.ndarray] = {}
  for _, _, primitive in _shown(scene, nodes):
    if id(primitive) not in painted:
      painted[id(primitive)] = gltf_colours.vertex_colours(
        scene.asset, primitive
      )
    faces.append(primitive.faces + count)
    colours.append(painted[id(primitive)])
    count += primitive.num_vertices
  return np.concatenate(faces), np.concatenate(colours)


def _offset(
  scene: gltf_nodes.Nodes,
  animation: dict[str, Any],
  time: np.ndarray,
  nodes: Sequence[int],
) -> np.ndarray:
  """The offset subtracted from all positions before they are rounded, [3]."""
  asset, used = scene.asset, scene.asset.budget.used
  [first] = _play(scene, animation, time, nodes, np.zeros(3), np.float64)
  asset.budget.used = used
  return deforming_mesh.rounding_offset(first)


def _left_out(
  scene: gltf_nodes.Nodes,
  animation: dict[str, Any],
  time: np.ndarray,
  dropped: dict[int, str],
  mesh: deforming_mesh.DeformingMesh,
) -> tuple[asset_files.LeftOut, ...]:
  """Meshes that are not part of the object, with their share of the area."""
  if not dropped:
    return ()
  kept_area, areas = _area(mesh.vertices[0], mesh.faces), {}
  for node in dropped:
    [vertices] = _play(scene, animation, time, [node], np.zeros(3), np.float64)
    faces, _ = _surface(scene, [node])
    areas[node] = _area(vertices, faces)
  whole = max(kept_area + sum(areas.values()), 1e-30)
  return tuple(
    asset_files.LeftOut(scene.name(node), areas[node] / whole, reason)
    for node, reason in dropped.items()
  )


def _area(vertices: np.ndarray, faces: np.ndarray) -> float:
  a, b, c = (vertices[faces[:, i]].astype(np.float64) for i in range(3))
  return float(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2)


def _play(
  scene: gltf_nodes.Nodes,
  animation: dict[str, Any],
  times: np.ndarray,
  nodes: Sequence[int],
  offset: np.ndarray,
  dtype: type = np.float32,
) -> np.ndarray:
  """World positions of some nodes' vertices, less an offset, [F, V, 3]."""
  asset = scene.asset
  tracks = gltf_tracks.read_tracks(asset, animation, times)
  worlds = world_transforms(scene, tracks, len(times))
  counts = [
    len(scene.instances(n)) * sum(p.num_vertices for p in scene.primitives(n))
    for n in nodes
  ]
  total, limits = sum(counts), asset.limits
  if total > limits.vertices:
    raise AssetError(
      f"the scene has {total:,} vertices; the limit is {limits.vertices:,}."
    )
  size = np.dtype(dtype).itemsize
  asset.budget.take(3 * size * len(times) * total, "the animated vertices")
  result = np.empty((len(times), total, 3), dtype)
  begin = 0
  for node, instance, primitive in _shown(scene, nodes):
    end = begin + primitive.num_vertices
    place = worlds[node] @ instance
    placed = _place(scene, node, primitive, tracks, worlds, place)
    for frame, points in enumerate(placed):
      result[frame, begin:end] = points - offset
    begin = end
  if not np.isfinite(result).all():
    bad = np.count_nonzero(~np.isfinite(result).all(-1).all(0))
    raise AssetError(f"{bad:,} of {total:,} vertices are not finite.")
  return result


def world_transforms(
  scene: gltf_nodes.Nodes, tracks: gltf_nodes.Tracks, num_frames: int
) -> dict[int, np.ndarray]:
  """World transforms, float64 [F, 4, 4], by node."""
  scene.asset.budget.take(
    128 * num_frames * len(scene.order), "the nodes' transforms"
  )
  worlds = {}
  for index in scene.order:
    local = gltf_nodes.local_transforms(
      scene.nodes[index], index, tracks, num_frames
    )
    parent = scene.parent[index]
    worlds[index] = local if parent is None else worlds[parent] @ local
  return worlds


def _place(
  scene: gltf_nodes.Nodes,
  node: int,
  primitive: gltf_mesh.Primitive,
  tracks: gltf_nodes.Tracks,
  worlds: dict[int, np.ndarray],
  place: np.ndarray,
) -> Iterator[np.ndarray]:
  """World positions of one primitive, float64 [V, 3], frame by frame."""
  joints = _joint_transforms(scene, node, primitive, worlds)
  weights = _morph_weights(scene, node, primitive, tracks, len(place))
  for frame, transform in enumerate(place):
    points = primitive.positions.astype(np.float64)
    if weights is not None:
      points = points + np.tensordot(weights[frame], primitive.targets, 1)
    if joints is None:
      yield points @ transform[:3, :3].T + transform[:3, 3]
    else:
      yield gltf_mesh.skin(primitive, points, joints[:, frame])


def _morph_weights(
  scene: gltf_nodes.Nodes,
  node: int,
  primitive: gltf_mesh.Primitive,
  tracks: gltf_nodes.Tracks,
  num_frames: int,
) -> np.ndarray | None:
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
  mesh = scene.asset.item("meshes", scene.nodes[node]["mesh"])
  weights = scene.nodes[node].get("weights", mesh.get("weights"))
  weights = gltf_nodes.numbers(
    weights or [0.0] * count, count, f"nodes[{node}].weights"
  )
  return np.broadcast_to(weights, (num_frames, count))


def _joint_transforms(
  scene: gltf_nodes.Nodes,
  node: int,
  primitive: gltf_mesh.Primitive,
  worlds: dict[int, np.ndarray],
) -> np.ndarray | None:
  """Transforms of a skin's joints, float64 [J, F, 4, 4]; None without."""
  if "skin" not in scene.nodes[node] or primitive.joints is None:
    return None
  asset = scene.asset
  skin = asset.item("skins", scene.nodes[node]["skin"])
  joints = skin.get("joints")
  if not isinstance(joints, list) or not joints:
    raise AssetError(f"the skin of nodes[{node}] has no joints.")
  if any(not gltf_container.is_index(j) or j not in worlds for j in joints):
    raise AssetError(f"the skin of nodes[{node}] has joints outside the scene.")
  if primitive.joints.max(initial=0) >= len(joints):
    raise AssetError(
      f"a vertex of nodes[{node}] follows joint {primitive.joints.max()} of"
      f" {len(joints)}."
    )
  frames = len(worlds[joints[0]])
  asset.budget.take(128 * frames * len(joints), "the joints' transforms")
  transforms = np.stack([worlds[j] for j in joints])
  if "inverseBindMatrices" in skin:
    inverse = asset.accessor(skin["inverseBindMatrices"], "MAT4")
    if len(inverse) < len(joints):
      raise AssetError(
        f"the skin has {len(joints)} joints and {len(inverse)} inverse bind"
        " matrices."
      )
    inverse = inverse[: len(joints)].reshape(-1, 1, 4, 4)
    transforms = transforms @ inverse.swapaxes(-1, -2).astype(np.float64)
  return transforms
