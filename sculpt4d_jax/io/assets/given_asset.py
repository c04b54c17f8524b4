"""Reads a user's glTF asset so that it can be written again.

All of its triangles become one mesh in world space. For each vertex, the
primitive and node that it belongs to and the nodes that move it are kept. A
mesh with moved vertices can therefore be written back into the asset, with
materials, texture coordinates and skeleton unchanged.

The pose is the one in which the skin is bound to the joints. Most assets have
it when no animation plays; a few are stored in mid-motion.
"""

from collections.abc import Iterable
import dataclasses
import os

import numpy as np

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.assets import animated_assets
from sculpt4d_jax.io.assets import gltf_animation
from sculpt4d_jax.io.assets import gltf_colours
from sculpt4d_jax.io.assets import gltf_container
from sculpt4d_jax.io.assets import gltf_mesh
from sculpt4d_jax.io.assets import gltf_nodes

AssetError = gltf_container.AssetError
PathLike = str | os.PathLike
ABOVE_ALL = -1  # Stands for the parent of all root nodes.


@dataclasses.dataclass(frozen=True)
class Part:
  """The vertices of one primitive at one node.

  Attributes:
    node: Number of the node.
    row: Number of the primitive in its mesh.
    first: Number of its first vertex in the asset's mesh.
    primitive: The primitive.
    to_world: Takes its positions to the mesh's, float64 [4, 4].
    is_skinned: Whether joints move it; the node's transform has no effect then.
  """

  node: int
  row: int
  first: int
  primitive: gltf_mesh.Primitive
  to_world: np.ndarray
  is_skinned: bool

  @property
  def span(self) -> slice:
    """Its vertices in the asset's mesh."""
    return slice(self.first, self.first + self.primitive.num_vertices)


@dataclasses.dataclass(frozen=True)
class Skeleton:
  """The nodes that move vertices; parents precede their children.

  Attributes:
    nodes: Numbers of the nodes; the first may be `ABOVE_ALL`.
    parents: Position of each one's parent in `nodes`, int [B]; -1 for the
      first.
    worlds: Their world transforms in the pose of the mesh, float64 [B, 4, 4].
    weights: Share of each in the motion of a vertex, float64 [V, B].
    above: World transform of the first one's parent, float64 [4, 4].
  """

  nodes: tuple[int, ...]
  parents: np.ndarray
  worlds: np.ndarray
  weights: np.ndarray
  above: np.ndarray


@dataclasses.dataclass(frozen=True)
class GivenAsset:
  """An asset with what is needed to write it again.

  Attributes:
    file: The file.
    mesh: All triangles of the default scene.
    colours: Colours of the materials at the vertices, sRGB, uint8 [V, 3].
    parts: Parts that the vertices belong to, in their order.
    skeleton: Skeleton that moves them; None without a skin.
    roots: Nodes of the default scene that have no parent.
  """

  file: gltf_container.GltfFile
  mesh: mesh_lib.TriangleMesh
  colours: np.ndarray
  parts: tuple[Part, ...]
  skeleton: Skeleton | None
  roots: tuple[int, ...]


def read(path: PathLike) -> GivenAsset:
  """Reads a .glb or .gltf file.

  Raises:
    AssetError: It is malformed, has no triangles, or needs an unsupported
      extension.
  """
  with animated_assets.as_asset_errors():
    asset = gltf_container.GltfFile(path)
    scene = gltf_nodes.Nodes(asset)
    nodes, _ = scene.mesh_nodes("all", 0)
    worlds = gltf_animation.world_transforms(scene, {}, 1)
    resting = {node: world[0] for node, world in worlds.items()}
    for node in nodes:
      if not np.array_equal(scene.instances(node), np.eye(4)[None]):
        raise AssetError(f"{scene.name(node)!r} has instances; bake them.")
    bound, shapes = _bound_worlds(scene, nodes, resting)
    parts, count = [], 0
    for node in nodes:
      for primitive in scene.primitives(node):
        is_skinned = node in shapes and primitive.joints is not None
        to_world = shapes[node] if is_skinned else bound[node]
        parts.append(
          Part(
            node,
            _row(asset, scene.nodes[node]["mesh"], primitive),
            count,
            primitive,
            to_world,
            is_skinned,
          )
        )
        count += primitive.num_vertices
    mesh = mesh_lib.TriangleMesh(
      np.concatenate([transformed(p.to_world, p.primitive) for p in parts]),
      np.concatenate([part.primitive.faces + part.first for part in parts]),
    )
    if not np.isfinite(mesh.vertices).all():
      raise AssetError("positions are not finite.")
    colours = np.concatenate(
      [gltf_colours.vertex_colours(asset, part.primitive) for part in parts]
    )
    return GivenAsset(
      asset,
      mesh,
      colours,
      tuple(parts),
      _skeleton(scene, parts, bound, resting) if shapes else None,
      tuple(n for n in scene.order if scene.parent[n] is None),
    )


def transformed(
  transform: np.ndarray, primitive: gltf_mesh.Primitive
) -> np.ndarray:
  """Positions of a primitive after a transform [4, 4], float64 [V, 3]."""
  points = primitive.positions.astype(np.float64)
  return points @ transform[:3, :3].T + transform[:3, 3]


def _row(
  asset: gltf_container.GltfFile, mesh: int, primitive: gltf_mesh.Primitive
) -> int:
  rows = gltf_container.rows(asset.item("meshes", mesh), "primitives")
  return next(i for i, row in enumerate(rows) if row is primitive.description)


def _bound_worlds(
  scene: gltf_nodes.Nodes,
  nodes: Iterable[int],
  resting: dict[int, np.ndarray],
) -> tuple[dict[int, np.ndarray], dict[int, np.ndarray]]:
  """World transforms of all nodes where skins are bound, and of skinned meshes.

  An inverse bind matrix gives the joint's transform in the space of the skinned
  mesh; the topmost joint's world transform places that space in the world.
  """
  fixed: dict[int, np.ndarray] = {}
  shapes: dict[int, np.ndarray] = {}
  depth = {node: index for index, node in enumerate(scene.order)}
  for node in nodes:
    number = scene.nodes[node].get("skin")
    if number is None:
      continue
    skin = scene.asset.item("skins", number)
    joints = skin["joints"]
    inverse = np.tile(np.eye(4), (len(joints), 1, 1))
    if "inverseBindMatrices" in skin:
      values = scene.asset.accessor(skin["inverseBindMatrices"], "MAT4")
      inverse = values[: len(joints)].reshape(-1, 4, 4).swapaxes(1, 2)
      inverse = inverse.astype(np.float64)
    known = [i for i, joint in enumerate(joints) if joint in fixed]
    first = min(known or range(len(joints)), key=lambda i: depth[joints[i]])
    world = fixed.get(joints[first], resting[joints[first]])
    shapes[node] = world @ inverse[first]
    for joint, matrix in zip(joints, inverse):
      if joint not in fixed:
        fixed[joint] = shapes[node] @ np.linalg.inv(matrix)
  worlds: dict[int, np.ndarray] = {}
  for node in scene.order:
    parent = scene.parent[node]
    if node in fixed:
      worlds[node] = fixed[node]
    elif parent is None:
      worlds[node] = resting[node]
    else:
      local = np.linalg.inv(resting[parent]) @ resting[node]
      worlds[node] = worlds[parent] @ local
  return worlds, shapes


def _skeleton(
  scene: gltf_nodes.Nodes,
  parts: list[Part],
  bound: dict[int, np.ndarray],
  resting: dict[int, np.ndarray],
) -> Skeleton:
  """The tree of the nodes that move vertices."""
  count = parts[-1].span.stop
  columns: dict[int, np.ndarray] = {}
  for part in parts:
    ids = np.arange(count)[part.span]
    if not part.is_skinned:
      columns.setdefault(part.node, np.zeros(count))[ids] = 1.0
      continue
    number = scene.nodes[part.node]["skin"]
    joints = scene.asset.item("skins", number)["joints"]
    primitive = part.primitive
    for index in np.unique(primitive.joints[primitive.weights > 0]):
      shares = np.where(primitive.joints == index, primitive.weights, 0.0)
      column = columns.setdefault(joints[index], np.zeros(count))
      column[ids] += shares.sum(1)
  ways = [_way(scene, node) for node in columns]
  shared = [
    level[0]
    for level in zip(*ways, strict=False)
    if all(node == level[0] for node in level)
  ]
  root = shared[-1]
  wanted = {n for way in ways for n in way[way.index(root) :]}
  nodes = [root] + [n for n in scene.order if n in wanted and n != root]
  place = {node: index for index, node in enumerate(nodes)}
  parents = [-1] + [
    place[ABOVE_ALL if scene.parent[n] is None else scene.parent[n]]
    for n in nodes[1:]
  ]
  above = None if root == ABOVE_ALL else scene.parent[root]
  return Skeleton(
    tuple(nodes),
    np.array(parents),
    np.stack([bound.get(node, np.eye(4)) for node in nodes]),
    np.stack([columns.get(node, np.zeros(count)) for node in nodes], 1),
    np.eye(4) if above is None else resting[above],
  )


def _way(scene: gltf_nodes.Nodes, node: int) -> list[int]:
  """The path of nodes from `ABOVE_ALL` down to a node."""
  way = [node]
  while scene.parent[way[-1]] is not None:
    way.append(scene.parent[way[-1]])
  return [ABOVE_ALL, *reversed(way)]
