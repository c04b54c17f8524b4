"""Small mesh sequences and videos that the tests of the files share."""

import numpy as np
import trimesh

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io.meshes import ply_obj

TriangleMesh = mesh_lib.TriangleMesh

TRIANGLE = TriangleMesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])


def bumpy_sphere(phase: float, subdivisions: int) -> TriangleMesh:
  """A sphere with bumps that travel with the phase."""
  sphere = trimesh.creation.icosphere(subdivisions=subdivisions)
  points = np.asarray(sphere.vertices)
  radius = (
    0.6
    + 0.15 * np.sin(4 * points[:, 0] + phase) * np.cos(3 * points[:, 1])
    + 0.1 * np.sin(5 * points[:, 2] + 2 * phase)
  )
  return TriangleMesh(points * radius[:, None], sphere.faces)


def changing_clip(num_frames: int = 4) -> list[TriangleMesh]:
  """Frames of two topologies in turn; frame 2 has no surface."""
  meshes = [
    bumpy_sphere(2 * np.pi * i / num_frames, 2 + i % 2)
    for i in range(num_frames)
  ]
  if num_frames > 2:
    meshes[2] = ply_obj.empty_mesh()
  return meshes


def coloured_video(num_frames: int, height: int = 24, width: int = 32):
  """Frames of one colour each, uint8 [F, h, w, 3]; red grows by frames."""
  video = np.full((num_frames, height, width, 3), 90, np.uint8)
  video[..., 0] = (40 + 40 * np.arange(num_frames))[:, None, None]
  return video


def assert_same_meshes(actual, expected) -> None:
  """Equal bit for bit, vertex order and face order included."""
  assert len(actual) == len(expected)
  for mesh, wanted in zip(actual, expected):
    np.testing.assert_array_equal(mesh.vertices, wanted.vertices)
    np.testing.assert_array_equal(mesh.faces, wanted.faces)
