import math

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.rendering import cameras
from sculpt4d_jax.rendering import rasterizer

TriangleMesh = mesh_lib.TriangleMesh

# The lower left half of the square [-1, 1]^2 at z = 0, facing the front.
HALF = TriangleMesh([[-1, -1, 0], [1, -1, 0], [-1, 1, 0]], [[0, 1, 2]])
EMPTY = TriangleMesh(np.zeros((0, 3)), np.zeros((0, 3), np.int32))


def _sphere(radius=0.5, subdivisions=5):
  sphere = trimesh.creation.icosphere(subdivisions=subdivisions, radius=radius)
  return TriangleMesh(sphere.vertices, sphere.faces)


def test_a_triangle_covers_the_pixels_below_its_diagonal():
  camera = cameras.orthographic(height=2, distance=3)
  view = rasterizer.render_mesh(HALF, camera, 4)
  row, column = np.mgrid[:4, :4]
  # Centres on the diagonal itself may fall to either side.
  inside, outside = column < row, column > row
  assert view.mask[inside].all() and not view.mask[outside].any()
  np.testing.assert_allclose(view.depth[inside], 3, rtol=1e-6)
  np.testing.assert_allclose(view.normal[inside], [[0, 0, 1]] * inside.sum())
  assert (view.face_id[inside] == 0).all()
  assert (view.face_id[outside] == -1).all()
  assert (view.depth[outside] == 0).all()
  assert (view.rgba[inside, 3] == 255).all()
  assert (view.rgba[outside, 3] == 0).all()


def test_an_orthographic_sphere_is_a_disc():
  camera = cameras.orthographic(20, 30, height=2, distance=3)
  view = rasterizer.render_mesh(_sphere(), camera, 200)
  area = view.mask.mean() * 4
  assert area == pytest.approx(math.pi * 0.25, rel=5e-3)
  # 100 is the pixel right below the middle; the sphere's front is at 2.5.
  assert view.depth[100, 100] == pytest.approx(2.5, abs=1e-3)
  np.testing.assert_allclose(view.normal[100, 100], -camera.forward, atol=0.02)


def test_a_perspective_sphere_has_the_angular_radius():
  camera = cameras.perspective(0, 0, fov_degrees=60, distance=2)
  view = rasterizer.render_mesh(_sphere(), camera, 200)
  # The cone that touches a sphere of radius r from d has the sine r / d.
  radius = math.tan(math.asin(0.5 / 2)) / math.tan(math.radians(30))
  assert view.mask.mean() * 4 == pytest.approx(math.pi * radius**2, rel=5e-3)
  assert view.depth[100, 100] == pytest.approx(1.5, abs=1e-3)


def test_a_sphere_that_fits_touches_the_border():
  camera = cameras.perspective(40, 10, fov_degrees=50, radius=0.5)
  view = rasterizer.render_mesh(_sphere(), camera, 120)
  assert view.mask[:2].any() and view.mask[-2:].any()
  assert not view.mask[0, :40].any()


def test_depth_and_normals_agree_with_the_sphere():
  camera = cameras.perspective(70, -20, fov_degrees=40, distance=3)
  view = rasterizer.render_mesh(_sphere(), camera, (60, 90))
  origins, directions = cameras.camera_rays(camera, 60, 90)
  points = (origins + view.depth[..., None] * directions)[view.mask]
  np.testing.assert_allclose(np.linalg.norm(points, axis=1), 0.5, atol=1e-3)
  np.testing.assert_allclose(view.normal[view.mask], 2 * points, atol=0.01)


def test_face_ids_are_those_of_the_hit_faces():
  mesh = _sphere(subdivisions=2)
  camera = cameras.perspective(15, 25, fov_degrees=40, distance=3)
  view = rasterizer.render_mesh(mesh, camera, 64)
  origins, directions = cameras.camera_rays(camera, 64, 64)
  points = (origins + view.depth[..., None] * directions)[view.mask]
  corners = mesh.vertices[mesh.faces[view.face_id[view.mask]]]
  weights = trimesh.triangles.points_to_barycentric(corners, points)
  assert weights.min() > -1e-4 and weights.max() < 1 + 1e-4


def test_no_ray_slips_between_faces():
  camera = cameras.orthographic(33, 21, height=0.6, distance=3)
  view = rasterizer.render_mesh(_sphere(), camera, 256)
  assert view.mask.all()


def test_nearer_surfaces_hide_farther_ones():
  back = HALF
  vertices = np.concatenate([back.vertices, back.vertices + [0, 0, 0.5]])
  both = TriangleMesh(vertices, [[0, 1, 2], [3, 4, 5]])
  camera = cameras.orthographic(height=2, distance=3)
  view = rasterizer.render_mesh(both, camera, 16)
  assert set(np.unique(view.face_id)) == {-1, 1}
  np.testing.assert_allclose(view.depth[view.mask], 2.5)


def test_backs_are_lit_but_keep_their_outward_normals():
  front, back = (
    rasterizer.render_mesh(HALF, cameras.orthographic(azimuth, height=2), 8)
    for azimuth in (0, 180)
  )
  np.testing.assert_allclose(back.normal[back.mask][0], [0, 0, 1])
  np.testing.assert_allclose(
    back.rgba[back.mask].mean(axis=0),
    front.rgba[front.mask].mean(axis=0),
    atol=1,
  )


def test_flat_normals_are_those_of_the_faces():
  box = trimesh.creation.box(extents=(1, 1, 1))
  mesh = TriangleMesh(box.vertices, box.faces)
  camera = cameras.perspective(35, 30, fov_degrees=40)
  view = rasterizer.render_mesh(mesh, camera, 48, smooth=False)
  found = np.unique(view.normal[view.mask].round(5), axis=0)
  np.testing.assert_array_equal(found, [[0, 0, 1], [0, 1, 0], [1, 0, 0]])


def test_a_picture_is_the_colours_of_a_render():
  camera = cameras.perspective(30.0, 20.0)
  for mesh in (_sphere(), EMPTY):
    for samples in (1, 2):
      surface = rasterizer.Surface(mesh)
      np.testing.assert_array_equal(
        surface.picture(camera, 24, supersampling=samples),
        surface.render(camera, 24, supersampling=samples).rgba,
      )


def test_supersampling_smooths_the_outline_only():
  camera = cameras.orthographic(height=2, distance=3)
  plain, smooth = (
    rasterizer.render_mesh(_sphere(), camera, 32, supersampling=samples)
    for samples in (1, 4)
  )
  for name in ("mask", "depth", "normal", "face_id"):
    np.testing.assert_array_equal(getattr(plain, name), getattr(smooth, name))
  alpha = smooth.rgba[..., 3].astype(float) / 255
  assert set(np.unique(plain.rgba[..., 3])) == {0, 255}
  assert ((alpha > 0) & (alpha < 1)).any()
  assert alpha.mean() * 4 == pytest.approx(math.pi * 0.25, rel=5e-3)


def test_vertex_colours_reach_the_picture():
  camera = cameras.orthographic(height=2, distance=3)
  colors = [[1, 0, 0], [0, 1, 0], [0, 0, 1]]
  with np.errstate(invalid="raise"):  # Of a pixel on an edge, for instance.
    view = rasterizer.render_mesh(HALF, camera, 33, vertex_colors=colors)
  strongest = view.rgba[..., :3].argmax(axis=-1)
  assert strongest[31, 1] == 0 and strongest[32, 30] == 1
  assert strongest[2, 0] == 2


def test_an_empty_mesh_gives_an_empty_view():
  view = rasterizer.render_mesh(EMPTY, cameras.perspective(), 8)
  assert not view.mask.any() and not view.rgba.any()
  assert (view.face_id == -1).all()


def test_renders_repeat_exactly():
  camera = cameras.perspective(10, 20)
  first, second = (
    rasterizer.render_mesh(_sphere(), camera, 64, supersampling=2)
    for _ in range(2)
  )
  np.testing.assert_array_equal(first.rgba, second.rgba)
  np.testing.assert_array_equal(first.depth, second.depth)


def test_composite_mixes_by_alpha():
  rgba = np.array([[[200, 100, 0, 255], [200, 100, 0, 51], [9, 9, 9, 0]]], "u1")
  np.testing.assert_array_equal(
    rasterizer.composite(rgba), [[[200, 100, 0], [244, 224, 204], [255] * 3]]
  )


@pytest.mark.parametrize(
  "options, message",
  [
    ({"size": 0}, "must be positive"),
    ({"size": (4, 0)}, "must be positive"),
    ({"size": 4, "supersampling": 0}, "must be positive"),
    ({"size": 4, "vertex_colors": np.zeros((2, 3))}, r"must be \[3, 3\]"),
  ],
)
def test_bad_arguments_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    rasterizer.render_mesh(HALF, cameras.perspective(), **options)
