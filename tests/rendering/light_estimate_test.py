import numpy as np
import trimesh

from sculpt4d_jax.geometry import uv_atlas
from sculpt4d_jax.rendering import camera_fit
from sculpt4d_jax.rendering import cameras
from sculpt4d_jax.rendering import light_estimate
from sculpt4d_jax.rendering import texture_baking

CAMERA = cameras.perspective(20, 10, fov_degrees=40, distance=4)
ALBEDOS = np.array([[0.9, 0.3, 0.2], [0.2, 0.4, 0.8]])


def _lit_ball():
  """A ball of two colours under a lamp that stands with the camera."""
  ball = trimesh.creation.icosphere(4, 0.9)
  vertices, faces = np.asarray(ball.vertices), np.asarray(ball.faces)
  albedo = ALBEDOS[(vertices[:, 1] > 0.1).astype(int)]
  lamp = CAMERA.camera_to_world[:3, :3] @ np.array([0.5, 0.6, 0.62])
  origins, directions = cameras.camera_rays(CAMERA, 128, 128)
  hits = camera_fit.scene_of(vertices, faces).run(
    np.ascontiguousarray(origins.reshape(-1, 3), np.float32),
    np.ascontiguousarray(directions.reshape(-1, 3), np.float32),
    output=True,
  )
  seen = hits["primID"] >= 0
  u, v = hits["u"][seen], hits["v"][seen]
  points = uv_atlas.SurfacePoints(
    hits["primID"][seen], np.stack([1 - u - v, u, v], 1)
  )
  normals = points.interpolate(vertices / 0.9, faces)
  light = 0.3 + 0.7 * np.clip(normals @ lamp, 0, None)
  picture = np.zeros((128 * 128, 3))
  picture[seen] = points.interpolate(albedo, faces) * light[:, None]
  pictures = picture.reshape(1, 128, 128, 3)
  masks = seen.reshape(1, 128, 128).astype(np.float32)
  clip = texture_baking.footage([vertices], faces, pictures, masks, CAMERA)
  return clip, vertices / 0.9, albedo, lamp


def test_light_and_albedo_come_apart():
  clip, normals, albedo, lamp = _lit_ball()
  light = light_estimate.estimate(clip, "first")
  true = 0.3 + 0.7 * np.clip(normals @ lamp, 0, None)
  points = uv_atlas.vertex_points(clip.faces, len(normals))
  seen = texture_baking.observe(clip, 0, points)
  sure = seen.weights > 0.3
  ratio = light(normals[sure]) / true[sure]
  assert ratio.std() / ratio.mean() < 0.06
  # Without light, each half has one colour.
  flat = seen.colours[sure] / light(normals[sure])[:, None]
  for row in ALBEDOS:
    part = flat[(albedo[sure] == row).all(1)]
    assert (part.std(0) / part.mean(0) < 0.12).all()


def test_too_little_to_see_gives_constant_light():
  clip, normals, _, _ = _lit_ball()
  blind = texture_baking.footage(
    clip.vertices, clip.faces, clip.pictures, 0.6 * clip.masks, CAMERA
  )
  light = light_estimate.estimate(blind, "first")
  np.testing.assert_array_equal(light(normals), 1.0)
