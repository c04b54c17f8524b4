import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.geometry import farthest_points


def _on_a_line(*places):
  return np.array([[x, 0, 0] for x in places], np.float32)


def test_points_on_a_line_by_hand():
  points = _on_a_line(0, 1, 10, 4)
  rows = farthest_points.farthest_points(points, 4, start=0)
  assert rows.tolist() == [0, 2, 3, 1]


def test_of_equally_far_points_the_first_is_taken():
  points = _on_a_line(0, -1, 1, 1)
  assert farthest_points.farthest_points(points, 2).tolist() == [0, 1]


def test_picks_equal_a_plain_loop_in_every_cloud():
  clouds = np.random.default_rng(0).normal(size=(3, 40, 3)).astype(np.float32)
  starts = np.array([5, 0, 39])
  rows = jax.vmap(
    functools.partial(farthest_points.farthest_points, num_samples=12)
  )(clouds, start=starts)
  for points, start, picked in zip(clouds, starts, rows):
    expected = [start]
    while len(expected) < 12:
      to_each = points[:, None] - points[expected]
      distance = (to_each**2).sum(-1).min(1)
      expected.append(int(np.argmax(distance)))
    assert picked.tolist() == expected


@pytest.mark.parametrize("num_samples", [0, 5])
def test_more_samples_than_points_are_refused(num_samples):
  with pytest.raises(ValueError, match="1..4"):
    farthest_points.farthest_points(_on_a_line(0, 1, 2, 3), num_samples)


def test_released_sizes_read_every_uniform_point():
  sizes = farthest_points.group_sizes(4096, 81920, 0)
  assert sizes == farthest_points.GroupSizes(81920, 0, 4096, 0)
  assert sizes.num_queries == 4096


def test_queries_are_shared_out_by_the_groups_numbers():
  sizes = farthest_points.group_sizes(16, 200, 120, 5)
  assert sizes == farthest_points.GroupSizes(50, 30, 10, 6)


@pytest.mark.parametrize(
  "sizes, message",
  [
    ((16, 100, 33), "cannot be shared out"),
    ((64, 100, 100, 20), "only|has 100 and 100"),
    ((0, 100, 0), "must be positive"),
    ((8, 100, -1), "must be positive"),
  ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
  with pytest.raises(ValueError, match=message):
    farthest_points.group_sizes(*sizes)


def test_rows_come_from_their_group_once_each_and_queries_from_the_rows():
  rng = np.random.default_rng(1)
  surface = rng.uniform(-1, 1, (160, 7)).astype(np.float32)

  @jax.jit
  def select(key):
    return farthest_points.select_rows(
      key,
      surface,
      num_latents=16,
      num_uniform=120,
      num_sharp=40,
      downsample_ratio=5,
    )

  inputs, queries = map(np.asarray, select(jax.random.key(0)))
  assert len(set(inputs)) == len(inputs) == 80
  assert (inputs[:60] < 120).all() and (inputs[60:] >= 120).all()
  assert len(set(queries)) == len(queries) == 16
  assert set(queries[:12]) <= set(inputs[:60])
  assert set(queries[12:]) <= set(inputs[60:])
  again, _ = select(jax.random.key(0))
  other, _ = select(jax.random.key(1))
  np.testing.assert_array_equal(inputs, again)
  assert (inputs != np.asarray(other)).any()


def test_a_surface_of_another_size_is_refused():
  with pytest.raises(ValueError, match="has 10 rows"):
    farthest_points.select_rows(
      jax.random.key(0),
      np.zeros((10, 7)),
      num_latents=2,
      num_uniform=10,
      num_sharp=10,
    )


def _spatial_order(points):
  return np.asarray(farthest_points.spatial_order(jnp.asarray(points)))


def test_spatial_order_of_a_cube_by_hand():
  corners = np.array(list(np.ndindex(2, 2, 2)), np.float32)  # x, y, z
  rows = _spatial_order(corners[[6, 1, 4, 3, 0, 7, 2, 5]])
  # Below before above, then left before right, then back before front.
  expected = [[x, y, z] for y in (0, 1) for x in (0, 1) for z in (0, 1)]
  np.testing.assert_array_equal(
    corners[[6, 1, 4, 3, 0, 7, 2, 5]][rows], expected
  )


@pytest.mark.parametrize("count", [1, 6, 7, 32, 48])
def test_spatial_order_is_a_permutation_that_forgets_the_order(count):
  rng = np.random.default_rng(count)
  points = rng.normal(size=(count, 3)).astype(np.float32)
  rows = _spatial_order(points)
  assert sorted(rows.tolist()) == list(range(count))
  shuffled = points[rng.permutation(count)]
  np.testing.assert_array_equal(
    shuffled[_spatial_order(shuffled)], points[rows]
  )
