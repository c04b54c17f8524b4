import math

import numpy as np
import pytest

from sculpt4d_jax.rendering import cameras


@pytest.mark.parametrize(
  "azimuth, elevation, eye",
  [
    (0, 0, [0, 0, 2]),
    (90, 0, [2, 0, 0]),
    (180, 0, [0, 0, -2]),
    (0, 90, [0, 2, 0]),
    (0, -90, [0, -2, 0]),
    (90, 45, [math.sqrt(2), math.sqrt(2), 0]),
  ],
)
def test_angles_place_the_eye(azimuth, elevation, eye):
  np.testing.assert_allclose(
    cameras.orbit_eye(azimuth, elevation, 2.0), eye, atol=1e-12
  )


def test_the_front_camera_has_the_axes_of_the_world():
  transform = cameras.look_at([0, 0, 5])
  np.testing.assert_allclose(transform[:3, :3], np.eye(3), atol=1e-12)
  np.testing.assert_allclose(transform[:3, 3], [0, 0, 5])


def test_a_camera_from_the_right_sees_z_to_its_left():
  transform = cameras.look_at([5, 0, 0])
  np.testing.assert_allclose(transform[:3, 0], [0, 0, -1], atol=1e-12)
  np.testing.assert_allclose(transform[:3, 1], [0, 1, 0], atol=1e-12)


@pytest.mark.parametrize("eye, up", [([0, 3, 0], -1), ([0, -3, 0], 1)])
def test_cameras_above_and_below_keep_x_to_the_right(eye, up):
  transform = cameras.look_at(eye)
  np.testing.assert_allclose(transform[:3, 0], [1, 0, 0], atol=1e-12)
  np.testing.assert_allclose(transform[:3, 1], [0, 0, up], atol=1e-12)


def test_look_at_gives_rotations():
  rng = np.random.default_rng(0)
  for eye, target in rng.normal(size=(20, 2, 3)):
    transform = cameras.look_at(eye, target)
    rotation = transform[:3, :3]
    np.testing.assert_allclose(rotation.T @ rotation, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) == pytest.approx(1)
    forward = (target - eye) / np.linalg.norm(target - eye)
    np.testing.assert_allclose(-rotation[:, 2], forward, atol=1e-12)
    assert rotation[1, 1] >= 0  # Not upside down.


def test_rays_of_a_wide_two_pixel_image():
  camera = cameras.perspective(0, 0, fov_degrees=90, distance=2)
  origins, directions = cameras.camera_rays(camera, 1, 2)
  np.testing.assert_allclose(origins, np.tile([0, 0, 2], (1, 2, 1)), atol=1e-9)
  np.testing.assert_allclose(directions, [[[-1, 0, -1], [1, 0, -1]]], atol=1e-9)


def test_orthographic_rays_are_parallel():
  camera = cameras.orthographic(0, 0, height=2, distance=3)
  origins, directions = cameras.camera_rays(camera, 2, 2)
  np.testing.assert_allclose(
    origins[..., :2], [[[-0.5, 0.5], [0.5, 0.5]], [[-0.5, -0.5], [0.5, -0.5]]]
  )
  np.testing.assert_allclose(directions, np.tile([0, 0, -1], (2, 2, 1)))


def test_samples_average_to_their_pixel():
  camera = cameras.perspective(30, 20, fov_degrees=50)
  _, coarse = cameras.camera_rays(camera, 3, 5)
  _, fine = cameras.camera_rays(camera, 3, 5, samples=4)
  np.testing.assert_allclose(
    fine.reshape(3, 4, 5, 4, 3).mean(axis=(1, 3)), coarse, atol=1e-12
  )


@pytest.mark.parametrize(
  "camera",
  [
    cameras.perspective(40, -25, fov_degrees=60),
    cameras.orthographic(-70, 50, height=3),
  ],
  ids=["perspective", "orthographic"],
)
def test_projection_undoes_rays(camera):
  origins, directions = cameras.camera_rays(camera, 6, 9)
  pixels, depths = cameras.project(
    camera, (origins + 1.7 * directions).reshape(-1, 3), 6, 9
  )
  np.testing.assert_allclose(depths, 1.7)
  x, y = np.meshgrid(np.arange(9) + 0.5, np.arange(6) + 0.5)
  np.testing.assert_allclose(pixels, np.stack([x, y], -1).reshape(-1, 2))


def test_points_behind_the_camera_have_no_pixel():
  camera = cameras.perspective(distance=2)
  pixels, depths = cameras.project(camera, [[0, 0, 5]], 8, 8)
  assert depths[0] == -3 and np.isnan(pixels).all()


def test_hammersley_angles_by_hand():
  # u = 0, 1/4, 1/2, 3/4 and v = 0, 1/2, 1/4, 3/4; u becomes 0, 1/2, 2/3, 5/6,
  # and the elevation is the arc sine of 2u - 1.
  np.testing.assert_allclose(
    cameras.hammersley_angles(4),
    [
      [0, -90],
      [180, 0],
      [90, np.degrees(np.arcsin(1 / 3))],
      [270, np.degrees(np.arcsin(2 / 3))],
    ],
    atol=1e-5,
  )


@pytest.mark.parametrize("offset", [(0.0, 0.0), (0.3, 0.9)])
def test_a_quarter_of_the_views_lies_below_the_horizon(offset):
  azimuth, elevation = cameras.hammersley_angles(200, offset).T
  assert np.mean(elevation < 0) == pytest.approx(0.25, abs=0.01)
  assert elevation.min() >= -90 and elevation.max() <= 90
  assert azimuth.min() >= 0 and azimuth.max() < 360
  # Azimuths are even: every twelfth of the circle has its share.
  counts = np.histogram(azimuth, bins=12, range=(0, 360))[0]
  assert counts.min() >= 14 and counts.max() <= 19


def test_hammersley_cameras_just_see_the_sphere():
  rng = np.random.default_rng(1)
  for camera in cameras.hammersley_cameras(24, rng, radius=2.0):
    assert 10 <= camera.fov_degrees <= 70
    distance = np.linalg.norm(camera.eye)
    np.testing.assert_allclose(camera.forward, -camera.eye / distance)
    half = math.radians(camera.fov_degrees / 2)
    assert distance * math.sin(half) == pytest.approx(2.0)


def test_inverse_square_distances_are_uniform():
  views = cameras.hammersley_cameras(2000, np.random.default_rng(2), radius=1)
  nearness = np.array([1 / np.dot(c.eye, c.eye) for c in views])
  low, high = np.sin(np.radians([5, 35])) ** 2
  counts = np.histogram(nearness, bins=5, range=(low, high))[0]
  assert counts.sum() == 2000 and counts.min() > 330


@pytest.mark.parametrize(
  "make, message",
  [
    (lambda: cameras.look_at([1, 2, 3], [1, 2, 3]), "the same point"),
    (lambda: cameras.Camera(np.eye(4)), "either fov_degrees"),
    (lambda: cameras.Camera(np.eye(4), 30.0, 2.0), "either fov_degrees"),
    (lambda: cameras.Camera(np.eye(4), 180.0), "between 0 and 180"),
    (lambda: cameras.orthographic(height=0), "height must be positive"),
    (lambda: cameras.hammersley_angles(0), "num_cameras must be positive"),
  ],
)
def test_bad_cameras_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


def test_a_shifted_image_is_a_crop_of_a_larger_one():
  eye = cameras.orbit_eye(30, 20, 4)
  whole = cameras.Camera(cameras.look_at(eye), fov_degrees=60.0)
  # The upper right quarter: half as high, its centre one half height away.
  half = 2 * math.degrees(math.atan(math.tan(math.radians(30)) / 2))
  crop = cameras.Camera(cameras.look_at(eye), fov_degrees=half, shift=(1, 1))
  points = np.random.default_rng(0).uniform(-1, 1, (50, 3))
  in_whole, depth = cameras.project(whole, points, 64, 64)
  in_crop, same_depth = cameras.project(crop, points, 32, 32)
  np.testing.assert_allclose(in_crop, in_whole - [32, 0], atol=1e-9)
  np.testing.assert_allclose(depth, same_depth)
  _, rays = cameras.camera_rays(whole, 64, 64)
  _, crop_rays = cameras.camera_rays(crop, 32, 32)
  np.testing.assert_allclose(crop_rays, rays[:32, 32:], atol=1e-12)
