import sys

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import uv_atlas

# A square of two triangles that fills the left half of a picture.
SQUARE = uv_atlas.UvAtlas(
  [0, 1, 2, 3],
  [[0, 1, 2], [0, 2, 3]],
  [[0, 0], [0.5, 0], [0.5, 1], [0, 1]],
  width=8,
  height=4,
)


def _cube():
  cube = trimesh.creation.box()
  return mesh_lib.TriangleMesh(cube.vertices, cube.faces)


def test_texels_of_a_square_by_hand():
  covered, points = uv_atlas.texels(SQUARE)
  assert covered.tolist() == [[True] * 4 + [False] * 4] * 4
  places = points.interpolate(SQUARE.uv, SQUARE.faces)
  # The centre of texel (row, column) is at ((column + 1/2) / 8, (row + 1/2) / 4).
  rows, columns = np.nonzero(covered)
  np.testing.assert_allclose(places[:, 0], (columns + 0.5) / 8, atol=1e-6)
  np.testing.assert_allclose(places[:, 1], (rows + 0.5) / 4, atol=1e-6)


def test_charts_of_a_cube_do_not_overlap():
  pytest.importorskip("xatlas", reason="the extra `texture`")
  cube = _cube()
  atlas = uv_atlas.unwrap(cube, 128)
  np.testing.assert_array_equal(atlas.vertex_map[atlas.faces], cube.faces)
  corners = atlas.uv[atlas.faces].astype(np.float64)
  edges = corners[:, 1:] - corners[:, :1]
  areas = np.abs(np.linalg.det(edges)) / 2
  covered, points = uv_atlas.texels(atlas)
  # Texels see one face each, so overlaps would lose some of the area.
  assert covered.mean() == pytest.approx(areas.sum(), rel=0.03)
  assert np.bincount(points.face_ids, minlength=12).min() > 0


def test_gaps_take_the_nearest_colour():
  image = np.zeros((1, 5, 1))
  image[0, 1], image[0, 4] = 3, 7
  covered = np.array([[False, True, False, False, True]])
  grown = uv_atlas.grow_charts(image, covered)
  assert grown[0, :, 0].tolist() == [3, 3, 3, 7, 7]


def test_look_ups_are_bilinear_between_centres():
  image = np.array([[[0.0], [4.0]], [[8.0], [12.0]]])
  uv = np.array([[0.25, 0.25], [0.5, 0.25], [0.5, 0.5], [0.0, 1.0]])
  assert uv_atlas.sample(image, uv)[:, 0].tolist() == [0, 2, 6, 8]


def test_vertices_are_surface_points():
  cube = _cube()
  points = uv_atlas.vertex_points(cube.faces, cube.num_vertices)
  np.testing.assert_array_equal(
    points.interpolate(cube.vertices, cube.faces), cube.vertices
  )


def test_a_missing_xatlas_names_the_extra(monkeypatch):
  monkeypatch.setitem(sys.modules, "xatlas", None)
  assert not uv_atlas.has_xatlas()
  with pytest.raises(ImportError, match=r"sculpt4d-jax\[texture\]"):
    uv_atlas.unwrap(_cube())


def test_bad_atlases_are_refused():
  with pytest.raises(ValueError, match=r"uv must be \[2, 2\]"):
    uv_atlas.UvAtlas([0, 1], [[0, 1, 1]], np.zeros((3, 2)), 8, 8)
  with pytest.raises(ValueError, match="faces index vertices"):
    uv_atlas.UvAtlas([0, 1], [[0, 1, 2]], np.zeros((2, 2)), 8, 8)
