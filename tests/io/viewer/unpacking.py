"""The viewer's decoder.js in NumPy."""

import base64
import zlib

import numpy as np

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.viewer import mesh_packing


def unpack_mesh(
  packed: dict[str, int | str], quantization: mesh_packing.Quantization
) -> mesh_lib.TriangleMesh:
  """The mesh that the page shows: faces as they were, positions rounded."""
  num_vertices, num_corners = packed["vertices"], 3 * packed["faces"]
  content = b""
  if packed["data"]:
    content = zlib.decompress(base64.b64decode(packed["data"]))
  split = 6 * num_vertices
  steps = np.frombuffer(content[:split], "u1").reshape(3, 2, num_vertices)
  steps = np.ascontiguousarray(steps.transpose(0, 2, 1)).view("<u2")[..., 0]
  whole = np.cumsum(steps, axis=1, dtype=np.uint16).T
  zigzag = np.frombuffer(content[split:], "u1").reshape(4, num_corners)
  zigzag = np.ascontiguousarray(zigzag.T).view("<u4")[..., 0].astype(np.int64)
  corners = np.cumsum((zigzag >> 1) ^ -(zigzag & 1))
  vertices = np.array(quantization.origin) + quantization.step * whole
  return mesh_lib.TriangleMesh(vertices, corners.reshape(-1, 3))
