import os

import numpy as np
import pytest

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import staged
from sculpt4d_jax.io.meshes import ply_obj
from tests.io import clips

TriangleMesh = mesh_lib.TriangleMesh


@pytest.mark.parametrize("suffix", [".ply", ".obj"])
@pytest.mark.parametrize("normals", [False, True])
@pytest.mark.parametrize(
  "mesh",
  [clips.TRIANGLE, clips.bumpy_sphere(1.0, 3), ply_obj.empty_mesh()],
  ids=["triangle", "sphere", "empty"],
)
def test_meshes_come_back_bit_for_bit(tmp_path, mesh, normals, suffix):
  path = tmp_path / f"mesh{suffix}"
  ply_obj.write_mesh(path, mesh, normals=normals)
  clips.assert_same_meshes([ply_obj.read_mesh(path)], [mesh])


def test_ply_bytes_of_a_triangle(tmp_path):
  path = tmp_path / "mesh.ply"
  ply_obj.write_mesh(path, clips.TRIANGLE)
  header, body = path.read_bytes().split(b"end_header\n")
  assert header == (
    b"ply\nformat binary_little_endian 1.0\nelement vertex 3\n"
    b"property float x\nproperty float y\nproperty float z\n"
    b"element face 1\nproperty list uchar int vertex_indices\n"
  )
  one = b"\0\0\x80\x3f"
  assert body == (
    bytes(12)
    + one
    + bytes(8)
    + bytes(4)
    + one
    + bytes(4)
    + b"\x03"
    + bytes(4)
    + b"\1\0\0\0"
    + b"\2\0\0\0"
  )


def test_obj_text_of_a_triangle(tmp_path):
  path = tmp_path / "mesh.obj"
  ply_obj.write_mesh(path, clips.TRIANGLE, normals=True)
  assert path.read_text() == (
    "v 0.0 0.0 0.0\nv 1.0 0.0 0.0\nv 0.0 1.0 0.0\n"
    "vn 0.0 0.0 1.0\nvn 0.0 0.0 1.0\nvn 0.0 0.0 1.0\n"
    "f 1//1 2//2 3//3\n"
  )


def test_ply_normals_follow_the_positions(tmp_path):
  mesh = clips.bumpy_sphere(0.5, 2)
  path = tmp_path / "mesh.ply"
  ply_obj.write_mesh(path, mesh, normals=True)
  header, body = path.read_bytes().split(b"end_header\n")
  assert b"property float nx\nproperty float ny\nproperty float nz" in header
  rows = np.frombuffer(body, "<f4", 6 * mesh.num_vertices).reshape(-1, 6)
  np.testing.assert_array_equal(rows[:, :3], mesh.vertices)
  np.testing.assert_array_equal(rows[:, 3:], mesh.vertex_normals())


def test_the_same_mesh_gives_the_same_bytes(tmp_path):
  for name in ("a.ply", "b.ply"):
    ply_obj.write_mesh(tmp_path / name, clips.bumpy_sphere(1.0, 2))
  assert (tmp_path / "a.ply").read_bytes() == (tmp_path / "b.ply").read_bytes()


def test_polygons_become_triangles(tmp_path):
  path = tmp_path / "square.obj"
  path.write_text("v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3 4\n")
  mesh = ply_obj.read_mesh(path)
  assert mesh.faces.shape == (2, 3)
  np.testing.assert_allclose(mesh.face_cross_products().sum(axis=0), [0, 0, 2])


def test_vertices_without_faces_are_kept(tmp_path):
  mesh = TriangleMesh(np.eye(3), np.zeros((0, 3), np.int32))
  path = tmp_path / "mesh.ply"
  ply_obj.write_mesh(path, mesh)
  clips.assert_same_meshes([ply_obj.read_mesh(path)], [mesh])


def test_sequences_come_back_in_order(tmp_path):
  meshes = clips.changing_clip(11)
  paths = ply_obj.write_mesh_sequence(tmp_path / "out", meshes)
  assert [path.name for path in paths[::10]] == [
    "frame_0000.ply",
    "frame_0010.ply",
  ]
  clips.assert_same_meshes(ply_obj.read_mesh_sequence(tmp_path / "out"), meshes)


def test_a_shorter_sequence_replaces_a_longer_one(tmp_path):
  ply_obj.write_mesh_sequence(tmp_path, [clips.TRIANGLE] * 3)
  ply_obj.write_mesh_sequence(tmp_path, [clips.TRIANGLE])
  assert sorted(os.listdir(tmp_path)) == [staged.LIST, "frame_0000.ply"]


def test_a_sequence_with_a_bad_frame_leaves_nothing(tmp_path):
  bad = TriangleMesh([[0, 0, np.nan], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
  with pytest.raises(ValueError, match="1 of 3 vertices are not finite"):
    ply_obj.write_mesh_sequence(tmp_path / "out", [clips.TRIANGLE, bad])
  assert not os.listdir(tmp_path)


def test_a_disk_that_fills_midway_leaves_nothing(tmp_path, monkeypatch):
  fsync, calls = os.fsync, []

  def fill_at_the_third(descriptor):
    calls.append(descriptor)
    if len(calls) == 3:
      raise OSError(28, "No space left on device")
    fsync(descriptor)

  monkeypatch.setattr(os, "fsync", fill_at_the_third)
  with pytest.raises(atomic.OutputError, match="frame_0002.ply: No space"):
    ply_obj.write_mesh_sequence(tmp_path / "out", [clips.TRIANGLE] * 4)
  assert not os.listdir(tmp_path)


@pytest.mark.parametrize(
  "name, content, message",
  [
    ("missing.ply", None, "there is no mesh file"),
    ("mesh.stp", b"", "ending in .ply or .obj, got '.stp'"),
    ("mesh", b"", "got 'no suffix'"),
    ("mesh.ply", b"not a mesh", "not a readable .ply mesh"),
    (
      "cut.ply",
      b"ply\nformat binary_little_endian 1.0\nelement vertex 900\n"
      b"property float x\nproperty float y\nproperty float z\n"
      b"end_header\n1234",
      "not a readable .ply mesh",
    ),
  ],
)
def test_bad_files_are_named(tmp_path, name, content, message):
  if content is not None:
    (tmp_path / name).write_bytes(content)
  with pytest.raises(ValueError, match=message):
    ply_obj.read_mesh(tmp_path / name)


def test_empty_sequences_are_refused(tmp_path):
  with pytest.raises(ValueError, match="at least one frame"):
    ply_obj.write_mesh_sequence(tmp_path, [])
  with pytest.raises(ValueError, match="no frame_"):
    ply_obj.read_mesh_sequence(tmp_path)
