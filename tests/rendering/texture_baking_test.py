import numpy as np
import pytest
import trimesh

from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import uv_atlas
from sculpt4d_jax.rendering import cameras
from sculpt4d_jax.rendering import rasterizer
from sculpt4d_jax.rendering import texture_baking

CAMERA = cameras.perspective(30, 25, fov_degrees=40, distance=4)
SIZE = 96
# One colour for each direction of a face: -x, +x, -y, +y, -z, +z.
COLOURS = np.array(
  [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]], float
)


def _cube():
  """A cube whose faces share no vertices, so that normals are the faces'."""
  cube = trimesh.creation.box()
  return cube.triangles.reshape(-1, 3), np.arange(36).reshape(-1, 3)


def _sides(vertices, faces):
  """Which of the six directions a face of the resting cube looks in."""
  normals = mesh_lib.TriangleMesh(vertices, faces).face_cross_products()
  axis = np.abs(normals).argmax(1)
  return 2 * axis + (normals[np.arange(len(faces)), axis] > 0)


def _film(frames, faces, colours):
  """Pictures and masks of a mesh whose faces have colours [T, 3]."""
  views = [
    rasterizer.render_mesh(
      mesh_lib.TriangleMesh(frame, faces),
      CAMERA,
      SIZE,
      surface_colors=lambda face, _: colours[face],
      shaded=False,
    )
    for frame in frames
  ]
  pictures = np.stack([view.rgba[..., :3] for view in views])
  return pictures, np.stack([view.mask for view in views]).astype(np.float32)


def _middles(faces):
  third = np.full((len(faces), 3), 1 / 3)
  return uv_atlas.SurfacePoints(np.arange(len(faces)), third)


def test_a_cube_takes_the_colours_of_the_sides_that_are_seen():
  vertices, faces = _cube()
  sides = _sides(vertices, faces)
  pictures, masks = _film([vertices], faces, COLOURS[sides])
  clip = texture_baking.footage([vertices], faces, pictures, masks, CAMERA)
  seen = texture_baking.bake(clip, _middles(faces), "first")
  # The camera stands at +x, +y, +z.
  shown = np.isin(sides, [1, 3, 5])
  assert (seen.weights[shown] > 0.01).all()
  assert (seen.weights[~shown] == 0).all()
  np.testing.assert_allclose(
    seen.colours[shown], COLOURS[sides[shown]], atol=0.01
  )


def test_other_frames_colour_what_the_first_does_not_show():
  vertices, faces = _cube()
  sides = _sides(vertices, faces)
  turn = trimesh.transformations.rotation_matrix(np.pi, [0, 1, 0])[:3, :3]
  frames = np.stack([vertices, vertices @ turn.T])
  pictures, masks = _film(frames, faces, COLOURS[sides])
  # The second frame is darker: where the first sees, it must not count.
  pictures[1] = pictures[1] // 2
  clip = texture_baking.footage(frames, faces, pictures, masks, CAMERA)
  seen = texture_baking.bake(clip, _middles(faces), "all")
  first, later = np.isin(sides, [1, 5]), np.isin(sides, [0, 4])
  np.testing.assert_allclose(
    seen.colours[first], COLOURS[sides[first]], atol=0.01
  )
  np.testing.assert_allclose(
    seen.colours[later], COLOURS[sides[later]] / 2, atol=0.01
  )
  assert (seen.weights[sides == 2] == 0).all()  # The bottom, never seen.


def test_other_frames_are_shown_in_the_light_of_the_first():
  vertices, faces = _cube()
  sides = _sides(vertices, faces)
  turn = trimesh.transformations.rotation_matrix(np.pi, [0, 1, 0])[:3, :3]
  frames = np.stack([vertices, vertices @ turn.T])
  pictures, masks = _film(frames, faces, COLOURS[sides])
  clip = texture_baking.footage(frames, faces, pictures, masks, CAMERA)

  def light(normals):
    return 0.75 + 0.25 * normals[:, 0]

  seen = texture_baking.bake(clip, _middles(faces), "all", light)
  # The side -x lies in half the light and is filmed in the whole of it; the
  # side -z has the same light in both frames.
  for side, factor in ((0, 0.5), (4, 1.0), (1, 1.0)):
    np.testing.assert_allclose(
      seen.colours[sides == side],
      np.tile(factor * COLOURS[side], (2, 1)),
      atol=0.01,
    )


def test_what_stands_in_front_hides():
  wall = trimesh.creation.box((2, 2, 0.1))
  ball = trimesh.creation.icosphere(3, 0.3)
  ball.apply_translation(CAMERA.eye / 4 * 1.5)
  both = trimesh.util.concatenate([wall, ball])
  vertices, faces = np.asarray(both.vertices), np.asarray(both.faces)
  pictures = np.zeros((1, SIZE, SIZE, 3), np.uint8)
  _, masks = _film([vertices], faces, np.zeros((len(faces), 3)))
  clip = texture_baking.footage([vertices], faces, pictures, masks, CAMERA)
  rays = np.array([[0.0, 0.0, 0.05], [0.6, -0.6, 0.05]])
  front = np.flatnonzero((np.abs(vertices[faces][..., 2] - 0.05) < 1e-6).all(1))
  ids = []
  for ray in rays:  # The face of the wall in which the point lies.
    weights = trimesh.triangles.points_to_barycentric(
      vertices[faces[front]], np.tile(ray, (len(front), 1))
    )
    ids.append(front[weights.min(1).argmax()])
  corner = trimesh.triangles.points_to_barycentric(vertices[faces[ids]], rays)
  points = uv_atlas.SurfacePoints(np.array(ids), corner)
  weights = texture_baking.observe(clip, 0, points).weights
  assert weights[0] == 0 and weights[1] > 0.1


def test_pixels_that_are_partly_background_do_not_count():
  vertices, faces = _cube()
  pictures, masks = _film([vertices], faces, np.ones((len(faces), 3)))
  clip = texture_baking.footage(
    [vertices], faces, pictures, 0.8 * masks, CAMERA
  )
  assert not texture_baking.bake(clip, _middles(faces)).weights.any()


@pytest.mark.parametrize(
  "pictures, masks, message",
  [
    (np.zeros((1, 8, 8, 3)), np.ones((1, 8, 9)), "same size"),
    (np.zeros((2, 8, 8, 3)), np.ones((2, 8, 8)), r"pictures \[1, h, w, 3\]"),
  ],
)
def test_a_video_of_another_shape_is_refused(pictures, masks, message):
  vertices, faces = _cube()
  with pytest.raises(ValueError, match=message):
    texture_baking.footage([vertices], faces, pictures, masks, CAMERA)


def test_an_unknown_choice_of_frames_is_refused():
  vertices, faces = _cube()
  pictures, masks = _film([vertices], faces, np.ones((len(faces), 3)))
  clip = texture_baking.footage([vertices], faces, pictures, masks, CAMERA)
  with pytest.raises(ValueError, match="choose one of"):
    texture_baking.bake(clip, _middles(faces), "best")
