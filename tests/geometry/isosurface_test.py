import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.geometry import isosurface


def _ball(points, centre=(0.1, -0.2, 0.05), radius=0.5):
  return radius - np.linalg.norm(points - np.float32(centre), axis=-1)


def _box(points, centre, half_sides):
  outside = np.abs(points - np.float32(centre)) - np.float32(half_sides)
  return -outside.max(-1)


def _truncated(field, slope=4.0):
  return lambda p: np.clip(slope * field(p), -1, 1).astype(np.float32)


_FIELDS = {
  "ball": _truncated(_ball),
  "two_pieces": _truncated(
    lambda p: np.maximum(
      _ball(p, (-0.5, 0, 0), 0.35), _ball(p, (0.6, 0.3, 0.1), 0.2)
    )
  ),
  "hollow": _truncated(
    lambda p: np.minimum(_ball(p, radius=0.7), -_ball(p, radius=0.4))
  ),
  "thin_plate": _truncated(lambda p: _box(p, (0.013, 0, 0), (0.018, 0.7, 0.6))),
  "thin_rod": _truncated(
    lambda p: _box(p, (0, 0.211, -0.107), (0.9, 0.035, 0.035))
  ),
}


def _signed_volume(mesh):
  corners = mesh.vertices[mesh.faces].astype(np.float64)
  normals = np.cross(corners[:, 1], corners[:, 2])
  return np.einsum("ij,ij->", corners[:, 0], normals) / 6


def _is_closed_and_consistent(mesh):
  """Every directed edge once, and its opposite too."""
  edges = np.concatenate(
    [mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]
  ).astype(np.int64)
  forward = edges[:, 0] * mesh.num_vertices + edges[:, 1]
  backward = edges[:, 1] * mesh.num_vertices + edges[:, 0]
  return (
    len(np.unique(forward)) == len(forward) and np.isin(forward, backward).all()
  )


def test_grid_points_by_hand():
  points = isosurface.grid_points(2, 0.5)
  assert points.shape == (3, 3, 3, 3) and points.dtype == np.float32
  np.testing.assert_array_equal(points[0, 0, 0], [-0.5, -0.5, -0.5])
  np.testing.assert_array_equal(points[2, 1, 0], [0.5, 0.0, -0.5])


def test_a_plane_lies_where_the_field_is_zero_and_faces_outwards():
  points = isosurface.grid_points(8, 1.0)
  mesh = isosurface.extract_surface(0.3 - points[..., 0], bounds=1.0)
  np.testing.assert_allclose(mesh.vertices[:, 0], 0.3, atol=1e-6)
  assert (mesh.face_cross_products()[:, 0] > 0).all()
  assert mesh.vertices[:, 1].min() == -1 and mesh.vertices[:, 1].max() == 1


def test_a_ball_is_closed_and_has_its_volume():
  field = isosurface.dense_field(_ball, 40)
  mesh = isosurface.extract_surface(field.values)
  assert _is_closed_and_consistent(mesh)
  assert _signed_volume(mesh) == pytest.approx(4 / 3 * np.pi / 8, rel=0.01)
  distance = np.linalg.norm(mesh.vertices - [0.1, -0.2, 0.05], axis=1)
  np.testing.assert_allclose(distance, 0.5, atol=2e-3)


def test_released_vertex_scale_shrinks_towards_the_lower_corner():
  values = isosurface.dense_field(_ball, 20).values
  exact = isosurface.extract_surface(values)
  released = isosurface.extract_surface(values, vertex_scale="hunyuan3d")
  np.testing.assert_allclose(
    released.vertices + 1.01, (exact.vertices + 1.01) * 20 / 21, atol=1e-6
  )
  np.testing.assert_array_equal(released.faces, exact.faces)


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0, np.nan])
def test_a_field_without_a_surface_gives_no_mesh(value):
  assert isosurface.extract_surface(np.full((4, 4, 4), value)) is None


def test_level_moves_the_surface():
  values = isosurface.dense_field(_ball, 32).values
  mesh = isosurface.extract_surface(values, level=0.2)
  distance = np.linalg.norm(mesh.vertices - [0.1, -0.2, 0.05], axis=1)
  np.testing.assert_allclose(distance, 0.3, atol=5e-3)


def test_cells_that_touch_nan_have_no_surface_and_others_keep_theirs():
  values = isosurface.dense_field(_ball, 24).values
  whole = isosurface.extract_surface(values)
  holed = values.copy()
  holed[:12] = np.nan  # Cells 0..11 along x.
  half = isosurface.extract_surface(holed)
  boundary = 12 / 24 * 2.02 - 1.01
  assert half.vertices[:, 0].min() >= boundary - 1e-6
  centre_x = whole.vertices[whole.faces].mean(1)[:, 0]
  assert half.num_faces == (centre_x > boundary).sum()
  far = values.copy()
  far[np.abs(values) > 0.3] = np.nan  # Away from the surface.
  same = isosurface.extract_surface(far)
  np.testing.assert_array_equal(same.vertices, whole.vertices)
  np.testing.assert_array_equal(same.faces, whole.faces)


@pytest.mark.parametrize("resolution, minimum", [(32, 7), (45, 10), (40, 20)])
@pytest.mark.parametrize("name", _FIELDS)
def test_coarse_to_fine_gives_the_dense_surface(name, resolution, minimum):
  field = _FIELDS[name]
  dense = isosurface.dense_field(field, resolution, chunk_size=5000)
  sparse = isosurface.coarse_to_fine_field(
    field, resolution, min_resolution=minimum, chunk_size=5000
  )
  assert sparse.resolution == resolution
  assert dense.num_evaluations == (resolution + 1) ** 3
  assert sparse.evaluated.sum() < sparse.num_evaluations
  assert sparse.num_evaluations < 0.9 * dense.num_evaluations
  np.testing.assert_array_equal(sparse.values > 0, dense.values > 0)
  np.testing.assert_array_equal(
    sparse.values[sparse.evaluated], dense.values[sparse.evaluated]
  )
  expected = isosurface.extract_surface(dense.values)
  mesh = isosurface.extract_surface(sparse.values)
  np.testing.assert_array_equal(mesh.vertices, expected.vertices)
  np.testing.assert_array_equal(mesh.faces, expected.faces)


def test_a_rod_the_coarse_grid_does_not_see_is_followed_from_the_ball():
  rod = lambda p: _box(p, (0.45, 0.06, 0.06), (0.45, 0.03, 0.03))
  field = _truncated(lambda p: np.maximum(_ball(p, (-0.2, 0, 0), 0.3), rod(p)))
  coarse = isosurface.dense_field(field, 8)
  points = isosurface.grid_points(8)
  assert (points[..., 0][coarse.values > 0] < 0.3).all()
  dense = isosurface.dense_field(field, 64)
  sparse = isosurface.coarse_to_fine_field(
    field, 64, min_resolution=32, band=0.0
  )
  np.testing.assert_array_equal(sparse.values > 0, dense.values > 0)
  mesh = isosurface.extract_surface(sparse.values)
  assert mesh.vertices[:, 0].max() > 0.85


def test_a_band_of_half_a_cell_diagonal_is_enough_for_a_wide_field():
  width, resolution, minimum = 0.3, 48, 12
  field = _truncated(lambda p: _ball(p, radius=0.2), slope=1 / width)
  band = np.sqrt(3) * 1.01 / (width * minimum)
  narrow, default = (
    isosurface.coarse_to_fine_field(
      field, resolution, min_resolution=minimum, **kwargs
    )
    for kwargs in (dict(band=band), dict())
  )
  np.testing.assert_array_equal(narrow.values > 0, default.values > 0)
  assert narrow.num_evaluations < 0.8 * default.num_evaluations


def test_released_rounding_changes_the_resolution():
  field = isosurface.coarse_to_fine_field(
    _FIELDS["ball"], 32, min_resolution=7, mode="flashvdm"
  )
  assert field.resolution == 28
  assert np.isnan(field.values[~field.evaluated]).all()
  assert isosurface.extract_surface(field.values) is not None


def test_a_jitted_field_is_always_called_with_one_shape():
  traces = []

  @jax.jit
  def field(points):
    traces.append(points.shape)
    return jnp.clip(4 * (0.5 - jnp.linalg.norm(points, axis=-1)), -1, 1)

  found = isosurface.coarse_to_fine_field(
    field, 24, min_resolution=6, chunk_size=1000
  )
  assert traces == [(1000, 3)]
  again = isosurface.coarse_to_fine_field(
    field, 24, min_resolution=6, chunk_size=1000
  )
  np.testing.assert_array_equal(found.values, again.values)


@pytest.mark.parametrize(
  "field, message",
  [
    (lambda p: np.full(len(p), np.nan), "not finite"),
    (lambda p: np.zeros((len(p), 1)), "must return"),
  ],
)
def test_a_broken_field_is_reported(field, message):
  with pytest.raises(ValueError, match=message):
    isosurface.dense_field(field, 4)


@pytest.mark.parametrize(
  "kwargs",
  [
    dict(resolution=0),
    dict(bounds=0.0),
    dict(chunk_size=0),
    dict(min_resolution=0),
    dict(band=-1.0),
    dict(mode="fast"),
  ],
)
def test_arguments_out_of_range_are_refused(kwargs):
  with pytest.raises(ValueError):
    isosurface.coarse_to_fine_field(_ball, **(dict(resolution=8) | kwargs))


@pytest.mark.wrong_shapes
@pytest.mark.parametrize("shape", [(4, 4), (4, 4, 5), (1, 1, 1)])
def test_grids_that_are_not_cubic_are_refused(shape):
  with pytest.raises(ValueError, match="cubic"):
    isosurface.extract_surface(np.zeros(shape))


def test_the_released_hierarchical_decoder_sees_one_point():
  """Its refined grids all have the value at (-1, -1, -1); ours do not."""
  ball = lambda p: np.clip(4 * (0.6 - np.linalg.norm(p, axis=-1)), -1, 1)
  asked = []

  def field(points):
    asked.append(points)
    return ball(points)

  options = dict(min_resolution=8, chunk_size=500, bounds=1.01)
  grid = isosurface.coarse_to_fine_field(field, 16, mode="hunyuan3d", **options)
  # Two chunks hold the coarse grid; the rest of the last one is padding.
  refined = np.concatenate(asked[2:])[: grid.evaluated.sum()]
  np.testing.assert_array_equal(refined, -1)
  assert grid.resolution == 16
  assert set(grid.values[grid.evaluated]) == {-1.0}
  assert np.isnan(grid.values[~grid.evaluated]).all()
  assert isosurface.extract_surface(grid.values) is None
  exact = isosurface.coarse_to_fine_field(ball, 16, **options)
  assert isosurface.extract_surface(exact.values) is not None


def test_the_released_vertex_scale_takes_the_resolution_asked_for():
  values = np.full((5, 5, 5), -1.0, np.float32)
  values[2, 2, 2] = 1.0
  exact = isosurface.extract_surface(values, bounds=1.0)
  np.testing.assert_allclose(exact.vertices.mean(0), 0, atol=1e-6)
  for asked, cells in ((None, 5), (6, 7)):
    mesh = isosurface.extract_surface(
      values, bounds=1.0, vertex_scale="hunyuan3d", resolution=asked
    )
    np.testing.assert_allclose(
      mesh.vertices.mean(0), 2 * 2 / cells - 1, atol=1e-6
    )


def test_the_released_decoders_mark_points_near_minus_the_level():
  slope = lambda p: p[:, 0]
  options = dict(min_resolution=4, band=0.2, bounds=1.0, level=0.5)
  exact = isosurface.coarse_to_fine_field(slope, 16, **options)
  released = isosurface.coarse_to_fine_field(
    slope, 16, mode="flashvdm", **options
  )
  middle = lambda grid: np.linspace(-1, 1, grid.resolution + 1)[
    grid.evaluated.any((1, 2))
  ].mean()
  assert middle(exact) > 0.3 and middle(released) < -0.3
