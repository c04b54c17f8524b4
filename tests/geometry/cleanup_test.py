import numpy as np
import pytest

from sculpt4d_jax.geometry import cleanup
from sculpt4d_jax.geometry import isosurface
from sculpt4d_jax.geometry import mesh as mesh_lib

_TETRAHEDRON = np.array([[0, 2, 1], [0, 1, 3], [1, 2, 3], [2, 0, 3]])


def _tetrahedra(*sizes):
  """Separate tetrahedra; face areas go with the square of the sizes."""
  corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], np.float32)
  vertices = [size * corners + 10 * i for i, size in enumerate(sizes)]
  faces = [_TETRAHEDRON + 4 * i for i in range(len(sizes))]
  return mesh_lib.TriangleMesh(np.concatenate(vertices), np.concatenate(faces))


def _ball(resolution=32):
  field = isosurface.dense_field(
    lambda p: 0.7 - np.linalg.norm(p, axis=-1), resolution
  )
  return isosurface.extract_surface(field.values)


def _signed_volume(mesh):
  corners = mesh.vertices[mesh.faces].astype(np.float64)
  normals = np.cross(corners[:, 1], corners[:, 2])
  return np.einsum("ij,ij->", corners[:, 0], normals) / 6


def _directed_edges(mesh):
  a, b, c = mesh.faces.T.tolist()
  return [*zip(a, b), *zip(b, c), *zip(c, a)]


def test_components_are_numbered_by_their_first_face():
  mesh = _tetrahedra(1, 2, 1)
  order = [8, 0, 4, 1, 9, 2, 3, 5, 6, 7, 10, 11]
  mixed = mesh_lib.TriangleMesh(mesh.vertices, mesh.faces[order])
  numbers = cleanup.face_components(mixed)
  assert numbers.tolist() == [0, 1, 2, 1, 0, 1, 1, 2, 2, 2, 0, 0]


def test_small_pieces_are_removed_and_the_rest_is_unchanged():
  mesh = _tetrahedra(1.0, 0.05, 2.0)  # Areas 1 : 0.0025 : 4.
  kept = cleanup.keep_largest_components(mesh)
  np.testing.assert_array_equal(
    kept.vertices, np.delete(mesh.vertices, range(4, 8), axis=0)
  )
  np.testing.assert_array_equal(
    kept.faces, np.concatenate([_TETRAHEDRON, _TETRAHEDRON + 4])
  )


def test_number_of_pieces_is_limited_to_the_largest_of_equals_the_first():
  mesh = _tetrahedra(1.0, 2.0, 2.0)
  kept = cleanup.keep_largest_components(mesh, max_components=1)
  np.testing.assert_array_equal(kept.vertices, mesh.vertices[4:8])


def test_the_largest_piece_always_stays():
  mesh = _tetrahedra(1.0, 1.0)
  kept = cleanup.keep_largest_components(mesh, min_area_fraction=1.0)
  assert kept.num_faces == 8


def test_an_empty_mesh_stays_empty():
  empty = mesh_lib.TriangleMesh(np.zeros((0, 3)), np.zeros((0, 3), int))
  assert cleanup.keep_largest_components(empty).is_empty
  assert cleanup.simplify(empty, 10).is_empty


@pytest.mark.parametrize("max_faces", [1000, 100, 20])
def test_simplified_ball_is_closed_oriented_and_about_as_large(max_faces):
  mesh = _ball()
  simple = cleanup.simplify(mesh, max_faces)
  assert 0.5 * max_faces <= simple.num_faces <= max_faces
  edges = _directed_edges(simple)
  assert len(set(edges)) == len(edges)
  assert {(b, a) for a, b in edges} == set(edges)
  assert np.unique(simple.faces).size == simple.num_vertices
  shrink = {1000: 0.02, 100: 0.06, 20: 0.35}[max_faces]
  assert _signed_volume(simple) == pytest.approx(
    _signed_volume(mesh), rel=shrink
  )


def test_a_mesh_within_the_budget_is_returned_as_it_is():
  mesh = _tetrahedra(1.0)
  assert cleanup.simplify(mesh, 4) is mesh


def test_simplification_is_deterministic():
  first, second = (cleanup.simplify(_ball(20), 200) for _ in range(2))
  np.testing.assert_array_equal(first.vertices, second.vertices)
  np.testing.assert_array_equal(first.faces, second.faces)


def test_arguments_out_of_range_are_refused():
  mesh = _tetrahedra(1.0)
  with pytest.raises(ValueError, match="max_faces=3"):
    cleanup.simplify(mesh, 3)
  with pytest.raises(ValueError, match="max_components=0"):
    cleanup.keep_largest_components(mesh, max_components=0)
  with pytest.raises(ValueError, match="min_area_fraction"):
    cleanup.keep_largest_components(mesh, min_area_fraction=1.5)
