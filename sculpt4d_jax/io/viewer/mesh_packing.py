"""Packs meshes into compact text for a web page.

Positions are rounded to 16-bit steps of one cube around the whole clip, whose
side is its longest extent: 1/65535 of it is far below a pixel. Normals are not
stored; the page computes them from the faces. Consecutive vertices and face
corners of a mesh are close, so each number is stored as its difference to the
previous one. Differences are split into planes of equally significant bytes, in
which zeros are frequent, and the planes are deflated. `decoder.js` does the
reverse.

Layout of the bytes, with little-endian significance:

  x low [V], x high [V], y low, y high, z low, z high   differences mod 2^16
  corners, bytes 0 to 3 [4][3 T]                        zigzag differences
"""

import base64
from collections.abc import Sequence
import dataclasses
import zlib

import numpy as np

from sculpt4d_jax.geometry import mesh as mesh_lib

TriangleMesh = mesh_lib.TriangleMesh

_STEPS = 65535


@dataclasses.dataclass(frozen=True)
class Quantization:
  """The cube of a clip: position = origin + step * whole number."""

  origin: tuple[float, float, float]
  step: float


def clip_quantization(meshes: Sequence[TriangleMesh]) -> Quantization:
  """The cube around all frames; a unit cube if every frame is empty."""
  corners = [
    corner
    for mesh in meshes
    if not mesh.is_empty
    for corner in (mesh.vertices.min(axis=0), mesh.vertices.max(axis=0))
  ]
  if not corners:
    return Quantization((-0.5, -0.5, -0.5), 1.0 / _STEPS)
  low, high = np.min(corners, axis=0), np.max(corners, axis=0)
  side = max(float((high - low).max()), 1e-6)
  return Quantization(tuple(low.astype(float).tolist()), side / _STEPS)


def pack_mesh(
  mesh: TriangleMesh, quantization: Quantization
) -> dict[str, int | str]:
  """Packs a mesh for the page's JSON: counts and deflated, encoded bytes."""
  if mesh.is_empty:
    return {"vertices": 0, "faces": 0, "data": ""}
  whole = np.round(
    (mesh.vertices - np.array(quantization.origin)) / quantization.step
  )
  whole = np.clip(whole, 0, _STEPS).astype("<u2")
  # Wraps modulo 2^16, like the sum in the page.
  steps = np.diff(whole, axis=0, prepend=np.zeros((1, 3), "<u2"))
  corners = np.diff(mesh.faces.reshape(-1), prepend=np.int32(0))
  zigzag = ((corners << 1) ^ (corners >> 31)).astype("<u4")
  planes = [_byte_planes(column) for column in steps.T] + [_byte_planes(zigzag)]
  # Level 6 takes twice as long and saves 2 %, level 9 thirteen times and 4 %.
  packed = zlib.compress(b"".join(planes), 4)
  return {
    "vertices": mesh.num_vertices,
    "faces": mesh.num_faces,
    "data": base64.b64encode(packed).decode("ascii"),
  }


def _byte_planes(values: np.ndarray) -> bytes:
  values = np.ascontiguousarray(values)
  return values.view("u1").reshape(len(values), -1).T.tobytes()
