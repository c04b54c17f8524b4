import dataclasses

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import spatial

from sculpt4d_jax.models import attention
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.models import vae_blocks

_CONFIG = shape_vae.ShapeVAEConfig(
  num_latents=6,
  latent_channels=4,
  width=16,
  num_heads=2,
  num_encoder_layers=1,
  num_decoder_layers=2,
  num_freqs=3,
  downsample_ratio=4,
)
_NUM_POINTS = 24


@pytest.fixture(scope="module")
def vae() -> shape_vae.ShapeVAE:
  return nnx.jit(lambda: shape_vae.ShapeVAE(_CONFIG, rngs=nnx.Rngs(0)))()


@nnx.jit
def _encode(vae, surface, queries):
  return vae.encode(surface, queries)


@nnx.jit
def _field(vae, latents, points):
  return vae.query_field(vae.decode(latents), points)


def _surface(*leading, seed=0):
  rng = np.random.default_rng(seed)
  rows = rng.normal(size=(*leading, _NUM_POINTS, 7)).astype(np.float32)
  return rows, rows[..., ::4, :]


def _latents(*leading, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(*leading, 6, 4)).astype(np.float32)


def _points(*leading, seed=1):
  rng = np.random.default_rng(seed)
  return rng.uniform(-1, 1, (*leading, 10, 3)).astype(np.float32)


def test_fourier_features_by_hand():
  features = vae_blocks.fourier_features(jnp.array([1.0, 2.0, 3.0]), 2)
  angles = np.array([1, 2, 2, 4, 3, 6])
  expected = np.concatenate([[1, 2, 3], np.sin(angles), np.cos(angles)])
  np.testing.assert_allclose(features, expected, atol=1e-6)
  turns = vae_blocks.fourier_features(jnp.array([1.0, 0.5, 0.25]), 1, True)
  root = 0.5**0.5
  np.testing.assert_allclose(turns[3:], [0, 1, root, -1, 0, root], atol=1e-6)


def test_the_order_of_points_does_not_matter_and_that_of_queries_is_kept(vae):
  surface, queries = _surface(1)
  rng = np.random.default_rng(2)
  rows, order = rng.permutation(_NUM_POINTS), rng.permutation(6)
  straight = _encode(vae, surface, queries)
  shuffled = _encode(vae, surface[:, rows], queries[:, order])
  np.testing.assert_allclose(shuffled.mean, straight.mean[:, order], atol=1e-5)
  latents, points = _latents(1), _points(1)
  np.testing.assert_allclose(
    _field(vae, latents[:, order], points),
    _field(vae, latents, points),
    atol=1e-5,
  )


def test_frames_of_clips_are_encoded_and_decoded_one_by_one(vae):
  surface, queries = _surface(2, 3)
  posterior = _encode(vae, surface, queries)
  assert posterior.mean.shape == (2, 3, 6, 4)
  alone = _encode(vae, surface[1, 2], queries[1, 2])
  np.testing.assert_allclose(posterior.mean[1, 2], alone.mean, atol=1e-5)
  field = _field(vae, _latents(2, 3), _points(2, 3))
  assert field.shape == (2, 3, 10) and field.dtype == jnp.float32
  alone = _field(vae, _latents(2, 3)[1, 2], _points(2, 3)[1, 2])
  np.testing.assert_allclose(field[1, 2], alone, atol=1e-5)


def test_one_noise_serves_all_frames_of_a_clip():
  noise = shape_vae.sequence_noise(jax.random.key(0), 2, 6, 4)
  assert noise.shape == (2, 1, 6, 4)
  posterior = shape_vae.Posterior(
    mean=jnp.arange(3.0)[None, :, None, None] * jnp.ones((2, 3, 6, 4)),
    log_variance=jnp.full((2, 3, 6, 4), 2 * np.log(0.5)),
  )
  sample = posterior.sample(noise)
  np.testing.assert_allclose(
    sample - posterior.mean,
    np.broadcast_to(0.5 * noise, sample.shape),
    atol=1e-6,
  )
  assert (np.asarray(sample[0, 0]) != np.asarray(sample[1, 0])).all()


def test_posterior_by_hand():
  standard = shape_vae.Posterior.from_moments(jnp.zeros((2, 3, 8)))
  np.testing.assert_array_equal(standard.kl(), [0, 0])
  np.testing.assert_array_equal(standard.mode(), np.zeros((2, 3, 4)))
  moments = jnp.concatenate(
    [jnp.full((1, 3, 4), 2.0), jnp.full((1, 3, 4), np.log(4.0))], axis=-1
  )
  posterior = shape_vae.Posterior.from_moments(moments)
  np.testing.assert_allclose(posterior.std, np.full((1, 3, 4), 2), rtol=1e-6)
  # A mean over tokens and channels: 1/2 (4 + 4 - 1 - log 4).
  np.testing.assert_allclose(posterior.kl(), [3.5 - np.log(2.0)], rtol=1e-6)
  assert posterior.kl(axes=(-1,)).shape == (1, 3)
  extreme = shape_vae.Posterior.from_moments(jnp.array([[0.0, 0.0, 99, -99]]))
  np.testing.assert_array_equal(extreme.log_variance, [[20, -30]])


def test_field_in_chunks_from_keys_and_values_equals_the_whole(vae):
  latents, points = _latents(2), _points(2)

  @nnx.jit
  def keys_values(vae, latents):
    return vae.field_keys_values(vae.decode(latents))

  @nnx.jit
  def field_of(vae, keys_values, points):
    return vae.query_field(keys_values, points)

  kv = keys_values(vae, latents)
  assert isinstance(kv, attention.KeyValues)
  chunks = [field_of(vae, kv, points[:, i : i + 5]) for i in (0, 5)]
  np.testing.assert_allclose(
    np.concatenate(chunks, axis=1), _field(vae, latents, points), atol=1e-6
  )


def test_diffusion_latents_are_scaled(vae):
  surface, queries = _surface(1)
  noise = np.ones((1, 6, 4), np.float32)

  @nnx.jit
  def both(vae, latents):
    return (
      vae.encode_to_diffusion(surface, queries),
      vae.encode_to_diffusion(surface, queries, noise),
      vae.decode_from_diffusion(latents * _CONFIG.scale_factor),
      vae.decode(latents),
    )

  mode, sample, unscaled, plain = both(vae, _latents(1))
  posterior = _encode(vae, surface, queries)
  scale = _CONFIG.scale_factor
  np.testing.assert_allclose(mode, scale * posterior.mean, rtol=1e-5)
  np.testing.assert_allclose(
    sample, scale * (posterior.mean + posterior.std), rtol=1e-5
  )
  np.testing.assert_allclose(unscaled, plain, atol=1e-5)


def test_every_parameter_is_trained_and_remat_changes_nothing(vae):
  surface, queries = _surface(2)
  points = _points(2)
  noise = _latents(2, seed=3)
  graphdef, params = nnx.split(vae)
  remat = dataclasses.replace(_CONFIG, remat_policy="full")
  other = nnx.eval_shape(lambda: shape_vae.ShapeVAE(remat, rngs=nnx.Rngs(0)))

  def loss(params, graphdef):
    model = nnx.merge(graphdef, params)
    posterior = model.encode(surface, queries)
    field = model.query_field(model.decode(posterior.sample(noise)), points)
    return jnp.square(field - 1.0).mean() + 0.1 * posterior.kl().mean()

  gradients = jax.jit(jax.grad(loss), static_argnums=1)
  plain = gradients(params, graphdef)
  again = gradients(params, nnx.graphdef(other))
  for path, gradient in nnx.to_flat_state(plain):
    if path[-2:] == ("key_norm", "bias"):
      continue  # Shifts all scores of a query alike: softmax ignores it.
    assert np.abs(gradient[...]).max() > 0, path
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), plain, again
  )


def test_bfloat16_keeps_parameters_and_results_in_float32(vae):
  config = dataclasses.replace(_CONFIG, dtype=jnp.bfloat16)
  abstract = nnx.eval_shape(
    lambda: shape_vae.ShapeVAE(config, rngs=nnx.Rngs(0))
  )
  params = jax.tree.leaves(nnx.state(abstract, nnx.Param))
  assert {p.dtype for p in params} == {jnp.dtype(jnp.float32)}
  half = nnx.merge(nnx.graphdef(abstract), nnx.state(vae))
  surface, queries = _surface(1)
  mean = _encode(half, surface, queries).mean
  field = _field(half, _latents(1), _points(1))
  assert mean.dtype == field.dtype == jnp.float32
  exact = _field(vae, _latents(1), _points(1))
  np.testing.assert_allclose(field, exact, atol=0.1)
  assert (np.asarray(field) != np.asarray(exact)).any()


@pytest.mark.wrong_shapes
def test_wrong_shapes_are_refused(vae):
  surface, queries = _surface(1)
  with pytest.raises(ValueError, match="7 columns"):
    vae.encode(surface[..., :6], queries)
  with pytest.raises(ValueError, match="all axes but"):
    vae.encode(surface, queries[0])
  with pytest.raises(ValueError, match="4 channels"):
    vae.decode(np.zeros((1, 6, 5)))
  with pytest.raises(ValueError, match=r"\[\.\.\., Q, 3\]"):
    vae.query_field(np.zeros((1, 6, 16)), np.zeros((1, 5, 2)))


@pytest.mark.parametrize(
  "change, message",
  [
    (dict(width=50), "not a multiple of num_heads"),
    (dict(num_latents=0), "num_latents=0"),
    (dict(point_feats=-1), "point_feats=-1"),
    (dict(scale_factor=0.0), "scale_factor"),
    (dict(scale_factor=float("nan")), "scale_factor"),
  ],
)
def test_bad_configurations_are_refused(change, message):
  with pytest.raises(ValueError, match=message):
    shape_vae.ShapeVAEConfig(**change)


def test_released_size_has_the_released_number_of_parameters():
  config = shape_vae.ShapeVAEConfig()
  model = nnx.eval_shape(lambda: shape_vae.ShapeVAE(config, rngs=nnx.Rngs(0)))
  params = jax.tree.leaves(nnx.state(model, nnx.Param))
  assert sum(p.size for p in params) == 327_746_177


def test_anchored_tokens_do_not_depend_on_the_drawn_queries():
  config = dataclasses.replace(_CONFIG, token_order="anchored")
  anchored = shape_vae.ShapeVAE(config, rngs=nnx.Rngs(0))
  surface, queries = _surface(2)
  mean = _encode(anchored, surface, queries).mean
  np.testing.assert_array_equal(
    _encode(anchored, surface, queries[..., ::-1, :]).mean, mean
  )
  # Nor on the order of the points; but on where they are.
  np.testing.assert_allclose(
    _encode(anchored, surface[:, ::-1], queries).mean, mean, atol=1e-5
  )
  assert np.abs(_encode(anchored, 0.5 * surface, queries).mean - mean).max() > 0


@pytest.mark.parametrize("count", [32, 64, 256])
def test_anchors_keep_their_distance(count):
  rows = shape_vae.anchor_rows(count, 7)
  assert rows.shape == (count, 7)
  assert (rows[:, 3:] == 0).all()
  assert np.abs(rows).max() <= 0.8
  nearest = spatial.cKDTree(rows[:, :3]).query(rows[:, :3], k=2)[0][:, 1]
  # Half the spacing of a regular grid of as many points; random points are
  # far nearer.
  assert nearest.min() > 0.5 * (1.6**3 / count) ** (1 / 3)
