"""Views that are encoded, and read back."""

import dataclasses

import numpy as np
import pytest
import trimesh

from sculpt4d_jax.data.preparation import quality_gate
from sculpt4d_jax.data.preparation import views as record_views
from sculpt4d_jax.data.records import schema
from sculpt4d_jax.geometry import deforming_mesh
from sculpt4d_jax.geometry import watertight
from sculpt4d_jax.rendering import cameras
from sculpt4d_jax.rendering import rasterizer


def test_depths_come_back_to_half_a_step():
  rng = np.random.default_rng(0)
  depth = rng.uniform(1.5, 4.0, (16, 16)).astype(np.float32)
  depth[0, :2] = 1.5, 4.0
  mask = rng.random((16, 16)) < 0.7
  mask[0, :2] = True
  steps = record_views.encode_depth(depth, mask, 1.5, 4.0)
  assert steps.dtype == np.uint16
  assert steps[0, 0] == 1 and steps[0, 1] == 65535
  back = record_views.decode_depth(record_views.encode_png(steps), 1.5, 4.0)
  assert back.dtype == np.float32
  np.testing.assert_array_equal(back[~mask], 0)
  step = (4.0 - 1.5) / 65534
  assert np.abs(back - depth)[mask].max() < 0.51 * step + 1e-6


def test_normals_come_back_to_half_a_step():
  rng = np.random.default_rng(0)
  normal = rng.normal(size=(16, 16, 3))
  normal /= np.linalg.norm(normal, axis=-1, keepdims=True)
  mask = rng.random((16, 16)) < 0.7
  pixels = record_views.encode_normals(normal, mask)
  back = record_views.decode_normals(record_views.encode_png(pixels))
  assert np.abs(back - normal)[mask].max() < 0.51 / 127.5
  np.testing.assert_array_equal(back[~mask], -1)


def test_pictures_come_back_with_their_alpha():
  rgba = np.random.default_rng(0).integers(0, 256, (8, 8, 4), dtype=np.uint8)
  content = record_views.encode_png(rgba)
  np.testing.assert_array_equal(record_views.decode_picture(content), rgba)


@pytest.fixture(scope="module")
def view():
  """A box that moves, its repair, and its first view as it is stored."""
  box = trimesh.creation.box([1.0, 0.8, 0.6])
  shift = np.array([0.2, 0.1, 0.0])
  mesh = deforming_mesh.DeformingMesh(
    np.stack([box.vertices - shift, box.vertices + shift]), box.faces
  )
  none = np.zeros(mesh.num_faces, bool)
  repair = watertight.Repair(none, none, ~none)
  fields = next(
    record_views.render_entries(
      mesh,
      repair,
      num_views=3,
      image_size=64,
      supersampling=1,
      rng=np.random.default_rng(0),
    )
  )
  return mesh, repair, *fields


def test_a_view_holds_what_the_renderer_saw(view):
  mesh, _, fields, buffers, coverage = view
  camera = cameras.Camera(
    fields["camera_to_world"], float(fields["fov_degrees"][0])
  )
  seen = rasterizer.render_mesh(mesh.frame(1), camera, 64)
  near, far = buffers["depth_range"]
  depth = record_views.decode_depth(
    schema.unpack(buffers["depth"], buffers["depth_ends"], 1),
    near,
    far,
  )
  np.testing.assert_array_equal(depth > 0, seen.mask)
  np.testing.assert_allclose(depth, seen.depth, atol=(far - near) / 1e5)
  picture = record_views.decode_picture(
    schema.unpack(fields["pictures"], fields["ends"], 1)
  )
  np.testing.assert_array_equal(picture, seen.rgba)
  assert coverage <= seen.mask.mean()


def test_views_that_are_true_pass_the_gate(view):
  mesh, repair, fields, buffers, _ = view
  measures = quality_gate.view_measures(mesh, repair, fields, buffers)
  assert measures["view_off"] < 1e-4
  assert not quality_gate.judge(measures, quality_gate.GateLimits())


def test_a_camera_that_is_another_one_fails_it(view):
  mesh, repair, fields, buffers, _ = view
  moved = fields["camera_to_world"].copy()
  moved[:3, 3] += 0.01 * moved[:3, 2]
  measures = quality_gate.view_measures(
    mesh, repair, fields | {"camera_to_world": moved}, buffers
  )
  assert measures["view_off"] > 5e-3
  inside_out = dataclasses.replace(repair, flipped=~repair.flipped)
  measures |= quality_gate.view_measures(mesh, inside_out, fields, buffers)
  assert measures["view_normals"] == 1
