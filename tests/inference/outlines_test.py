"""Tests the fit of shapes to outlines, with balls whose centres are latents."""

import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.configs import tiny
from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.inference import outlines as outlines_lib
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.models import view_head
from sculpt4d_jax.training import preset as preset_lib
from tests.inference import small_models

_RADIUS = 0.3
_SIDE = 32
# Level view, centred on the origin, whose picture shows [-1, 1].
_VIEW = np.zeros(4, np.float32)


class _Balls:
  """Stands for the autoencoder: the only latent is the ball's centre."""

  def decode_from_diffusion(self, latents):
    return latents

  def field_keys_values(self, tokens):
    return tokens

  def query_field(self, centre, points):
    return _RADIUS - jnp.linalg.norm(points - centre, axis=-1)


def _disc(x: float, y: float) -> np.ndarray:
  at = (np.arange(_SIDE) + 0.5) / _SIDE * 2 - 1
  columns, rows = np.meshgrid(at, -at)
  inside = (columns - x) ** 2 + (rows - y) ** 2 < _RADIUS**2
  return (255 * inside).astype(np.uint8)


def _config(**changes):
  config = preset_lib.from_config(tiny.get_config()).sampling
  changes = dict(outline_steps=60, outline_rate=0.02) | changes
  return dataclasses.replace(config, **changes)


def _velocity(x: np.ndarray, time: float, config, masks) -> np.ndarray:
  """The fitted velocity of a model that predicts no motion."""
  wrapper = outlines_lib.fitting(
    _Balls(), outlines_lib.gather(_VIEW, masks), config
  )
  run = jax.jit(wrapper(lambda x, time: jnp.zeros_like(x)))
  return np.asarray(run(jnp.asarray(x), jnp.full(1, time)))


def test_numbers_of_a_clip_give_its_view():
  clip = solids.make_clip(3, 2)
  sizes = clip_records.RecordSizes(
    num_uniform=16, num_sharp=4, num_near=8, num_volume=8, max_azimuth=0.0
  )
  view = clip_records.make_view(clip, sizes)
  again = outlines_lib.as_view(outlines_lib.as_numbers(view))
  for name in ("azimuth", "elevation", "centre", "extent"):
    np.testing.assert_allclose(
      getattr(again, name), getattr(view, name), atol=1e-6
    )


def test_the_placement_of_a_view_is_that_of_its_record():
  clip = solids.make_clip(3, 2)
  sizes = clip_records.RecordSizes(
    num_uniform=16, num_sharp=4, num_near=4, num_volume=4, image_size=8
  )
  sizes = dataclasses.replace(sizes, max_azimuth=0.0, picture_frame=True)
  record = clip_records.make_record(clip, sizes)
  upright = clip_records.make_record(
    clip, dataclasses.replace(sizes, picture_frame=False)
  )
  placement = outlines_lib.placement(outlines_lib.as_numbers(record.view))
  # Up to the scale that keeps the record in its cube.
  placed = placement.points(upright.surface[..., :3]) * record.placement.scale
  np.testing.assert_allclose(placed, record.surface[..., :3], atol=1e-5)
  np.testing.assert_array_equal(record.images, upright.images)


def test_the_head_tells_how_objects_stand():
  model = small_models.random_model()
  images = np.zeros((20, 16, 16, 3), np.uint8)
  num_tokens, width = model.encode(images[:1]).shape[1:]
  head = view_head.ViewHead(
    view_head.ViewHeadConfig(num_tokens, width), rngs=nnx.Rngs(0)
  )
  # The answer is the mean alone: from straight above.
  head.view_scale[...] = np.zeros(4, np.float32)
  head.view_mean[...] = np.array([np.pi / 2, 0.1, 0.2, 0], np.float32)
  model = small_models.random_model(find_view_head=lambda: head)
  assert (
    pipeline.placement(model, images) is None
  )  # Shapes of this model are upright.
  model.dit_config = dataclasses.replace(model.dit_config, picture_frame=True)
  top = pipeline.placement(model, images).points(np.array([[0.0, 1.0, 0.0]]))
  np.testing.assert_allclose(top, [[-0.1, -0.2, 1.0]], atol=1e-6)


def test_without_a_head_shapes_stay_as_pictures_show_them():
  model = small_models.random_model()
  model.dit_config = dataclasses.replace(model.dit_config, picture_frame=True)
  images = np.zeros((2, 16, 16, 3), np.uint8)
  assert pipeline.placement(model, images) is None


def test_points_of_rays_by_hand():
  view = outlines_lib.as_view(jnp.zeros(4))
  pixels = jnp.array([[0.5, 0.0], [0.5, 0.0], [0.0, -1.0]])
  depths = jnp.array([0.0, 1.0, 0.0])
  points = outlines_lib.ray_points(view, pixels, depths)
  # The camera is 4 from the origin: at depth 1, rays are 3/4 as far apart.
  expected = [[0.5, 0, 0], [0.375, 0, 1], [0, -1, 0]]
  np.testing.assert_allclose(points, expected, atol=1e-6)


def test_points_of_rays_from_above():
  view = outlines_lib.as_view(jnp.array([np.pi / 2, 0.0, 0.0, np.log(2.0)]))
  point = outlines_lib.ray_points(view, jnp.array([0.0, 0.25]), jnp.float32(0))
  # From above, up in the picture is away from the viewer in front.
  np.testing.assert_allclose(point, [0, 0, -0.5], atol=1e-6)


def test_shapes_move_to_their_outlines():
  masks = np.stack([_disc(0.3, 0.0), _disc(0.0, -0.2)])
  x = np.zeros((1, 2, 1, 3), np.float32)
  velocity = _velocity(x, 0.5, _config(), masks)
  # Half of the time is left.
  centres = x + 0.5 * velocity
  np.testing.assert_allclose(centres[0, 0, 0, :2], [0.3, 0.0], atol=0.08)
  np.testing.assert_allclose(centres[0, 1, 0, :2], [0.0, -0.2], atol=0.08)


def test_a_shape_that_fits_stays():
  masks = _disc(0.0, 0.0)[None]
  x = np.zeros((1, 1, 1, 3), np.float32)
  moved = 0.5 * _velocity(x, 0.5, _config(), masks)
  assert np.abs(moved[..., :2]).max() < 0.08


def test_nothing_happens_before_the_first_time():
  masks = _disc(0.3, 0.0)[None]
  x = np.zeros((1, 1, 1, 3), np.float32)
  assert not _velocity(x, 0.1, _config(outline_from=0.2), masks).any()
  assert _velocity(x, 0.2, _config(outline_from=0.2), masks).any()


def test_results_repeat():
  masks = _disc(0.3, 0.0)[None]
  x = np.zeros((1, 1, 1, 3), np.float32)
  config = _config(outline_steps=5)
  np.testing.assert_array_equal(
    _velocity(x, 0.5, config, masks), _velocity(x, 0.5, config, masks)
  )


def test_a_frame_without_an_object_is_accepted():
  found = outlines_lib.gather(_VIEW, np.zeros((1, _SIDE, _SIDE), np.uint8))
  assert not np.asarray(found.covered).any()


def test_pixels_are_in_or_near_the_object():
  found = outlines_lib.gather(_VIEW, _disc(0.5, 0.5)[None])
  away = np.linalg.norm(np.asarray(found.pixels[0]) - 0.5, axis=-1)
  assert away.max() < _RADIUS + 0.4
  covered = np.asarray(found.covered[0])
  np.testing.assert_array_equal(covered, away < _RADIUS)


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 5)])
def test_masks_must_be_square(shape):
  with pytest.raises(ValueError, match="masks must be"):
    outlines_lib.gather(_VIEW, np.zeros(shape, np.uint8))


@pytest.mark.parametrize(
  "changes", [{"outline_steps": -1}, {"outline_rate": 0.0}]
)
def test_settings_are_checked(changes):
  with pytest.raises(ValueError, match=next(iter(changes))):
    _config(**changes)
