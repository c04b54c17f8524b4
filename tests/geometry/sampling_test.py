import numpy as np
import pytest
import trimesh

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import sampling

TriangleMesh = mesh_lib.TriangleMesh


def rng(seed=0):
  return np.random.default_rng(seed)


def cube():
  mesh = trimesh.creation.box(bounds=[[-0.5] * 3, [0.5] * 3])
  return TriangleMesh(mesh.vertices, mesh.faces)


def split_vertices(mesh):
  """The same surface with no vertex shared, as files with hard edges have."""
  return TriangleMesh(
    mesh.vertices[mesh.faces].reshape(-1, 3),
    np.arange(3 * mesh.num_faces).reshape(-1, 3),
  )


def roof(angle_degrees):
  """Two triangles that meet along the x axis at a dihedral angle."""
  angle = np.radians(180.0 - angle_degrees)
  return TriangleMesh(
    [[0, 0, 0], [2, 0, 0], [0, 1, 0], [0, np.cos(angle), np.sin(angle)]],
    [[0, 1, 2], [1, 0, 3]],
  )


def test_points_are_distributed_by_area():
  # Two triangles of areas 1/2 and 3/2.
  mesh = TriangleMesh(
    [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [3, 0, 1], [0, 1, 1]],
    [[0, 1, 2], [3, 4, 5]],
  )
  points = sampling.sample_surface(mesh, 20_000, rng())
  assert np.mean(points.face_ids == 1) == pytest.approx(0.75, abs=0.01)


def test_points_are_uniform_in_a_triangle():
  mesh = TriangleMesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
  points = sampling.sample_surface(mesh, 40_000, rng())
  # The centroid, and the quarter of the area nearest to each corner.
  centre = points.positions.mean(axis=0)
  np.testing.assert_allclose(centre, [1 / 3, 1 / 3, 0], atol=0.01)
  share = (points.barycentrics > 0.5).mean(axis=0)
  np.testing.assert_allclose(share, 0.25, atol=0.01)


def test_barycentrics_and_positions_agree():
  mesh = cube()
  points = sampling.sample_surface(mesh, 500, rng())
  np.testing.assert_allclose(points.barycentrics.sum(1), 1.0, atol=1e-6)
  assert points.barycentrics.min() >= 0.0
  np.testing.assert_allclose(np.abs(points.positions).max(1), 0.5, atol=1e-6)
  # The normal is that of the side of the cube that the point lies on.
  np.testing.assert_allclose(
    np.sum(points.normals * points.positions, axis=1), 0.5, atol=1e-6
  )


def test_same_seed_gives_same_points():
  a = sampling.sample_surface(cube(), 100, rng(3))
  b = sampling.sample_surface(cube(), 100, rng(3))
  np.testing.assert_array_equal(a.positions, b.positions)
  c = sampling.sample_surface(cube(), 100, rng(4))
  assert not np.array_equal(a.positions, c.positions)


def test_faces_without_area_get_no_points():
  mesh = TriangleMesh(
    [[0, 0, 0], [1, 0, 0], [0, 1, 0], [2, 0, 0]],
    [[0, 1, 3], [0, 1, 2], [0, 0, 1]],
  )
  points = sampling.sample_surface(mesh, 200, rng())
  assert set(points.face_ids) == {1}


@pytest.mark.parametrize("faces", [np.zeros((0, 3)), [[0, 1, 1]]])
def test_surface_without_area_is_refused(faces):
  mesh = TriangleMesh([[0, 0, 0], [1, 0, 0]], faces)
  with pytest.raises(ValueError, match="area 0"):
    sampling.sample_surface(mesh, 10, rng())


def test_points_follow_a_deformed_mesh():
  mesh = cube()
  points = sampling.sample_surface(mesh, 300, rng())
  matrix = np.array([[1.2, 0.3, 0], [0, 0.7, 0.1], [0.2, 0, 1]], np.float32)
  deformed = TriangleMesh(mesh.vertices @ matrix.T + 0.1, mesh.faces)
  moved = sampling.points_at(deformed, points.face_ids, points.barycentrics)
  np.testing.assert_allclose(
    moved.positions, points.positions @ matrix.T + 0.1, atol=1e-6
  )
  # Normals transform with the inverse transpose.
  expected = points.normals @ np.linalg.inv(matrix)
  expected /= np.linalg.norm(expected, axis=1, keepdims=True)
  np.testing.assert_allclose(moved.normals, expected, atol=1e-5)


def test_collapsed_face_has_zero_normal():
  mesh = TriangleMesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]])
  points = sampling.points_at(mesh, [0], [[0.5, 0.25, 0.25]])
  np.testing.assert_array_equal(points.normals, np.zeros((1, 3)))
  np.testing.assert_allclose(points.positions, [[0.75, 0, 0]])


def test_points_of_another_mesh_are_refused():
  with pytest.raises(ValueError, match="12 faces"):
    sampling.points_at(cube(), [12], [[1, 0, 0]])
  with pytest.raises(ValueError, match=r"barycentrics \[P, 3\]"):
    sampling.points_at(cube(), [0, 1], [[1, 0, 0]])


@pytest.mark.parametrize("prepare", [lambda mesh: mesh, split_vertices])
def test_cube_has_twelve_sharp_edges(prepare):
  edges = sampling.find_sharp_edges(prepare(cube()))
  assert len(edges) == 12  # The diagonals of its sides are flat.
  np.testing.assert_allclose(edges.lengths, 1.0)


@pytest.mark.parametrize("prepare", [lambda mesh: mesh, split_vertices])
def test_sharp_points_lie_on_edges_of_the_cube(prepare):
  points = sampling.sample_sharp_edges(prepare(cube()), 3000, rng())
  assert len(points) == 3000
  at_border = np.isclose(np.abs(points.positions), 0.5, atol=1e-6).sum(axis=1)
  assert np.all(at_border >= 2)
  # The normal is that of one of the two sides at the edge.
  along = np.sum(points.normals * points.positions, axis=1)
  np.testing.assert_allclose(along, 0.5, atol=1e-6)


def test_sharp_points_are_distributed_by_area():
  mesh = trimesh.creation.box(bounds=[[-1, -0.25, -0.125], [1, 0.25, 0.125]])
  mesh = TriangleMesh(mesh.vertices, mesh.faces)
  # Sides of 2 by 1/2, 2 by 1/4 and 1/2 by 1/4 are two triangles each: the four
  # edges along x have triangles of 1/2 and 1/4 at them, those along y of 1/2
  # and 1/16, those along z of 1/4 and 1/16.
  edges = sampling.find_sharp_edges(mesh)
  order = np.argsort(-edges.areas)
  np.testing.assert_allclose(
    edges.areas[order], np.repeat([0.75, 0.5625, 0.3125], 4)
  )
  np.testing.assert_allclose(
    edges.lengths[order], np.repeat([2.0, 0.5, 0.25], 4)
  )
  points = sampling.sample_sharp_edges(mesh, 20_000, rng())
  # An edge along an axis leaves that axis' coordinate between its ends.
  inner = np.abs(points.positions) < np.array([0.999, 0.2499, 0.12495])
  shares = np.mean(inner, axis=0)
  np.testing.assert_allclose(
    shares, np.array([0.75, 0.5625, 0.3125]) / 1.625, atol=0.015
  )
  along_x = inner[:, 0]
  # Uniform along an edge.
  assert np.std(points.positions[along_x, 0]) == pytest.approx(
    2 / np.sqrt(12), abs=0.02
  )


def test_both_sides_of_an_edge_are_told_of():
  points = sampling.sample_sharp_edges(roof(90.0), 4000, rng())
  assert np.mean(points.face_ids == 0) == pytest.approx(0.5, abs=0.03)
  assert np.all(points.positions[:, 1:] == 0.0)


def test_edge_is_sharp_above_the_angle_only():
  assert len(sampling.find_sharp_edges(roof(35.0), 30.0)) == 1
  assert len(sampling.find_sharp_edges(roof(25.0), 30.0)) == 0


@pytest.mark.parametrize("angle", [25.0, 35.0])
def test_winding_does_not_matter_to_sharpness(angle):
  mesh = roof(angle)
  turned = TriangleMesh(mesh.vertices, [mesh.faces[0], mesh.faces[1][::-1]])
  assert len(sampling.find_sharp_edges(turned)) == len(
    sampling.find_sharp_edges(mesh)
  )


def test_edge_of_three_faces_is_sharp():
  mesh = TriangleMesh(
    [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, -1, 0], [0, -1, 0.1]],
    [[0, 1, 2], [1, 0, 3], [1, 0, 4]],
  )
  edges = sampling.find_sharp_edges(mesh)
  np.testing.assert_allclose(edges.lengths, [1.0])


def test_smooth_or_open_or_empty_mesh_gives_no_sharp_points():
  ball = trimesh.creation.icosphere(subdivisions=3)
  triangle = TriangleMesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]])
  empty = TriangleMesh(np.zeros((0, 3)), np.zeros((0, 3)))
  for mesh in (TriangleMesh(ball.vertices, ball.faces), triangle, empty):
    points = sampling.sample_sharp_edges(mesh, 100, rng())
    assert len(points) == 0
    assert points.positions.shape == points.normals.shape == (0, 3)


def test_sharp_points_follow_a_deformed_mesh():
  mesh = split_vertices(cube())
  points = sampling.sample_sharp_edges(mesh, 50, rng())
  moved = sampling.points_at(
    TriangleMesh(mesh.vertices * 0.5, mesh.faces),
    points.face_ids,
    points.barycentrics,
  )
  np.testing.assert_allclose(moved.positions, points.positions * 0.5, atol=1e-7)
  np.testing.assert_allclose(moved.normals, points.normals, atol=1e-6)


def test_agrees_with_trimesh_on_sharp_edges():
  mesh = trimesh.creation.cylinder(radius=0.4, height=1.0, sections=10)
  ours = sampling.find_sharp_edges(TriangleMesh(mesh.vertices, mesh.faces))
  sharp = np.degrees(mesh.face_adjacency_angles) > 30.0
  assert len(ours) == sharp.sum() == 30  # Two rims of 10 and 10 sides.
