"""The triangle mesh: what it refuses, areas, and joined vertices."""

import numpy as np
import pytest

from sculpt4d_jax.geometry.mesh import TriangleMesh

# Two triangles of a square whose shared side has vertices of each; the copy of
# the origin has a negative zero.
_CORNERS = [
  [0, 0, 0],
  [1, 0, 0],
  [1, 1, 0],
  [-0.0, 0, 0],
  [1, 1, 0],
  [0, 1, 0],
]
_SQUARE = TriangleMesh(_CORNERS, [[0, 1, 2], [3, 4, 5]])


def test_vertices_at_the_same_position_are_joined():
  joined, rows = _SQUARE.welded()
  assert joined.num_vertices == 4
  np.testing.assert_array_equal(joined.vertices[rows], _SQUARE.vertices + 0.0)
  np.testing.assert_array_equal(joined.faces, rows[_SQUARE.faces])
  assert rows[0] == rows[3] and rows[2] == rows[4]


def test_a_vertex_without_faces_stays():
  mesh = TriangleMesh([*_CORNERS, [2, 2, 2]], _SQUARE.faces)
  assert mesh.welded()[0].num_vertices == 5


def test_only_faces_with_an_area_count():
  assert _SQUARE.has_area
  line = TriangleMesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]])
  assert not line.has_area
  assert not TriangleMesh(np.zeros((3, 3)), np.zeros((0, 3), int)).has_area


@pytest.mark.parametrize(
  "vertices, faces, words",
  [
    (np.zeros((3, 2)), [[0, 1, 2]], "vertices must be"),
    (np.zeros((3, 3)), [[0, 1]], "faces must be"),
    (np.zeros((3, 3)), [[0, 1, 3]], "3 vertices"),
    (np.zeros((3, 3)), [[-1, 1, 2]], "3 vertices"),
  ],
)
def test_wrong_arrays_are_refused(vertices, faces, words):
  with pytest.raises(ValueError, match=words):
    TriangleMesh(vertices, faces)
