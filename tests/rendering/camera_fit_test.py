import numpy as np
import pytest
import trimesh

from sculpt4d_jax.rendering import camera_fit
from sculpt4d_jax.rendering import cameras


def _walker(num_frames=3):
  """A lopsided body with a leg that swings; [F, V, 3] and [T, 3]."""
  body = trimesh.creation.box((1.2, 0.4, 0.5))
  head = trimesh.creation.icosphere(2, 0.25)
  head.apply_translation((0.7, 0.35, 0.1))
  leg = trimesh.creation.box((0.15, 0.8, 0.15))
  leg.apply_translation((-0.4, -0.5, 0.15))
  faces, count = [], 0
  for part in (body, head, leg):
    faces.append(np.asarray(part.faces) + count)
    count += len(part.vertices)
  frames = []
  for angle in np.linspace(-0.5, 0.5, num_frames):
    turn = trimesh.transformations.rotation_matrix(angle, [0, 0, 1])
    moved = trimesh.transform_points(leg.vertices, turn)
    frames.append(np.concatenate([body.vertices, head.vertices, moved]))
  return np.stack(frames), np.concatenate(faces)


def _camera(azimuth, elevation, distance, shift=(0.1, -0.05)):
  eye = cameras.orbit_eye(azimuth, elevation, distance)
  fov = 2 * np.degrees(np.arctan(1.3 / distance))
  return cameras.Camera(cameras.look_at(eye), fov_degrees=fov, shift=shift)


def _masks(camera, vertices, faces, size=192):
  return np.stack(
    [
      camera_fit.silhouette(camera, frame, faces, size, size)
      for frame in vertices
    ]
  ).astype(np.float32)


@pytest.mark.parametrize(
  "azimuth, elevation, distance", [(20, 15, 4.0), (-35, 5, 3.0), (70, 30, 6.0)]
)
def test_the_camera_of_the_masks_is_found(azimuth, elevation, distance):
  vertices, faces = _walker()
  true = _camera(azimuth, elevation, distance)
  found = camera_fit.fit(vertices, faces, _masks(true, vertices, faces))
  assert found.iou > 0.97 and not found.warning
  points = vertices.reshape(-1, 3)
  wanted, _ = cameras.project(true, points, 512, 512)
  pixels, _ = cameras.project(found.camera, points, 512, 512)
  error = np.linalg.norm(pixels - wanted, axis=1)
  assert error.mean() < 2.0
  assert (
    abs(found.azimuth - azimuth) < 4 and abs(found.elevation - elevation) < 4
  )


def test_bytes_and_wide_pictures_are_taken():
  vertices, faces = _walker()
  true = _camera(10, 10, 4.0)
  masks = np.stack(
    [camera_fit.silhouette(true, v, faces, 144, 240) for v in vertices]
  )
  found = camera_fit.fit(vertices, faces, 255 * masks.astype(np.uint8))
  assert found.iou > 0.95


def test_the_front_is_preferred_to_the_back():
  vertices, faces = _walker()
  masks = _masks(_camera(150, 5, 4.0), vertices, faces)
  assert abs(camera_fit.fit(vertices, faces, masks).azimuth) <= 90
  free = camera_fit.FitSettings(max_azimuth=180)
  assert abs(camera_fit.fit(vertices, faces, masks, free).azimuth - 150) < 5


def test_of_equal_sides_of_a_flower_the_front_is_taken():
  ball = trimesh.creation.icosphere(3)
  x, y, z = ball.vertices.T
  petals = 0.6 + 0.25 * np.cos(5 * np.arctan2(x, z))
  # One petal is a little shorter, so that another side fits slightly better.
  petals = petals - 0.01 * np.exp(-20 * np.arctan2(x, z) ** 2)
  vertices = np.stack([x * petals, 0.3 * y, z * petals], 1)[None]
  turned = (
    vertices
    @ trimesh.transformations.rotation_matrix(np.radians(72), [0, 1, 0])[:3, :3]
  )
  masks = _masks(_camera(0, 30, 4.0), turned, ball.faces)
  found = camera_fit.fit(vertices, ball.faces, masks)
  assert abs(found.azimuth) < 5 and abs(found.elevation - 30) < 4


def test_a_mesh_that_does_not_fit_is_said():
  vertices, faces = _walker()
  masks = np.zeros((3, 64, 64), np.float32)
  masks[:, 10:14, 5:60] = 1
  masks[:, 10:60, 30:34] = 1
  found = camera_fit.fit(vertices, faces, masks)
  assert found.iou < 0.85 and "IoU" in found.warning


@pytest.mark.parametrize(
  "masks, message",
  [
    (np.zeros((3, 8, 8)), "no mask shows an object"),
    (np.ones((2, 8, 8)), "3 meshes but 2 masks"),
    (np.ones((8, 8)), r"\[F, h, w\]"),
  ],
)
def test_bad_masks_are_refused(masks, message):
  vertices, faces = _walker()
  with pytest.raises(ValueError, match=message):
    camera_fit.fit(vertices, faces, masks)


def test_the_box_of_a_mask_lies_between_pixels():
  # Coverage 0.25 then 1: one half is passed a third of the way between their
  # centres, and the whole is 4 pixels of two half heights.
  masks = np.zeros((1, 4, 4), np.float32)
  masks[0, 1:3, 2:] = 1
  masks[0, 1:3, 1] = 0.25
  low, high = camera_fit._mask_box(masks)
  left = 1.5 + 1 / 3
  np.testing.assert_allclose(low, [(2 * left - 4) / 4, -0.5])
  np.testing.assert_allclose(high, [1.0, 0.5])
