"""Writes an animated, textured asset as GLB, with morph targets or a skin.

Morph targets reproduce every frame exactly. The base mesh is the first frame,
each target holds the displacement to another frame, and the animation fades
linearly from one target to the next, so at most two are active. A skin makes
the file several times smaller and adds a skeleton; its accuracy depends on the
bones.

A clip whose topology changes has several meshes, each visible only in its
frames: the scale of its node steps between one and zero. The first frame is at
0, each frame's pose is reached when the frame starts, and the last pose is held
for the frame's duration (`frame_times`).

Vertices at texture seams are split, but have positions and normals of the
unsplit mesh; otherwise seams would be visible. Targets have no normals, because
viewers support half as many targets with them. Targets are dense, because some
viewers flicker with sparse ones.

Source: Khronos glTF 2.0 specification, sections 3.6 to 3.11; extension
KHR_materials_unlit.
"""

from collections.abc import Sequence
import io
import os
import pathlib
from typing import Any

import numpy as np
from PIL import Image
from scipy.spatial import transform

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import bone_tree
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import textured_mesh
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io.meshes import frame_times
from sculpt4d_jax.io.meshes import glb
from sculpt4d_jax.io.meshes import gltf_builder

TexturedMesh = textured_mesh.TexturedMesh
TriangleMesh = mesh_lib.TriangleMesh
PathLike = str | os.PathLike

_UNLIT = "KHR_materials_unlit"
_CLAY = [0.62, 0.58, 0.54, 1.0]
_LINEAR, _MIPMAPS, _CLAMP = 9729, 9987, 33071


def write_morph(
  path: PathLike,
  parts: Sequence[TexturedMesh],
  fps: float,
  *,
  times: Sequence[float] | None = None,
  name: str = "sculpt4d",
) -> None:
  """Writes an asset whose frames are morph targets.

  Args:
    path: Output file (.glb).
    parts: Meshes of consecutive runs of frames, one topology each.
    fps: Frames a second.
    times: Start of each frame, seconds, if frames are of unequal length.
    name: The animation's name, which viewers list.

  Raises:
    ValueError: The suffix is wrong, the parts do not cover the clip, a position
      is not finite, or the file would exceed glTF's 4 GiB.
    OutputError: The file cannot be written.
  """
  num_frames = _check(path, parts, fps)
  builder = gltf_builder.GltfBuilder()
  animation = Animation(builder, num_frames, fps, times)
  textures: dict[int, int] = {}
  for index, part in enumerate(parts):
    node = builder.add("nodes", _morph_node(builder, part, index, textures))
    if part.mesh.num_frames > 1:
      animation.add_morph(node, part)
    if len(parts) > 1:
      animation.add_visibility(node, part)
  _finish(builder, path, list(range(len(parts))), animation, name)


def write_skin(
  path: PathLike,
  part: TexturedMesh,
  rig: bone_tree.Rig,
  fps: float,
  *,
  trajectory: np.ndarray | None = None,
  times: Sequence[float] | None = None,
  name: str = "sculpt4d",
) -> None:
  """Writes an asset moved by bones.

  Args:
    path: Output file (.glb).
    part: The mesh; its topology and colours are used, its motion is the rig's.
    rig: The bones, in the mesh's frames.
    fps: Frames a second.
    trajectory: The global motion that was removed before the bones were fitted,
      rigid [F, 4, 4]; it moves the node above the root.
    times: Start of each frame, seconds, if frames are of unequal length.
    name: The animation's name.

  Raises:
    ValueError: See `write_morph`; or the rig has other frames or vertices.
    OutputError: The file cannot be written.
  """
  num_frames = _check(path, [part], fps)
  skin = rig.skin
  if (skin.num_frames, len(skin.rest)) != part.mesh.vertices.shape[:2]:
    raise UserError(
      f"the rig has {skin.num_frames} frames of {len(skin.rest)} vertices, the"
      f" mesh {num_frames} of {part.mesh.num_vertices}."
    )
  builder = gltf_builder.GltfBuilder()
  animation = Animation(builder, num_frames, fps, times)
  # The mesh is at the root: a skinned mesh's node has no effect.
  builder.add("nodes", {"name": "mesh", "mesh": 0, "skin": 0})
  first_joint = 2
  builder.add("nodes", {"name": "trajectory", "children": [first_joint]})
  for bone, name_ in enumerate(rig.names):
    builder.add("nodes", _joint_node(rig, bone, name_, first_joint))
  attributes = _surface(builder, part, skin.rest)
  ids, weights = skin.influences()
  attributes |= {
    "JOINTS_0": builder.add_accessor(
      ids[part.vertex_map], "u1", target=gltf_builder.VERTICES
    ),
    "WEIGHTS_0": builder.add_accessor(
      _exact_sums(weights)[part.vertex_map], target=gltf_builder.VERTICES
    ),
  }
  _add_mesh(builder, part, attributes, {}, {})
  inverse = np.tile(np.eye(4), (rig.num_bones, 1, 1))
  inverse[:, :3, 3] = -rig.joints
  columns = inverse.swapaxes(1, 2).reshape(-1, 16)
  builder.add(
    "skins",
    {
      "inverseBindMatrices": builder.add_accessor(columns),
      "joints": list(range(first_joint, first_joint + rig.num_bones)),
      "skeleton": first_joint,
    },
  )
  if trajectory is not None:
    animation.add_motion(1, trajectory[:, :3, :3], trajectory[:, :3, 3])
  rotations, offsets = rig.locals()
  for bone in range(rig.num_bones):
    animation.add_motion(
      first_joint + bone, rotations[:, bone], offsets[:, bone]
    )
  _finish(builder, path, [0, 1], animation, name)


def _check(path: PathLike, parts: Sequence[TexturedMesh], fps: float) -> int:
  suffix = pathlib.Path(path).suffix.lower()
  if suffix != ".glb":
    raise UserError(
      f"{os.fspath(path)}: expected a file ending in .glb, got"
      f" {suffix or 'no suffix'!r}."
    )
  return textured_mesh.check_parts(parts, fps)


def _finish(
  builder: gltf_builder.GltfBuilder,
  path: PathLike,
  roots: list[int],
  animation: "Animation",
  name: str,
) -> None:
  builder.document["scenes"] = [{"nodes": roots}]
  if animation.channels:
    builder.document["animations"] = [animation.entry(name)]
  atomic.write_bytes(path, builder.glb_bytes(os.fspath(path)))


class Animation:
  """Samplers and channels; key times are shared between nodes."""

  def __init__(
    self,
    builder: gltf_builder.GltfBuilder,
    num_frames: int,
    fps: float,
    times: Sequence[float] | None,
  ):
    self.builder, self.num_frames, self.fps = builder, num_frames, float(fps)
    self.edges = frame_times.frame_edges(num_frames, fps, times)
    self.samplers: list[dict[str, Any]] = []
    self.channels: list[dict[str, Any]] = []
    self._times: dict[tuple[int, ...], int] = {}

  def add_morph(self, node: int, part: TexturedMesh) -> None:
    """Shows the frames of a part one after the other by morph weights."""
    count = part.mesh.num_frames
    weights = np.eye(count)[:, 1:]  # Frame 0 is the base: no target.
    weights = np.concatenate([weights, weights[-1:]])
    self.add(node, "weights", self._frames_of(part), weights.reshape(-1))

  def add_motion(
    self, node: int, rotations: np.ndarray, places: np.ndarray
  ) -> None:
    """A rigid motion: rotations [F, 3, 3] and translations [F, 3]."""
    frames = (*range(self.num_frames), self.num_frames)
    quaternions = continuous_quaternions(rotations)
    for path, values in (("rotation", quaternions), ("translation", places)):
      values = np.concatenate([values, values[-1:]])
      self.add(node, path, frames, values)

  def add_visibility(self, node: int, part: TexturedMesh) -> None:
    """Hides a part outside of its frames by a scale of 0, without blending."""
    keys = {0: 0.0, part.first_frame: 1.0, part.last_frame + 1: 0.0}
    if part.last_frame == self.num_frames - 1:
      keys[self.num_frames] = 1.0  # Held until the end.
    frames = tuple(sorted(keys))
    scales = np.repeat([[keys[frame]] for frame in frames], 3, axis=1)
    self.add(node, "scale", frames, scales, "STEP")

  def _frames_of(self, part: TexturedMesh) -> tuple[int, ...]:
    """Frames of a part, and the end of its last one."""
    return (*range(part.first_frame, part.last_frame + 1), part.last_frame + 1)

  def add(
    self,
    node: int,
    path: str,
    frames: tuple[int, ...],
    values: np.ndarray,
    interpolation: str = "LINEAR",
  ) -> None:
    """A channel whose values are reached when the given frames start."""
    if frames not in self._times:
      self._times[frames] = self.builder.add_accessor(
        self.edges[list(frames)], bounds=True
      )
    sampler = {
      "input": self._times[frames],
      "output": self.builder.add_accessor(values),
      "interpolation": interpolation,
    }
    self.channels.append(
      {
        "sampler": len(self.samplers),
        "target": {"node": node, "path": path},
      }
    )
    self.samplers.append(sampler)

  def entry(self, name: str) -> dict[str, Any]:
    """The JSON of the animation, with rate and frame count as extras."""
    return {
      "name": name,
      "samplers": self.samplers,
      "channels": self.channels,
      "extras": {"fps": self.fps, "frames": self.num_frames},
    }


def continuous_quaternions(rotations: np.ndarray) -> np.ndarray:
  """Quaternions (x, y, z, w) of rotations [F, 3, 3], [F, 4].

  q and -q represent the same rotation. Each sign is chosen near the previous
  quaternion, so that interpolation takes the shorter arc.
  """
  quaternions = transform.Rotation.from_matrix(rotations).as_quat()
  for frame in range(1, len(quaternions)):
    if quaternions[frame] @ quaternions[frame - 1] < 0:
      quaternions[frame] *= -1
  return quaternions


def _morph_node(
  builder: gltf_builder.GltfBuilder,
  part: TexturedMesh,
  index: int,
  textures: dict[int, int],
) -> dict[str, Any]:
  frames = part.mesh.vertices
  attributes = _surface(builder, part, frames[0])
  more: dict[str, Any] = {}
  if len(frames) > 1:
    more["targets"] = [
      {
        "POSITION": builder.add_accessor(
          (frame - frames[0])[part.vertex_map],
          target=gltf_builder.VERTICES,
          bounds=True,
        )
      }
      for frame in frames[1:]
    ]
  mesh = _add_mesh(builder, part, attributes, more, textures)
  shown = 1 if index == 0 else 0
  node = {"name": f"frames_{part.first_frame:04d}", "mesh": mesh}
  return node if shown else node | {"scale": [0, 0, 0]}


def _joint_node(
  rig: bone_tree.Rig, bone: int, name: str, first: int
) -> dict[str, Any]:
  parent = int(rig.parents[bone])
  place = rig.joints[bone] - (rig.joints[parent] if parent >= 0 else 0)
  node: dict[str, Any] = {"name": name, "translation": place.tolist()}
  children = np.flatnonzero(rig.parents == bone) + first
  return node | ({"children": children.tolist()} if len(children) else {})


def pose_normals(places: np.ndarray, faces: np.ndarray) -> np.ndarray:
  """Unit normals of the unsplit mesh in a pose [V, 3]."""
  return glb.unit_normals(TriangleMesh(places, faces))


def _surface(
  builder: gltf_builder.GltfBuilder, part: TexturedMesh, places: np.ndarray
) -> dict[str, int]:
  """Attributes of one pose [V, 3]: positions, normals and colours."""
  normals = pose_normals(places, part.mesh.faces)
  target = gltf_builder.VERTICES
  attributes = {
    "POSITION": builder.add_accessor(
      places[part.vertex_map], target=target, bounds=True
    ),
    "NORMAL": builder.add_accessor(normals[part.vertex_map], target=target),
  }
  if part.atlas is not None:
    attributes["TEXCOORD_0"] = builder.add_accessor(
      part.atlas.uv, target=target
    )
  elif part.mesh.colours is not None:
    # glTF vertex colours are linear light, in which 8 bits would cause banding.
    linear = textured_mesh.linear_colours(part.mesh.colours)
    opaque = np.concatenate([linear, np.ones((len(linear), 1))], 1)
    attributes["COLOR_0"] = builder.add_accessor(
      np.round(opaque * 65535), "<u2", target=target, normalized=True
    )
  return attributes


def _add_mesh(
  builder: gltf_builder.GltfBuilder,
  part: TexturedMesh,
  attributes: dict[str, int],
  more: dict[str, Any],
  textures: dict[int, int],
) -> int:
  """Adds a mesh; `textures` has the numbers of pictures, by identity."""
  primitive = {
    "attributes": attributes,
    "indices": builder.add_indices(part.file_faces, len(part.vertex_map)),
    "material": _material(builder, part, textures),
    **more,
  }
  mesh: dict[str, Any] = {"primitives": [primitive]}
  if "targets" in more:
    mesh["weights"] = [0.0] * len(more["targets"])
  return builder.add("meshes", mesh)


def _material(
  builder: gltf_builder.GltfBuilder,
  part: TexturedMesh,
  textures: dict[int, int],
) -> int:
  surface: dict[str, Any] = {"metallicFactor": 0.0, "roughnessFactor": 0.9}
  material: dict[str, Any] = {"doubleSided": True}
  if part.image is not None:
    if id(part.image) not in textures:
      textures[id(part.image)] = _texture(builder, part.image)
    surface["baseColorTexture"] = {"index": textures[id(part.image)]}
  elif part.mesh.colours is None:
    surface["baseColorFactor"] = _CLAY
  material["pbrMetallicRoughness"] = surface
  if not part.is_lit:
    material["extensions"] = {_UNLIT: {}}
    builder.document["extensionsUsed"] = [_UNLIT]
  return builder.add("materials", material)


def _texture(builder: gltf_builder.GltfBuilder, image: np.ndarray) -> int:
  content = io.BytesIO()
  Image.fromarray(image).save(content, "PNG", optimize=True)
  source = builder.add(
    "images",
    {
      "bufferView": builder.add_view(content.getvalue()),
      "mimeType": "image/png",
    },
  )
  if "samplers" not in builder.document:
    filters = {"magFilter": _LINEAR, "minFilter": _MIPMAPS}
    builder.add("samplers", filters | {"wrapS": _CLAMP, "wrapT": _CLAMP})
  return builder.add("textures", {"source": source, "sampler": 0})


def _exact_sums(weights: np.ndarray) -> np.ndarray:
  """Weights [V, 4] whose float32 sums are exactly 1."""
  rounded = weights.astype(np.float32)
  rounded[:, 0] += np.float32(1) - rounded.sum(1, dtype=np.float32)
  return rounded
