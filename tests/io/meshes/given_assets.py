"""A small skinned, textured asset, like those exported by modelling programs.

A bar of two joints along x below an armature that is scaled and turned, and a
box on the second joint that has no skin.
"""

import io
import pathlib

import numpy as np
from PIL import Image

from sculpt4d_jax.io.meshes import gltf_builder
from tests.geometry.registration import shapes

ARMATURE, FIRST, SECOND, BAR, BOX = range(5)
SCALE = 0.5
# Half a turn about y, which takes x to -x.
TURN = (0.0, 1.0, 0.0, 0.0)


def write(path: pathlib.Path) -> None:
  """Writes the asset; its bar covers x in [-1, 1] of the armature's space."""
  builder = gltf_builder.GltfBuilder()
  target = gltf_builder.VERTICES
  bar = shapes.box((2, 0.4, 0.3), (20, 4, 3))
  share = np.clip(bar.vertices[:, 0] / 0.4 + 0.5, 0, 1)
  weights = np.stack([1 - share, share, 0 * share, 0 * share], 1)
  joints = np.where(weights > 0, [0, 1, 0, 0], 0)
  box = shapes.box((0.2, 0.2, 0.2), (2, 2, 2))
  meshes = []
  for mesh, more in (
    (bar, {"JOINTS_0": (joints, "u1"), "WEIGHTS_0": (weights, "<f4")}),
    (box, {}),
  ):
    attributes = {
      name: builder.add_accessor(
        values, dtype, target=target, bounds=name == "POSITION"
      )
      for name, (values, dtype) in {
        "POSITION": (mesh.vertices, "<f4"),
        "NORMAL": (mesh.vertex_normals(), "<f4"),
        "TEXCOORD_0": (mesh.vertices[:, :2] * 0.25 + 0.5, "<f4"),
        **more,
      }.items()
    }
    primitive = {
      "attributes": attributes,
      "indices": builder.add_indices(mesh.faces, mesh.num_vertices),
      "material": len(meshes),
    }
    meshes.append(builder.add("meshes", {"primitives": [primitive]}))
  builder.document["nodes"] = [
    {
      "name": "armature",
      "scale": [SCALE] * 3,
      "rotation": list(TURN),
      "children": [FIRST, BAR],
    },
    {"name": "first", "translation": [-1, 0, 0], "children": [SECOND]},
    {"name": "second", "translation": [1, 0, 0], "children": [BOX]},
    {"name": "bar", "mesh": 0, "skin": 0},
    {"name": "box", "mesh": 1, "translation": [1.1, 0, 0]},
  ]
  inverse = np.tile(np.eye(4), (2, 1, 1))
  inverse[0, 0, 3] = 1
  columns = inverse.swapaxes(1, 2).reshape(-1, 16)
  builder.add(
    "skins",
    {
      "joints": [FIRST, SECOND],
      "inverseBindMatrices": builder.add_accessor(columns),
    },
  )
  builder.document["scenes"] = [{"name": "mine", "nodes": [ARMATURE]}]
  picture = io.BytesIO()
  rows = np.linspace(0, 255, 8).astype(np.uint8)
  pixels = np.stack(np.broadcast_arrays(rows[:, None], rows[None], 90), -1)
  Image.fromarray(pixels.astype(np.uint8)).save(picture, "PNG")
  view = builder.add_view(picture.getvalue())
  builder.add("images", {"bufferView": view, "mimeType": "image/png"})
  builder.add("textures", {"source": 0})
  surface = {"baseColorTexture": {"index": 0}, "roughnessFactor": 0.25}
  builder.add("materials", {"name": "skin", "pbrMetallicRoughness": surface})
  red = {"baseColorFactor": [1, 0, 0, 1], "metallicFactor": 0.0}
  builder.add("materials", {"name": "red", "pbrMetallicRoughness": red})
  times = builder.add_accessor(np.array([0.0, 1.0]), bounds=True)
  turns = builder.add_accessor(np.array([[0, 0, 0, 1], [0, 0, 0.6, 0.8]]))
  builder.add(
    "animations",
    {
      "name": "wave",
      "samplers": [{"input": times, "output": turns}],
      "channels": [
        {"sampler": 0, "target": {"node": SECOND, "path": "rotation"}}
      ],
    },
  )
  path.write_bytes(builder.glb_bytes(str(path)))
