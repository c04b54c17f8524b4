import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.models import image_encoder

_CONFIG = image_encoder.ImageEncoderConfig(
  image_size=16, patch_size=8, width=12, num_layers=2, num_heads=3
)


@pytest.fixture(scope="module")
def encoder() -> image_encoder.ImageEncoder:
  create = lambda: image_encoder.ImageEncoder(_CONFIG, rngs=nnx.Rngs(0))
  return nnx.jit(create)()


def _images(*shape):
  rng = np.random.default_rng(0)
  return rng.uniform(-1, 1, shape).astype(np.float32)


def _to_pixels(images, size):
  return image_encoder.to_pixels(images, size, (0.5,) * 3, (0.5,) * 3)


def test_tokens_of_clips_of_any_size(encoder):
  encode = nnx.jit(lambda encoder, images: encoder(images))
  images = _images(2, 3, 20, 31, 3)
  tokens = encode(encoder, images)
  assert encoder.num_tokens == 5 and encoder.width == 12
  assert tokens.shape == (2, 3, 5, 12)
  alone = encode(encoder, images[1, 2])
  np.testing.assert_allclose(tokens[1, 2], alone, atol=1e-5)


def test_padding_tokens_change_nothing(encoder, monkeypatch):
  images = _images(2, 16, 16, 3)
  expected = encoder(images)
  pad = lambda x: jnp.pad(x, ((0, 0), (0, 3), (0, 0)), constant_values=7.0)
  monkeypatch.setattr(image_encoder.attention, "fill_set", pad)
  np.testing.assert_allclose(encoder(images), expected, atol=1e-6)


def test_an_image_of_the_right_size_is_only_normalised():
  images = _images(16, 16, 3)
  pixels = image_encoder.to_pixels(images, 16, (0.1, 0.2, 0.3), (1.0, 2.0, 4.0))
  expected = ((images + 1) / 2 - [0.1, 0.2, 0.3]) / [1, 2, 4]
  np.testing.assert_allclose(pixels, expected, atol=1e-6)


@pytest.mark.parametrize("height, width", [(16, 40), (41, 16)])
def test_the_centre_is_cropped(height, width):
  images = _images(height, width, 3)
  top, left = (height - 16) // 2, (width - 16) // 2
  np.testing.assert_allclose(
    _to_pixels(images, 16),
    images[top : top + 16, left : left + 16],
    atol=1e-6,
  )


def test_shrinking_averages_and_a_plain_image_stays_plain():
  checkers = np.indices((64, 64)).sum(0) % 2 * 2.0 - 1.0
  checkers = np.repeat(checkers[..., None], 3, axis=-1)
  small = np.asarray(_to_pixels(checkers, 16))
  np.testing.assert_allclose(small[1:-1, 1:-1], 0, atol=0.02)
  plain = np.full((50, 37, 3), 0.25)
  np.testing.assert_allclose(_to_pixels(plain, 16), 0.25, atol=1e-6)


def test_patches_run_row_by_row_after_the_class_token(encoder):
  model = nnx.clone(encoder)
  kernel = np.zeros((8, 8, 3, 12), np.float32)
  kernel[2, 5, 1, 0] = 1.0  # Channel 0 reads one green pixel of its patch.
  model.patch_proj.kernel[...] = kernel
  model.patch_proj.bias[...] = np.zeros(12, np.float32)
  model.positions[...] = np.zeros((5, 12), np.float32)
  model.class_token[...] = np.full(12, 7, np.float32)
  pixels = _images(16, 16, 3)
  tokens = np.asarray(model.embed(pixels))
  np.testing.assert_array_equal(tokens[0], np.full(12, 7))
  np.testing.assert_array_equal(
    tokens[1:, 0],
    [pixels[2, 5, 1], pixels[2, 13, 1], pixels[10, 5, 1], pixels[10, 13, 1]],
  )


def test_zero_layer_scale_leaves_the_embedding():
  config = dataclasses.replace(
    _CONFIG,
    layer_scale_init=0.0,
    pixel_mean=(0.5,) * 3,
    pixel_std=(0.5,) * 3,
  )
  model = nnx.jit(
    lambda: image_encoder.ImageEncoder(config, rngs=nnx.Rngs(0))
  )()
  pixels = _images(16, 16, 3)

  @nnx.jit
  def run(model):
    embedding = model.embed(_to_pixels(pixels, 16))
    return model(pixels), model.norm(embedding)

  tokens, expected = run(model)
  np.testing.assert_allclose(tokens, expected, atol=1e-6)


def test_every_parameter_is_trained(encoder):
  graphdef, params = nnx.split(encoder)
  images = _images(2, 16, 16, 3)

  @jax.jit
  @jax.grad
  def gradients(params):
    tokens = nnx.merge(graphdef, params)(images)
    weights = jnp.arange(tokens.size).reshape(tokens.shape) % 7
    return jnp.sum(tokens * weights)

  for path, gradient in nnx.to_flat_state(gradients(params)):
    if path[-2:] == ("key", "bias"):
      continue  # Shifts all scores of a query alike: softmax ignores it.
    assert np.abs(gradient[...]).max() > 0, path


def test_no_image_is_a_context_of_zeros(encoder):
  context = image_encoder.unconditional_context(
    encoder, 2, 3, dtype=jnp.bfloat16
  )
  assert context.shape == (2, 3, 5, 12) and context.dtype == jnp.bfloat16
  assert not context.any()


def test_released_size_has_the_released_numbers():
  config = image_encoder.ImageEncoderConfig()
  assert config.num_tokens == 1370
  model = nnx.eval_shape(
    lambda: image_encoder.ImageEncoder(config, rngs=nnx.Rngs(0))
  )
  params = jax.tree.leaves(nnx.state(model, nnx.Param))
  # All but the mask token, which no forward pass reads.
  assert sum(p.size for p in params) == 304_368_640 - 1024


@pytest.mark.wrong_shapes
def test_wrong_shapes_are_refused(encoder):
  with pytest.raises(ValueError, match="height, width, 3"):
    encoder(np.zeros((2, 16, 16, 4)))
  with pytest.raises(ValueError, match="must be 16 x 16"):
    encoder.embed(np.zeros((15, 16, 3)))


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(image_size=500), "the nearest that are: 490 and 504"),
    (dict(width=100), "not a multiple of num_heads"),
    (dict(num_layers=0), "num_layers=0"),
    (dict(pixel_mean=(0.5,)), "red, green and blue"),
    (dict(pixel_std=(0.5, 0.5, 0.0)), "must be positive"),
  ],
)
def test_bad_configurations_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    image_encoder.ImageEncoderConfig(**change)


def test_two_level_patches_see_details_and_keep_the_grid():
  config = image_encoder.ImageEncoderConfig(
    image_size=12,
    patch_size=6,
    stem_patch_size=2,
    width=8,
    num_layers=1,
    num_heads=2,
  )
  encoder = image_encoder.ImageEncoder(config, rngs=nnx.Rngs(0))
  pixels = jax.random.normal(jax.random.key(0), (12, 12, 3))
  tokens = encoder.embed(pixels)
  assert tokens.shape == (5, 8)
  # A pixel of the last patch changes that patch alone.
  changed = encoder.embed(pixels.at[11, 11].add(1.0))
  differs = np.abs(changed - tokens).max(-1) > 1e-6
  assert differs.tolist() == [False, False, False, False, True]
  with pytest.raises(ValueError, match="stem_patch_size=4 must be 0 or divide"):
    dataclasses.replace(config, stem_patch_size=4)


def test_sinusoidal_positions_tell_neighbours_from_far_patches():
  config = image_encoder.ImageEncoderConfig(
    image_size=16,
    patch_size=2,
    width=32,
    num_layers=1,
    num_heads=2,
    position_init="sinusoidal",
  )
  encoder = image_encoder.ImageEncoder(config, rngs=nnx.Rngs(0))
  grid = np.asarray(encoder.positions[1:]).reshape(8, 8, 32)
  distance = np.linalg.norm(grid - grid[3, 3], axis=-1)
  nearest = np.sort(distance.ravel())[1:5]
  by_hand = [distance[2, 3], distance[4, 3], distance[3, 2], distance[3, 4]]
  np.testing.assert_allclose(np.sort(by_hand), nearest)
  with pytest.raises(ValueError, match="position_init='other' must be"):
    dataclasses.replace(config, position_init="other")
