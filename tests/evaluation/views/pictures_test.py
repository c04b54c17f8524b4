import math

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.evaluation.views import pictures
from sculpt4d_jax.geometry import mesh as mesh_lib
from tests.evaluation import shapes


def test_silhouette_of_a_sphere_has_the_area_of_its_cone():
  radius, size = 0.8, 512
  ball = shapes.sphere(radius, subdivisions=5)
  views = pictures.normal_maps([ball], size)
  assert views.shape == (4, 1, size, size, 3)
  distance = pictures.MARGIN * math.sqrt(3) / math.sin(math.radians(20))
  # The cone that touches the sphere, on a plane at depth 1.
  angle = math.asin(radius / distance)
  half = math.tan(math.radians(20))
  expected = math.pi * (math.tan(angle) / half) ** 2 / 4
  areas = [np.mean((view[0] < 255).any(-1)) for view in views]
  assert areas == pytest.approx([expected] * 4, rel=5e-3)


def test_body_of_revolution_looks_alike_from_all_sides():
  profile = trimesh.creation.capsule(height=0.6, radius=0.3, count=[64, 64])
  # Its axis is z; the cameras turn about y.
  vertices = profile.vertices[:, [0, 2, 1]] * [1, 1, -1]
  mesh = mesh_lib.TriangleMesh(vertices, profile.faces)
  views = pictures.shaded([mesh], 128).astype(int)
  for view in views[1:]:
    assert np.abs(view - views[0]).mean() < 0.5


def test_normals_of_faces_that_look_along_the_axes():
  cube = shapes.box([0.6, 0.6, 0.6])
  # Flat shading needs separate corners.
  flat = mesh_lib.TriangleMesh(
    cube.vertices[cube.faces].reshape(-1, 3),
    np.arange(3 * cube.num_faces).reshape(-1, 3),
  )
  front, right, back, _ = pictures.normal_maps([flat], 64)[:, 0, 32, 32]
  np.testing.assert_allclose(front, [128, 128, 255], atol=1)
  np.testing.assert_allclose(right, [255, 128, 128], atol=1)
  np.testing.assert_allclose(back, [128, 128, 0], atol=1)


def test_empty_frames_are_white():
  assert (pictures.shaded([shapes.EMPTY], 16) == 255).all()
