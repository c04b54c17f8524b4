"""Writes a user's asset again with the motion of a clip.

The content of the file is kept: vertices, faces, texture coordinates,
materials, pictures, nodes, names. Added are:

  write_morph   one morph target per frame with positions and normals, which
                reproduces the motion exactly. Joints become plain nodes.
  write_skin    the motion of the asset's skeleton. Other animations are kept,
                after this one.

A node above the scene converts the asset's units to the clip's.

The asset's normals are rotated as the smooth normals of the surface are, so
that hard edges stay hard.

Source: Khronos glTF 2.0 specification, sections 3.6 to 3.11.
"""

from collections.abc import Sequence
import copy
import os
from typing import Any

import numpy as np
from scipy.spatial import transform as rotations_lib

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry.registration import rotations
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io.assets import given_asset
from sculpt4d_jax.io.meshes import gltf_builder
from sculpt4d_jax.io.meshes import textured_glb

GivenAsset = given_asset.GivenAsset
PathLike = str | os.PathLike

# A decoder of compressed primitives may use another vertex order.
_PACKED = "KHR_draco_mesh_compression"


def write_morph(
  path: PathLike,
  asset: GivenAsset,
  vertices: np.ndarray,
  placement: np.ndarray,
  fps: float,
  *,
  times: Sequence[float] | None = None,
  name: str = "sculpt4d",
) -> None:
  """Writes the asset with a morph target a frame.

  Args:
    path: Output file (.glb).
    asset: The asset.
    vertices: Positions of its mesh's vertices, in its units [F, V, 3].
    placement: Similarity from its units to the clip's, float64 [4, 4].
    fps: Frames a second.
    times: Start of each frame, seconds, if frames are of unequal length.
    name: The animation's name.

  Raises:
    OutputError: The file cannot be written.
    ValueError: It would pass glTF's 4 GiB.
  """
  builder, top = _start(asset, placement)
  document = builder.document
  for key in ("animations", "skins"):
    document.pop(key, None)
  animation = textured_glb.Animation(builder, len(vertices), fps, times)
  weights = np.eye(len(vertices))
  weights = np.concatenate([weights, weights[-1:]]).reshape(-1)
  frames = tuple(range(len(vertices) + 1))
  turns = _normal_turns(asset.mesh, vertices)
  source = copy.deepcopy(document["meshes"])
  used: set[int] = set()
  for number, parts in _by_node(asset).items():
    node = document["nodes"][number]
    index = node.pop("mesh")
    mesh = copy.deepcopy(source[index])
    is_skinned = node.pop("skin", None) is not None
    node.pop("weights", None)
    for part in parts:
      primitive = mesh["primitives"][part.row]
      _unpack(primitive, has_skin=False)
      primitive["targets"] = [
        _target(builder, asset, part, positions, turn)
        for positions, turn in zip(vertices, turns)
      ]
    # glTF requires the same number of targets in each primitive.
    mesh["primitives"] = [mesh["primitives"][part.row] for part in parts]
    mesh["weights"] = [1.0] + [0.0] * (len(vertices) - 1)
    mesh.get("extras", {}).pop("targetNames", None)
    if index in used:  # Nodes that share a mesh move differently.
      index = builder.add("meshes", mesh)
    document["meshes"][index] = mesh
    used.add(index)
    if is_skinned:
      # Without its skin, the node's transform would take effect.
      moved: dict[str, Any] = {"mesh": index}
      moved["name"] = str(node.get("name", "")) + "_mesh"
      number = builder.add("nodes", _local(moved, parts[0].to_world))
      document["nodes"][top]["children"].append(number)
    else:
      node["mesh"] = index
    animation.add(number, "weights", frames, weights)
  document["animations"] = [animation.entry(name)]
  atomic.write_bytes(path, builder.glb_bytes(os.fspath(path)))


def write_skin(
  path: PathLike,
  asset: GivenAsset,
  worlds: np.ndarray,
  placement: np.ndarray,
  fps: float,
  *,
  times: Sequence[float] | None = None,
  name: str = "sculpt4d",
) -> None:
  """Writes the asset with the motion of its skeleton.

  Args:
    path: Output file (.glb).
    asset: The asset, which has a skeleton.
    worlds: World transforms of the skeleton's nodes, in the asset's units,
      float64 [F, B, 4, 4].
    placement: See `write_morph`.
    fps: Frames a second.
    times: See `write_morph`.
    name: See `write_morph`.

  Raises:
    OutputError: The file cannot be written.
    ValueError: It would pass glTF's 4 GiB.
  """
  builder, top = _start(asset, placement)
  skeleton = asset.skeleton
  animation = textured_glb.Animation(builder, len(worlds), fps, times)
  for bone, (number, parent) in enumerate(
    zip(skeleton.nodes, skeleton.parents)
  ):
    above = skeleton.above if parent < 0 else worlds[:, parent]
    if number == given_asset.ABOVE_ALL:
      local, number = placement @ worlds[:, bone], top
    else:
      local = np.linalg.inv(above) @ worlds[:, bone]
    turns, places, scale = split(local)
    _local(builder.document["nodes"][number], local[0])
    builder.document["nodes"][number]["scale"] = scale.tolist()
    animation.add_motion(number, turns, places)
  _lift_skinned(asset, builder.document)
  kept = builder.document.get("animations", [])
  builder.document["animations"] = [animation.entry(name), *kept]
  atomic.write_bytes(path, builder.glb_bytes(os.fspath(path)))


def split(
  transforms: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Rotations [F, 3, 3], translations [F, 3] and the mean scale [3].

  The scale of a mirrored transform is negative along x.
  """
  scale = np.linalg.norm(transforms[:, :3, :3], axis=1).mean(0)
  if np.linalg.det(transforms[0, :3, :3]) < 0:
    scale[0] *= -1
  turns = rotations.nearest(transforms[:, :3, :3] / scale)
  return turns, transforms[:, :3, 3], scale


def _start(
  asset: GivenAsset, placement: np.ndarray
) -> tuple[gltf_builder.GltfBuilder, int]:
  """The asset's document with one buffer, and the node above its scene."""
  document = copy.deepcopy(asset.file.document)
  starts, chunks, size = [], [], 0
  for index in range(len(asset.file.items("buffers"))):
    content = gltf_builder.padded(asset.file.buffer_bytes(index), b"\0")
    starts.append(size)
    chunks.append(content)
    size += len(content)
  for view in document.get("bufferViews", []):
    view["byteOffset"] = view.get("byteOffset", 0) + starts[view["buffer"]]
    view["buffer"] = 0
  document["asset"]["generator"] = "sculpt4d_jax"
  builder = gltf_builder.GltfBuilder(document, b"".join(chunks))
  for index, image in enumerate(document.get("images", [])):
    if "bufferView" not in image:
      content = asset.file.image_bytes(index)
      image.pop("uri")
      image["bufferView"] = builder.add_view(content)
      image["mimeType"] = _mime_type(content)
  for name in ("extensionsUsed", "extensionsRequired"):
    kept = [e for e in document.pop(name, []) if e != _PACKED]
    if kept:
      document[name] = kept
  for mesh in document.get("meshes", []):
    for primitive in mesh.get("primitives", []):
      _unpack(primitive)
  top = builder.add(
    "nodes", _local({"name": "placement"}, placement, list(asset.roots))
  )
  scenes = document.get("scenes") or [{}]
  scene = scenes[document.get("scene", 0)]
  document["scenes"] = [scene | {"nodes": [top]}]
  document["scene"] = 0
  return builder, top


def _lift_skinned(asset: GivenAsset, document: dict[str, Any]) -> None:
  """Moves skinned meshes to the scene's root, as the specification recommends.

  The transforms of their nodes and parents have no effect.
  """
  nodes = document["nodes"]
  for number in sorted({p.node for p in asset.parts if p.is_skinned}):
    if nodes[number].get("children"):
      continue
    for node in nodes:
      if number in node.get("children", []):
        node["children"].remove(number)
        if not node["children"]:
          del node["children"]
    for key in ("translation", "rotation", "scale", "matrix"):
      nodes[number].pop(key, None)
    document["scenes"][0]["nodes"].append(number)


def _local(
  node: dict[str, Any],
  transform: np.ndarray,
  children: list[int] | None = None,
) -> dict[str, Any]:
  """Sets a node's transform, without shear; returns the node."""
  turns, places, scale = split(transform[None])
  node.pop("matrix", None)
  turn = rotations_lib.Rotation.from_matrix(turns[0]).as_quat()
  node["translation"] = places[0].tolist()
  node["rotation"] = turn.tolist()
  node["scale"] = scale.tolist()
  if children:
    node["children"] = children
  return node


def _by_node(asset: GivenAsset) -> dict[int, list[given_asset.Part]]:
  parts: dict[int, list[given_asset.Part]] = {}
  for part in asset.parts:
    parts.setdefault(part.node, []).append(part)
  return parts


def _unpack(primitive: dict[str, Any], has_skin: bool = True) -> None:
  extensions = primitive.get("extensions", {})
  extensions.pop(_PACKED, None)
  if not extensions:
    primitive.pop("extensions", None)
  if not has_skin:
    for name in list(primitive["attributes"]):
      if name.startswith(("JOINTS_", "WEIGHTS_")):
        del primitive["attributes"][name]


def _target(
  builder: gltf_builder.GltfBuilder,
  asset: GivenAsset,
  part: given_asset.Part,
  positions: np.ndarray,
  turns: np.ndarray,
) -> dict[str, int]:
  """A morph target that takes a part to one frame's positions [V, 3]."""
  linear, shift = part.to_world[:3, :3], part.to_world[:3, 3]
  inverse = np.linalg.inv(linear)
  goal = (positions[part.span] - shift) @ inverse.T
  target = {
    "POSITION": builder.add_accessor(
      goal - part.primitive.positions, bounds=True
    )
  }
  normals = part.primitive.description["attributes"].get("NORMAL")
  if normals is not None:
    base = asset.file.accessor(normals, "VEC3").astype(np.float64)
    turned = _unit(base @ inverse)
    turned = np.einsum("vij,vj->vi", turns[part.span], turned)
    target["NORMAL"] = builder.add_accessor(_unit(turned @ linear) - base)
  return target


def _normal_turns(
  mesh: mesh_lib.TriangleMesh, vertices: np.ndarray
) -> list[np.ndarray]:
  """Least rotations of the surface's normals from rest to each frame."""
  _, rows = mesh.welded()
  first = np.zeros(rows.max() + 1, np.int64)
  first[rows] = np.arange(len(rows))
  faces = rows[mesh.faces]
  rest = textured_glb.pose_normals(mesh.vertices[first], faces)
  return [
    _between(rest, textured_glb.pose_normals(frame[first], faces))[rows]
    for frame in vertices
  ]


def _between(start: np.ndarray, end: np.ndarray) -> np.ndarray:
  """The least rotations that take unit vectors to others, [V, 3, 3].

  Source: Rodrigues' formula with the sine and cosine of the two vectors.
  """
  start, end = start.astype(np.float64), end.astype(np.float64)
  axis = np.cross(start, end)
  cosine = np.einsum("vx,vx->v", start, end)
  skew = rotations.skew(axis)
  square = skew @ skew / np.maximum(1 + cosine, 1e-6)[:, None, None]
  return rotations.nearest(np.eye(3) + skew + square)


def _unit(vectors: np.ndarray) -> np.ndarray:
  length = np.linalg.norm(vectors, axis=1, keepdims=True)
  return vectors / np.maximum(length, 1e-20)


def _mime_type(content: bytes) -> str:
  if content[:3] == b"\xff\xd8\xff":
    return "image/jpeg"
  return "image/webp" if content[8:12] == b"WEBP" else "image/png"
