"""Writes a mesh sequence as one animated GLB file that common viewers play.

glTF cannot change a mesh's topology over time. Every frame is therefore a
separate mesh and node, and the animation shows and hides nodes by stepping
their scale between one and zero. Each frame is visible for its duration, the
last one included, before a viewer loops. Without animation, the first frame is
visible.

Viewers place their camera by the visible meshes at rest. An additional node,
"bounds", has two triangles of zero area at the corners of the box around all
frames, so that all frames fit into the picture even if the first one is small.

Positions are stored exactly, in float32, so reading a file returns the same
meshes. A frame without a surface is a node without a mesh. Frame rate and times
are also kept as exact numbers in the animation's `extras`. Key times in float32
are rounded down, so a player at time i / 24 has always reached the key of that
time.

Source: Khronos glTF 2.0 specification, sections 3.6, 3.11 and 4.4.
"""

from collections.abc import Sequence
import json
import math
import os
import pathlib
import struct
from typing import Any

from absl import logging
import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths
from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import gltf_container
from sculpt4d_jax.io.meshes import frame_times
from sculpt4d_jax.io.meshes import ply_obj

TriangleMesh = mesh_lib.TriangleMesh
PathLike = str | os.PathLike

_FLOAT, _UINT16, _UINT32 = 5126, 5123, 5125
_VERTICES, _INDICES = 34962, 34963  # Targets of buffer views.
_BOUNDS = "bounds"
_DTYPES = {_FLOAT: "<f4", _UINT16: "<u2", _UINT32: "<u4"}
_MATERIAL = {
  "name": "clay",
  # A surface is open where it leaves the grid's box.
  "doubleSided": True,
  "pbrMetallicRoughness": {
    "baseColorFactor": [0.62, 0.58, 0.54, 1.0],
    "metallicFactor": 0.0,
    "roughnessFactor": 0.75,
  },
}

# Our results may exceed the limits for untrusted assets.
_READ_LIMITS = asset_files.AssetLimits(
  file_bytes=1 << 34, decoded_bytes=1 << 35
)


def write_animated_glb(
  path: paths.PathLike,
  meshes: Sequence[TriangleMesh],
  fps: float,
  *,
  times: Sequence[float] | None = None,
  name: str = "sculpt4d",
) -> None:
  """Writes a mesh sequence as an animated GLB.

  Args:
    path: Output file (.glb).
    meshes: One mesh a frame; topologies may differ and frames may be empty.
    fps: Frames a second.
    times: Start of each frame, seconds, increasing from 0; None spaces them by
      1 / fps.
    name: The animation's name, which viewers list.

  Raises:
    ValueError: There are no frames, the rate or the times are invalid, a
      position is not finite, or the file would exceed glTF's 4 GiB.
    OutputError: The file cannot be written.
  """
  check_sequence(path, meshes, fps, (".glb",))
  edges = frame_times.frame_edges(len(meshes), fps, times)
  builder = _Builder()
  nodes = [
    _frame_node(builder, index, mesh) for index, mesh in enumerate(meshes)
  ]
  if "meshes" in builder.document:
    nodes.append(_bounds_node(builder, meshes))
  builder.document["nodes"] = nodes
  builder.document["scenes"] = [{"nodes": list(range(len(nodes)))}]
  builder.document["animations"] = [
    _animation(builder, edges, float(fps), name)
  ]
  if "meshes" in builder.document:
    builder.document["materials"] = [_MATERIAL]
  atomic.write_bytes(path, builder.glb_bytes(str(path)))


def write_for_players(
  path: PathLike,
  meshes: Sequence[TriangleMesh],
  fps: float,
  *,
  times: Sequence[float] | None = None,
) -> None:
  """Writes a mesh sequence as a GLB of which no player skips frames.

  Frames that are shorter than a step of players are prolonged; see
  `frame_times.for_players`. Arguments and errors are those of
  `write_animated_glb`.
  """
  edges = frame_times.frame_edges(len(meshes), fps, times)
  played = frame_times.for_players(edges)
  if played[-1] > 1.01 * edges[-1]:
    logging.info(
      "%s plays at %.2f of the clip's speed: at its own, players of %d frames a"
      " second would skip frames.",
      os.path.basename(path),
      edges[-1] / played[-1],
      frame_times.PLAYER_RATE,
    )
  write_animated_glb(path, meshes, fps, times=played[:-1])


def read_animated_glb(path: PathLike) -> tuple[list[TriangleMesh], float]:
  """Reads a file written by `write_animated_glb`.

  Args:
    path: The .glb file.

  Returns:
    One mesh a frame, and the frames a second.

  Raises:
    ValueError: The file is missing, damaged or from another writer.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise UserError(f"there is no GLB file at {path}.")
  with path.open("rb") as file:
    if file.read(4) != b"glTF":
      raise UserError(f"{path} is not a GLB file: it does not start with glTF.")
  try:
    asset = gltf_container.GltfFile(path, _READ_LIMITS)
  except asset_files.AssetError as error:
    raise UserError(f"{path} is damaged: {error}") from error
  try:
    nodes = [asset.item("nodes", i) for i in asset.item("scenes", 0)["nodes"]]
    meshes = [
      _node_mesh(asset, node) for node in nodes if node.get("name") != _BOUNDS
    ]
    fps = float(asset.item("animations", 0)["extras"]["fps"])
  except (
    asset_files.AssetError,
    KeyError,
    IndexError,
    TypeError,
    ValueError,
  ) as error:
    raise UserError(
      f"{path} is a GLB, but not a mesh sequence as write_animated_glb"
      f" writes it ({type(error).__name__}: {error})."
    ) from error
  return meshes, fps


def check_sequence(
  path: paths.PathLike,
  meshes: Sequence[TriangleMesh],
  fps: float,
  suffixes: Sequence[str],
) -> None:
  """Raises ValueError unless a sequence can be written to a path.

  Args:
    path: Output file; must end in one of `suffixes`.
    meshes: Meshes, at least one, all positions finite.
    fps: A positive, finite number.
    suffixes: Allowed suffixes, for instance (".glb",).
  """
  suffix = paths.of(path).suffix.lower()
  if suffix not in suffixes:
    raise UserError(
      f"{path}: expected a file ending in {' or '.join(suffixes)},"
      f" got {suffix or 'no suffix'!r}."
    )
  if not meshes:
    raise UserError("a mesh sequence needs at least one frame, got none.")
  if not (math.isfinite(fps) and fps > 0):
    raise UserError(f"fps must be a positive number, got {fps}.")
  for index, mesh in enumerate(meshes):
    ply_obj.check_finite(mesh, f"frame {index}")


class _Builder:
  """Collects the JSON document and the binary chunk of a GLB."""

  def __init__(self):
    self.document: dict[str, Any] = {
      "asset": {"version": "2.0", "generator": "sculpt4d_jax"},
      "scene": 0,
      "accessors": [],
      "bufferViews": [],
    }
    self.chunks: list[bytes] = []
    self.size = 0

  def add_accessor(
    self,
    values: np.ndarray,
    component: int,
    *,
    target: int | None = None,
    bounds: bool = False,
  ) -> int:
    """Appends an array, [n] scalars or [n, 3] vectors; returns its number."""
    values = np.ascontiguousarray(values, _DTYPES[component])
    content = values.tobytes()
    view = {"buffer": 0, "byteOffset": self.size, "byteLength": len(content)}
    if target is not None:
      view["target"] = target
    accessor = {
      "bufferView": len(self.document["bufferViews"]),
      "componentType": component,
      "count": len(values),
      "type": "SCALAR" if values.ndim == 1 else "VEC3",
    }
    if bounds:
      accessor["min"] = np.atleast_1d(values.min(axis=0)).tolist()
      accessor["max"] = np.atleast_1d(values.max(axis=0)).tolist()
    self.document["bufferViews"].append(view)
    self.document["accessors"].append(accessor)
    self.chunks.append(_padded(content, b"\0"))
    self.size += len(self.chunks[-1])
    return len(self.document["accessors"]) - 1

  def glb_bytes(self, path: str) -> bytes:
    self.document["buffers"] = [{"byteLength": self.size}]
    text = _padded(
      json.dumps(self.document, separators=(",", ":")).encode(), b" "
    )
    total = 12 + 8 + len(text) + 8 + self.size
    if total >= 2**32:
      raise UserError(
        f"{path}: the sequence takes {total / 2**30:.1f} GiB and GLB files"
        " end at 4 GiB; write fewer frames or set a lower face budget."
      )
    return b"".join(
      (
        struct.pack("<4sII", b"glTF", 2, total),
        struct.pack("<I4s", len(text), b"JSON"),
        text,
        struct.pack("<I4s", self.size, b"BIN\0"),
        *self.chunks,
      )
    )


def _frame_node(
  builder: _Builder, index: int, mesh: TriangleMesh
) -> dict[str, Any]:
  """Adds a frame's mesh; returns its node. The first is visible at rest."""
  name = f"frame_{index:04d}"
  node = {"name": name, "scale": [1, 1, 1] if index == 0 else [0, 0, 0]}
  if mesh.is_empty:
    return node
  # The index 65535 is reserved for primitive restart.
  index_type = _UINT16 if mesh.num_vertices <= 65535 else _UINT32
  primitive = {
    "attributes": {
      "POSITION": builder.add_accessor(
        mesh.vertices, _FLOAT, target=_VERTICES, bounds=True
      ),
      "NORMAL": builder.add_accessor(
        unit_normals(mesh), _FLOAT, target=_VERTICES
      ),
    },
    "indices": builder.add_accessor(
      mesh.faces.reshape(-1), index_type, target=_INDICES
    ),
    "material": 0,
  }
  meshes = builder.document.setdefault("meshes", [])
  meshes.append({"name": name, "primitives": [primitive]})
  return {**node, "mesh": len(meshes) - 1}


def _bounds_node(
  builder: _Builder, meshes: Sequence[TriangleMesh]
) -> dict[str, Any]:
  """Adds the corners of the box around all frames, which are invisible."""
  points = [mesh.vertices for mesh in meshes if not mesh.is_empty]
  low = np.min([p.min(axis=0) for p in points], axis=0)
  high = np.max([p.max(axis=0) for p in points], axis=0)
  corners = np.stack([low, high])
  primitive = {
    "attributes": {
      "POSITION": builder.add_accessor(
        corners, _FLOAT, target=_VERTICES, bounds=True
      ),
      "NORMAL": builder.add_accessor(
        np.tile([0.0, 1.0, 0.0], (2, 1)), _FLOAT, target=_VERTICES
      ),
    },
    "indices": builder.add_accessor(
      np.array([0, 0, 0, 1, 1, 1]), _UINT16, target=_INDICES
    ),
    "material": 0,
  }
  builder.document["meshes"].append(
    {"name": _BOUNDS, "primitives": [primitive]}
  )
  return {"name": _BOUNDS, "mesh": len(builder.document["meshes"]) - 1}


def unit_normals(mesh: TriangleMesh) -> np.ndarray:
  """Vertex normals of length one, [V, 3]; up where a vertex has none."""
  normals = mesh.vertex_normals()
  undefined = np.linalg.norm(normals, axis=1) < 0.5
  normals[undefined] = [0, 1, 0]
  return normals


def _animation(
  builder: _Builder, edges: np.ndarray, fps: float, name: str
) -> dict[str, Any]:
  samplers, channels = [], []
  for index in range(len(edges) - 1):
    times, scales = _visibility_keys(index, edges)
    samplers.append(
      {
        "input": builder.add_accessor(times, _FLOAT, bounds=True),
        "output": builder.add_accessor(
          np.repeat(scales[:, None], 3, axis=1), _FLOAT
        ),
        "interpolation": "STEP",
      }
    )
    channels.append(
      {
        "sampler": index,
        "target": {"node": index, "path": "scale"},
      }
    )
  return {
    "name": name,
    "samplers": samplers,
    "channels": channels,
    "extras": {"fps": fps, "times": edges[:-1].tolist()},
  }


def _visibility_keys(
  index: int, edges: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
  """Key times in seconds and scales of a frame's node, each [keys]."""
  keys = {0: 0.0, index: 1.0, index + 1: 0.0}
  if index == len(edges) - 2:
    keys[index + 1] = 1.0  # Shows the last frame until the end.
  times = _float32_below(edges[sorted(keys)])
  return times, np.array([keys[key] for key in sorted(keys)])


def _float32_below(values: np.ndarray) -> np.ndarray:
  """The largest float32 numbers that are not larger than `values`."""
  rounded = values.astype(np.float32)
  below = np.nextafter(rounded, np.float32(-np.inf))
  return np.where(rounded > values, below, rounded)


def _padded(content: bytes, filler: bytes) -> bytes:
  return content + filler * (-len(content) % 4)


def _node_mesh(
  asset: gltf_container.GltfFile, node: dict[str, Any]
) -> TriangleMesh:
  if "mesh" not in node:
    return ply_obj.empty_mesh()
  primitive = asset.item("meshes", node["mesh"])["primitives"][0]
  if "targets" in primitive or "skin" in node:
    raise UserError("a mesh of it deforms")
  vertices = asset.accessor(primitive["attributes"]["POSITION"], "VEC3")
  faces = asset.accessor(primitive["indices"], "SCALAR").reshape(-1, 3)
  if len(faces) and faces.max() >= len(vertices):
    raise UserError(
      f"a face names vertex {faces.max()} of {len(vertices)} vertices"
    )
  return TriangleMesh(vertices, faces)
