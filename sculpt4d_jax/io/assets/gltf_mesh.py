"""The triangles of a glTF mesh, with morph targets, skin and colours."""

import dataclasses
from typing import Any

from absl import logging
import numpy as np
from scipy import spatial

from sculpt4d_jax.io.assets import asset_files
from sculpt4d_jax.io.assets import gltf_compression
from sculpt4d_jax.io.assets import gltf_container

AssetError = asset_files.AssetError

_TRIANGLES, _STRIP, _FAN = 4, 5, 6
_MAX_SETS = 4  # Of four joints each.
# Largest share and number of vertices of a primitive without skin weights.
_MENDED_SHARE, _MENDED_COUNT = 0.05, 4


@dataclasses.dataclass(frozen=True)
class Primitive:
  """A part of a mesh with one material.

  Attributes:
    positions: float32 [V, 3].
    faces: int32 [T, 3].
    targets: Displacements of the morph targets, float32 [M, V, 3].
    joints: Joints that a vertex follows [V, J], or None.
    weights: Weights of these joints, float64 [V, J], or None. They sum to 1; in
      float32 the sum would be off by 1e-7 of the distance from the origin.
    description: The JSON, for colours.
  """

  positions: np.ndarray
  faces: np.ndarray
  targets: np.ndarray
  joints: np.ndarray | None
  weights: np.ndarray | None
  description: dict[str, Any]

  @property
  def num_vertices(self) -> int:
    """Number of rows V of `positions`."""
    return len(self.positions)


def read_primitives(
  asset: gltf_container.GltfFile, mesh_index: int
) -> list[Primitive]:
  """The triangle primitives of a mesh; points and lines are left out.

  Raises:
    AssetError: A primitive is malformed or too large.
  """
  mesh = asset.item("meshes", mesh_index)
  primitives = []
  for description in gltf_container.rows(mesh, "primitives"):
    mode = description.get("mode", _TRIANGLES)
    if mode not in (_TRIANGLES, _STRIP, _FAN):
      continue
    primitive = _read(asset, description, mode, f"mesh {mesh_index}")
    if len(primitive.faces):
      primitives.append(primitive)
  return primitives


def skin(
  primitive: Primitive, points: np.ndarray, joints: np.ndarray
) -> np.ndarray:
  """Moves points [V, 3] with their joints' transforms [J, 4, 4]."""
  blended = np.zeros((len(points), 3, 4))
  for column in range(primitive.joints.shape[1]):
    weight = primitive.weights[:, column]
    rows = np.flatnonzero(weight)
    blended[rows] += (
      weight[rows, None, None] * joints[primitive.joints[rows, column], :3, :]
    )
  return np.einsum("vij,vj->vi", blended[..., :3], points) + blended[..., 3]


def _read(
  asset: gltf_container.GltfFile,
  description: dict[str, Any],
  mode: int,
  name: str,
) -> Primitive:
  attributes = gltf_container.table(description, "attributes")
  extensions = gltf_container.table(description, "extensions")
  if gltf_compression.DRACO in extensions:
    _decode_draco(asset, description, attributes, extensions, name)
  positions = asset.accessor(attributes.get("POSITION"), "VEC3")
  positions = positions.astype(np.float32)
  count = len(positions)
  if count > asset.limits.vertices:
    raise AssetError(
      f"{name} has {count:,} vertices; the limit is {asset.limits.vertices:,}."
    )
  if not np.isfinite(positions).all():
    bad = np.count_nonzero(~np.isfinite(positions).all(1))
    raise AssetError(f"{name}: {bad:,} of {count:,} vertices are not finite.")
  joints, weights = _influences(asset, attributes, positions, name)
  return Primitive(
    positions=positions,
    faces=_faces(asset, description, mode, count, name),
    targets=_targets(asset, description, count, name),
    joints=joints,
    weights=weights,
    description=description,
  )


def _decode_draco(
  asset: gltf_container.GltfFile,
  description: dict[str, Any],
  attributes: dict[str, Any],
  extensions: dict[str, Any],
  name: str,
) -> None:
  """Decodes a primitive, so that its accessors read what came of it."""
  compressed = gltf_container.table(extensions, gltf_compression.DRACO)
  content = asset.view_bytes(compressed.get("bufferView"))
  numbers = gltf_container.table(compressed, "attributes")
  faces, arrays = gltf_compression.decode_draco(content, numbers, name)
  if "indices" in description:
    asset.put_decoded(description["indices"], faces.reshape(-1, 1))
  for attribute, array in arrays.items():
    asset.put_decoded(attributes.get(attribute), array)


def _faces(
  asset: gltf_container.GltfFile,
  description: dict[str, Any],
  mode: int,
  count: int,
  name: str,
) -> np.ndarray:
  if "indices" in description:
    indices = asset.accessor(description["indices"], "SCALAR")[:, 0]
    if indices.dtype.kind != "u":
      raise AssetError(f"{name}: indices must be unsigned integers.")
    indices = indices.astype(np.int64)
    if len(indices) and indices.max() >= count:
      raise AssetError(
        f"{name}: a face has vertex {indices.max():,} of {count:,}."
      )
  else:
    indices = np.arange(count)
  if len(indices) > 3 * asset.limits.faces:
    raise AssetError(f"{name} has more than {asset.limits.faces:,} triangles.")
  if mode == _TRIANGLES:
    if len(indices) % 3:
      raise AssetError(f"{name}: {len(indices):,} indices are no triangles.")
    return indices.reshape(-1, 3).astype(np.int32)
  if len(indices) < 3:
    return np.zeros((0, 3), np.int32)
  first, second, third = indices[:-2], indices[1:-1], indices[2:]
  if mode == _FAN:
    first = np.broadcast_to(indices[0], second.shape)
  faces = np.stack([first, second, third], axis=1)
  if mode == _STRIP:
    faces[1::2] = faces[1::2, [1, 0, 2]]  # Alternates in strips.
  a, b, c = faces.T
  return faces[(a != b) & (b != c) & (c != a)].astype(np.int32)


def _targets(
  asset: gltf_container.GltfFile,
  description: dict[str, Any],
  count: int,
  name: str,
) -> np.ndarray:
  targets = gltf_container.rows(description, "targets")
  asset.budget.take(12 * count * len(targets), f"the morph targets of {name}")
  result = np.zeros((len(targets), count, 3), np.float32)
  for row, target in zip(result, targets):
    if "POSITION" in target:
      moved = asset.accessor(target["POSITION"], "VEC3")
      if len(moved) != count:
        raise AssetError(
          f"{name} has {count:,} vertices and a morph target of {len(moved):,}."
        )
      row[:] = moved
  if not np.isfinite(result).all():
    raise AssetError(f"{name}: morph targets are not finite.")
  return result


def _influences(
  asset: gltf_container.GltfFile,
  attributes: dict[str, Any],
  positions: np.ndarray,
  name: str,
) -> tuple[np.ndarray, np.ndarray] | tuple[None, None]:
  """Joints and weights [V, J], or None twice."""
  joints, weights, count = [], [], len(positions)
  for number in range(_MAX_SETS):
    if f"JOINTS_{number}" not in attributes:
      break
    joint = asset.accessor(attributes[f"JOINTS_{number}"], "VEC4")
    weight = asset.accessor(attributes.get(f"WEIGHTS_{number}"), "VEC4")
    if len(joint) != count or len(weight) != count or joint.dtype.kind != "u":
      raise AssetError(f"{name}: joints and vertices do not match.")
    joints.append(joint.astype(np.int64))
    weights.append(weight.astype(np.float64))
  if not joints:
    return None, None
  weights = np.concatenate(weights, axis=1)
  if (weights < 0).any():
    raise AssetError(f"{name}: skin weights are negative.")
  joints = np.concatenate(joints, axis=1)
  total = weights.sum(1, keepdims=True)
  usable = np.isfinite(total[:, 0]) & (total[:, 0] > 0)
  if not usable.all():
    joints, weights, total = _mend(positions, joints, weights, usable, name)
  weights = weights / np.maximum(total, 1e-12)
  # The joint index of a zero weight is undefined.
  return np.where(weights > 0, joints, 0), weights


def _mend(
  positions: np.ndarray,
  joints: np.ndarray,
  weights: np.ndarray,
  usable: np.ndarray,
  name: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Fills in the skin of vertices without weights: joints, weights, sums.

  Some exporters (FBX2glTF) write zeros, or 0 / 0, for vertices without a joint.
  These get the joints of the nearest weighted vertex.
  """
  num_bad = np.count_nonzero(~usable)
  num_nan = np.count_nonzero(~np.isfinite(weights).all(1))
  if num_nan > max(_MENDED_SHARE * len(usable), _MENDED_COUNT):
    raise AssetError(
      f"{name}: skin weights of {num_nan:,} of {len(usable):,} vertices are"
      f" not finite; {_MENDED_COUNT}, or one in twenty, are mended."
    )
  if num_nan:
    logging.warning(
      "%s: %d of %d vertices have no skin weights; they follow what the"
      " nearest vertex with weights follows.",
      name,
      num_bad,
      len(usable),
    )
  joints, weights = joints.copy(), weights.copy()
  if usable.any():
    tree = spatial.cKDTree(positions[usable])
    nearest = np.flatnonzero(usable)[tree.query(positions[~usable])[1]]
    joints[~usable], weights[~usable] = joints[nearest], weights[nearest]
  else:  # All follow their first joint.
    weights[:] = 0
    weights[:, 0] = 1
  return joints, weights, weights.sum(1, keepdims=True)
