"""Signed distances of parts and their union."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.geometry import signed_distance


def _solid(**changes):
  """A unit-smooth solid of one round cone and one box, both elsewhere."""
  fields = dict(
    cone_origin=jnp.array([[-0.5, 0.0, 0.0]]),
    cone_rotation=jnp.eye(3)[None],
    cone_length=jnp.array([0.4]),
    cone_radii=jnp.array([[0.2, 0.1]]),
    box_origin=jnp.array([[0.5, 0.0, 0.0]]),
    box_rotation=jnp.eye(3)[None],
    box_half_size=jnp.array([[0.1, 0.2, 0.3]]),
    box_rounding=jnp.array([0.0]),
    smoothness=jnp.array(0.02),
  )
  return signed_distance.Solid(**(fields | changes))


@pytest.mark.parametrize(
  "point, expected",
  [
    ([0.0, 0.0, 0.0], 0.5),  # The lower centre: its radius.
    ([0.0, -1.0, 0.0], -0.5),  # Below.
    ([0.0, 2.0, 0.0], -0.75),  # Above: 2 - 1 - 0.25.
  ],
)
def test_round_cone_on_its_axis(point, expected):
  distance = signed_distance.round_cone(
    jnp.array(point), jnp.array(1.0), jnp.array([0.5, 0.25])
  )
  np.testing.assert_allclose(distance, expected, atol=1e-5)


def test_equal_radii_make_a_capsule():
  distance = signed_distance.round_cone(
    jnp.array([[0.7, 0.5, 0.0], [0.0, 0.5, 0.1]]),
    jnp.array(1.0),
    jnp.array([0.3, 0.3]),
  )
  np.testing.assert_allclose(distance, [-0.4, 0.2], atol=1e-5)


def test_box_faces_edges_and_corners():
  half = jnp.array([1.0, 2.0, 3.0])
  points = jnp.array([[0, 0, 0], [2, 0, 0], [2, 3, 0], [2, 3, 4]], jnp.float32)
  distance = signed_distance.rounded_box(points, half, jnp.array(0.0))
  expected = [1, -1, -np.sqrt(2), -np.sqrt(3)]
  np.testing.assert_allclose(distance, expected, atol=1e-5)


def test_distance_changes_by_one_a_unit_of_length():
  points = jax.random.uniform(
    jax.random.key(0), (512, 3), minval=-1.0, maxval=1.0
  )
  slope = signed_distance.gradient(_solid(), points)
  length = jnp.linalg.norm(slope, axis=-1)
  # Exactly one but on the mid-plane between the parts and inside the box.
  assert float(jnp.median(jnp.abs(length - 1))) < 1e-4
  assert float(length.max()) < 1.001


def test_union_is_the_nearer_part_away_from_the_blend():
  solid = _solid()
  points = jnp.array([[-0.5, 0.8, 0.0], [0.5, -0.6, 0.0]])
  parts = signed_distance.part_distances(solid, points)
  union = signed_distance.signed_distance(solid, points)
  np.testing.assert_allclose(union, parts.max(-1), atol=1e-5)
  np.testing.assert_allclose(union, [-0.3, -0.4], atol=1e-4)


def test_projection_lands_on_the_surface_with_outward_normals():
  solid = _solid()
  guide = jnp.array([[-0.65, 0.1, 0.1], [0.62, 0.1, 0.0], [0.5, 0.3, 0.1]])
  points, normals = signed_distance.project_to_surface(solid, guide)
  distance = signed_distance.signed_distance(solid, points)
  np.testing.assert_allclose(distance, 0.0, atol=1e-4)
  outside = signed_distance.signed_distance(solid, points + 0.05 * normals)
  assert (outside < -0.04).all()


def test_absent_parts_do_not_show():
  absent = jnp.full((1, 2), signed_distance.ABSENT)
  solid = _solid(cone_radii=absent)
  assert (
    float(signed_distance.signed_distance(solid, jnp.array([-0.5, 0.1, 0.0])))
    < -0.5
  )
