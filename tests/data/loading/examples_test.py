"""Examples: turned to the camera, mirrored, drawn; always of one object."""

import dataclasses

import numpy as np
import pytest

from sculpt4d_jax.data.loading import examples as record_examples
from sculpt4d_jax.data.loading import poses
from sculpt4d_jax.data.records import index as dataset_index
from tests.data import small_records

pytest.importorskip("array_record", reason="needs the extra `data`")


@pytest.fixture(scope="module", name="index")
def _index(tmp_path_factory):
  folder = small_records.make(tmp_path_factory.mktemp("data") / "spheres")
  return dataset_index.read_index(folder)


def _config(**changes):
  fields = dict(
    contents=("geometry", "queries", "images"),
    num_frames=4,
    num_parts=0,
    image_size=16,
    mirror=False,
    reverse_time=False,
    turn_to_camera=True,
  )
  return record_examples.ExampleConfig(**(fields | changes))


def _reader(index, **changes):
  return record_examples.ExampleReader(index, "train", _config(**changes))


@pytest.mark.parametrize("view", range(3))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_turned_object_is_the_object(index, view, mirrored):
  example = _reader(index).read_variant(
    1, view, mirrored, np.random.default_rng(0)
  )
  eye = example["camera_to_world"][:3, 3]
  # The camera stands in front, x = 0 and z > 0, at the height it had.
  np.testing.assert_allclose(eye[0], 0, atol=1e-9)
  assert eye[2] > 0
  elevation = np.degrees(np.arctan2(eye[1], eye[2]))
  np.testing.assert_allclose(
    elevation, small_records.ELEVATIONS[view], atol=1e-6
  )
  # Every sample's distance is true of the sphere that the points lie on.
  scale = np.linalg.norm(eye) / 4
  radius = scale * small_records.sphere(1)[1]
  surface, samples = example["surface"], example["samples"]
  centres = (surface[..., :3] - radius * surface[..., 3:6]).mean(1)
  np.testing.assert_allclose(
    np.linalg.norm(surface[..., :3] - centres[:, None], axis=-1),
    radius,
    atol=2e-3,
  )
  distances = radius - np.linalg.norm(
    samples[..., :3] - centres[:, None], axis=-1
  )
  np.testing.assert_allclose(samples[..., 3], distances, atol=3e-3)
  np.testing.assert_allclose(
    np.linalg.norm(surface[..., 3:6], axis=-1), 1, atol=2e-3
  )
  assert np.abs(surface[..., :3]).max() < 1


@pytest.mark.parametrize("view", range(3))
def test_in_the_pictures_frame_the_camera_looks_level_at_the_middle(
  index, view
):
  example = _reader(index, picture_frame=True).read_variant(
    1, view, False, np.random.default_rng(0)
  )
  camera = example["camera_to_world"]
  np.testing.assert_allclose(camera[:3, :3], np.eye(3), atol=1e-6)
  # On the plane through the middle, seen from the eye, the object reaches as
  # far to the left as to the right, and as far up as down.
  points = example["surface"][..., :3].reshape(-1, 3) - camera[:3, 3]
  depth = -points[:, 2:]
  seen = points[:, :2] / depth * camera[2, 3] + camera[:2, 3]
  np.testing.assert_allclose(seen.min(0), -seen.max(0), atol=0.02)
  # Distances stay true of the sphere that the points lie on.
  surface, samples = example["surface"], example["samples"]
  radius = camera[2, 3] / 4 * small_records.sphere(1)[1]
  centres = (surface[..., :3] - radius * surface[..., 3:6]).mean(1)
  distances = radius - np.linalg.norm(
    samples[..., :3] - centres[:, None], axis=-1
  )
  np.testing.assert_allclose(samples[..., 3], distances, atol=3e-3)


def test_the_pictures_frame_needs_a_turned_object(index):
  with pytest.raises(ValueError, match="turn_to_camera=True"):
    _config(picture_frame=True, turn_to_camera=False)


def test_a_sphere_at_the_side_comes_before_a_camera_at_the_side(index):
  example = _reader(index).read_variant(0, 1, False, np.random.default_rng(0))
  # It slides along +x, where the camera stands: towards the viewer.
  middle = example["surface"][..., :3].mean(1)
  assert middle[-1, 2] > middle[0, 2] > 0.3
  assert np.abs(middle[:, 0]).max() < 0.1


def test_an_object_that_leaves_the_cube_is_made_smaller():
  corner = np.array([[0.9, 0.0, 0.9]])
  pose = poses.facing(np.array([1.0, 0.0, 1.0]), corner)
  turned = pose.points(corner)
  np.testing.assert_allclose(turned, [[0, 0, 0.95]], atol=1e-12)


def test_steep_views_are_left_out(index):
  assert _reader(index).views(0) == [0, 1, 2]
  assert _reader(index, max_elevation=0.5).views(0) == [0, 1]
  # None is low enough: the lowest there is.
  assert _reader(index, max_elevation=-1.0).views(0) == [0]


def test_rows_are_drawn_the_same_in_all_frames(index):
  reader = _reader(
    index, turn_to_camera=False, num_uniform=7, num_sharp=3, num_samples=5
  )
  example = reader.read(2, np.random.default_rng(4))
  assert example["surface"].shape == (4, 10, 7)
  assert example["samples"].shape == (4, 5, 4)
  labels = example["surface"][..., 6]
  np.testing.assert_array_equal(labels, [[0] * 7 + [1] * 3] * 4)
  moved = np.diff(example["surface"][..., :3], axis=0)
  expected = np.diff(small_records.sphere(2)[0], axis=0)[:, None]
  np.testing.assert_allclose(moved - expected, 0, atol=2e-3)


def test_too_many_rows_say_what_to_do(index):
  with pytest.raises(ValueError, match="99 points.*read more parts"):
    _reader(index, num_uniform=99).read(0, np.random.default_rng(0))


def test_names_of_what_is_read_must_be_given():
  for kind in ("posterior", "features"):
    with pytest.raises(ValueError, match="computed before"):
      _config(contents=(kind,))
  with pytest.raises(ValueError, match="must not be negative"):
    dataclasses.replace(_config(), num_samples=-1)
