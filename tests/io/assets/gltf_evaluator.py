"""What a glTF file shows at a time, in NumPy from the specification alone.

Nothing of the project is used: container, accessors, key frames, nodes, morph
targets, skins and instances are read anew, one time and one node after the
other. Compressed files are refused by KeyError.

Source: Khronos glTF 2.0 specification, sections 3.5 to 3.7, 3.11, 4.4 and
appendix C; the extension EXT_mesh_gpu_instancing.
"""

import base64
import bisect
import json
import pathlib
import struct
import urllib.parse

import numpy as np
from scipy.spatial import transform as rotations

_TYPES = {
  5120: "<i1",
  5121: "<u1",
  5122: "<i2",
  5123: "<u2",
  5125: "<u4",
  5126: "<f4",
}
_SIZES = {
  "SCALAR": 1,
  "VEC2": 2,
  "VEC3": 3,
  "VEC4": 4,
  "MAT4": 16,
}


class File:
  """A glTF file.

  Attributes:
    json: The document.
  """

  def __init__(self, path: pathlib.Path):
    self._folder, content = path.parent, path.read_bytes()
    self._chunk = b""
    if content[:4] == b"glTF":
      place = 12
      while place < len(content):
        size, kind = struct.unpack_from("<I4s", content, place)
        body = content[place + 8 : place + 8 + size]
        if kind == b"JSON":
          content_json = body
        elif kind == b"BIN\0":
          self._chunk = body
        place += 8 + size
      content = content_json
    self.json = json.loads(content)

  def array(self, index: int) -> np.ndarray:
    """An accessor's elements as float64 [count, width], normalised ones too."""
    accessor = self.json["accessors"][index]
    width, dtype = _SIZES[accessor["type"]], _TYPES[accessor["componentType"]]
    count = accessor["count"]
    values = np.zeros((count, width))
    if "bufferView" in accessor:
      values[:] = self._elements(accessor, count, width, dtype)
    if "sparse" in accessor:
      sparse = accessor["sparse"]
      where = self._elements(
        sparse["indices"],
        sparse["count"],
        1,
        _TYPES[sparse["indices"]["componentType"]],
      )
      values[where[:, 0].astype(int)] = self._elements(
        sparse["values"], sparse["count"], width, dtype
      )
    if accessor.get("normalized"):
      largest = {"i1": 127, "u1": 255, "i2": 32767, "u2": 65535}[dtype[1:]]
      values = np.maximum(values / largest, -1.0)
    return values

  def _elements(self, part, count, width, dtype):
    view = self.json["bufferViews"][part["bufferView"]]
    data = self._buffer(view["buffer"])
    size = np.dtype(dtype).itemsize * width
    stride = view.get("byteStride", size)
    start = view.get("byteOffset", 0) + part.get("byteOffset", 0)
    rows = [
      np.frombuffer(data, dtype, width, start + i * stride)
      for i in range(count)
    ]
    return np.array(rows, np.float64).reshape(count, width)

  def _buffer(self, index):
    uri = self.json["buffers"][index].get("uri")
    if uri is None:
      return self._chunk
    if uri.startswith("data:"):
      return base64.b64decode(uri.partition(",")[2])
    return (self._folder / urllib.parse.unquote(uri)).read_bytes()


def nodes_with_triangles(file: File) -> list[int]:
  """The scene's nodes that show triangles, parents first, in order."""
  found = []

  def walk(node):
    entry = file.json["nodes"][node]
    if "mesh" in entry:
      mesh = file.json["meshes"][entry["mesh"]]
      if any(p.get("mode", 4) in (4, 5, 6) for p in mesh["primitives"]):
        found.append(node)
    for child in entry.get("children", ()):
      walk(child)

  for root in _roots(file):
    walk(root)
  return found


def positions(
  file: File, animation: int, time: float, node: int
) -> tuple[np.ndarray, np.ndarray]:
  """World positions of a node's vertices, and where they are defined.

  Returns:
    float64 [V, 3], primitive after primitive and instance after instance; bool
    [V], false where skin weights are no numbers or sum to nothing.
  """
  values = _animated(file, animation, time)
  entry = file.json["nodes"][node]
  mesh = file.json["meshes"][entry["mesh"]]
  worlds = {n: _world(file, values, n) for n in _needed(file, entry, node)}
  points, defined = [], []
  for instance in _instances(file, entry):
    for primitive in mesh["primitives"]:
      if primitive.get("mode", 4) not in (4, 5, 6):
        continue
      attributes = primitive["attributes"]
      here = file.array(attributes["POSITION"])
      weights = values.get((node, "weights"))
      if weights is None:
        weights = entry.get("weights", mesh.get("weights"))
      for number, target in enumerate(primitive.get("targets", ())):
        if weights is not None and "POSITION" in target:
          here = here + weights[number] * file.array(target["POSITION"])
      if "skin" in entry and "JOINTS_0" in attributes:
        here, good = _skinned(file, entry["skin"], attributes, here, worlds)
      else:
        here = _moved(worlds[node] @ instance, here)
        good = np.ones(len(here), bool)
      points.append(here)
      defined.append(good)
  return np.concatenate(points), np.concatenate(defined)


def _roots(file):
  if file.json.get("scenes"):
    return file.json["scenes"][file.json.get("scene", 0)].get("nodes", [])
  nodes = file.json["nodes"]
  children = {c for node in nodes for c in node.get("children", ())}
  return [i for i in range(len(nodes)) if i not in children]


def _needed(file, entry, node):
  skin = entry.get("skin")
  return [node] if skin is None else [node, *file.json["skins"][skin]["joints"]]


def _skinned(file, skin, attributes, points, worlds):
  skin = file.json["skins"][skin]
  matrices = np.array([worlds[j] for j in skin["joints"]])
  if "inverseBindMatrices" in skin:
    inverse = file.array(skin["inverseBindMatrices"])[: len(matrices)]
    matrices = np.array(
      [m @ b.reshape(4, 4).T for m, b in zip(matrices, inverse)]
    )
  total, sums = np.zeros_like(points), np.zeros(len(points))
  number = 0
  while f"JOINTS_{number}" in attributes:
    joints = file.array(attributes[f"JOINTS_{number}"]).astype(int)
    weights = file.array(attributes[f"WEIGHTS_{number}"])
    for column in range(4):
      weight = weights[:, column]
      joint = np.where(weight > 0, joints[:, column], 0)
      full = np.einsum("vij,vj->vi", matrices[joint][:, :3, :3], points)
      total += weight[:, None] * (full + matrices[joint][:, :3, 3])
      sums += weight
    number += 1
  good = np.isfinite(sums) & (sums > 0)
  return total / np.where(good, sums, 1)[:, None], good


def _moved(matrix, points):
  return points @ matrix[:3, :3].T + matrix[:3, 3]


def _instances(file, entry):
  extension = entry.get("extensions", {}).get("EXT_mesh_gpu_instancing")
  if extension is None:
    return [np.eye(4)]
  arrays = {n: file.array(i) for n, i in extension["attributes"].items()}
  count = max(map(len, arrays.values()))
  return [
    _composed(
      arrays["TRANSLATION"][i] if "TRANSLATION" in arrays else (0, 0, 0),
      arrays["ROTATION"][i] if "ROTATION" in arrays else (0, 0, 0, 1),
      arrays["SCALE"][i] if "SCALE" in arrays else (1, 1, 1),
    )
    for i in range(count)
  ]


def _world(file, values, node):
  parents = {
    child: i
    for i, entry in enumerate(file.json["nodes"])
    for child in entry.get("children", ())
  }
  matrix = _local(file, values, node)
  while node in parents:
    node = parents[node]
    matrix = _local(file, values, node) @ matrix
  return matrix


def _local(file, values, node):
  entry = file.json["nodes"][node]
  if "matrix" in entry:
    return np.array(entry["matrix"], np.float64).reshape(4, 4).T
  parts = {"translation": (0, 0, 0), "rotation": (0, 0, 0, 1)}
  parts["scale"] = (1, 1, 1)
  for path in parts:
    parts[path] = values.get((node, path), entry.get(path, parts[path]))
  return _composed(parts["translation"], parts["rotation"], parts["scale"])


def _composed(translation, rotation, scale):
  matrix = np.eye(4)
  matrix[:3, :3] = rotations.Rotation.from_quat(rotation).as_matrix()
  matrix[:3, :3] = matrix[:3, :3] @ np.diag(np.asarray(scale, np.float64))
  matrix[:3, 3] = translation
  return matrix


def _animated(file, animation, time):
  """Values of what the channels move, by node and path."""
  values = {}
  entry = file.json["animations"][animation]
  for channel in entry["channels"]:
    target = channel["target"]
    if "node" not in target:
      continue
    sampler = entry["samplers"][channel["sampler"]]
    values[target["node"], target["path"]] = _sampled(
      file, sampler, target["path"], time
    )
  return values


def _sampled(file, sampler, path, time):
  keys = file.array(sampler["input"])[:, 0].tolist()
  mode = sampler.get("interpolation", "LINEAR")
  output = file.array(sampler["output"])
  per_key = 3 if mode == "CUBICSPLINE" else 1
  output = output.reshape(len(keys), per_key, -1)
  if time <= keys[0] or len(keys) == 1:
    return output[0, per_key // 2]
  if time >= keys[-1]:
    return output[-1, per_key // 2]
  before = bisect.bisect_right(keys, time) - 1
  span = keys[before + 1] - keys[before]
  share = (time - keys[before]) / span
  if mode == "STEP":
    return output[before, 0]
  if mode == "CUBICSPLINE":
    _, start, leaving = output[before]
    arriving, end, _ = output[before + 1]
    t, t2, t3 = share, share**2, share**3
    return (
      (2 * t3 - 3 * t2 + 1) * start
      + span * (t3 - 2 * t2 + t) * leaving
      + (3 * t2 - 2 * t3) * end
      + span * (t3 - t2) * arriving
    )
  first, second = output[before, 0], output[before + 1, 0]
  if path == "rotation":
    pair = rotations.Rotation.from_quat([first, second])
    return rotations.Slerp([0, 1], pair)([share]).as_quat()[0]
  return (1 - share) * first + share * second
