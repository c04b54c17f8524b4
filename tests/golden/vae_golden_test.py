"""The shape autoencoder against numbers of Hunyuan3D 2.1 (see README.md)."""

import json
import pathlib

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from sculpt4d_jax.geometry import farthest_points
from sculpt4d_jax.geometry import isosurface
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.models import vae_blocks
from sculpt4d_jax.weights import rules as weight_rules
from sculpt4d_jax.weights import vae as vae_weights
from tests.weights import module_params

_FOLDER = pathlib.Path(__file__).parent
_CONFIG = json.loads((_FOLDER / "config.json").read_text())
_TOLERANCE = 2e-5


def _load(name: str) -> dict[str, np.ndarray]:
  return safetensors_numpy.load_file(_FOLDER / f"{name}.safetensors")


def _state() -> dict[str, np.ndarray]:
  arrays = _load("vae_weights")
  return {name.removeprefix("state/"): a for name, a in arrays.items()}


def _config() -> shape_vae.ShapeVAEConfig:
  c = _CONFIG["vae_weights"]["config"]
  return shape_vae.ShapeVAEConfig(
    num_latents=c["num_latents"],
    latent_channels=c["embed_dim"],
    width=c["width"],
    num_heads=c["heads"],
    num_encoder_layers=c["num_encoder_layers"],
    num_decoder_layers=c["num_decoder_layers"],
    num_freqs=c["num_freqs"],
    include_pi=c["include_pi"],
    point_feats=c["point_feats"],
    downsample_ratio=c["downsample_ratio"],
    field_mlp_ratio=c["geo_decoder_mlp_expand_ratio"],
    use_field_norm=c["geo_decoder_ln_post"],
    scale_factor=c["scale_factor"],
  )


@pytest.fixture(scope="module")
def vae() -> shape_vae.ShapeVAE:
  config = _config()
  model = nnx.eval_shape(lambda: shape_vae.ShapeVAE(config, rngs=nnx.Rngs(0)))
  module_params.set_params(model, vae_weights.convert(_state(), model))
  return model


def test_fourier_features():
  golden = _load("fourier_embedder")
  config = _CONFIG["fourier_embedder"]["config"]
  out = vae_blocks.fourier_features(
    golden["in/x"], config["num_freqs"], config["include_pi"]
  )
  np.testing.assert_allclose(out, golden["out/embedding"], atol=_TOLERANCE)
  np.testing.assert_array_equal(
    golden["state_info/frequencies"], 2.0 ** np.arange(8)
  )


def test_every_tensor_is_consumed_and_exported_unchanged():
  state = _state()
  assert len(state) == 125
  config = _config()
  model = nnx.eval_shape(lambda: shape_vae.ShapeVAE(config, rngs=nnx.Rngs(0)))
  params = vae_weights.convert(state, model)
  assert sum(p.size for p in params.values()) == 204_065
  exported = weight_rules.export(vae_weights.rules(config), params)
  assert exported.keys() == state.keys()
  for name, array in exported.items():
    np.testing.assert_array_equal(array, state[name], err_msg=name)


@pytest.mark.parametrize("variant", ["a", "b"])
def test_encoder(vae, variant):
  golden = _load(f"vae_encoder_{variant}")
  name = f"vae_encoder_{variant}"
  config = _CONFIG[name]["config"]
  num_uniform, num_sharp = config["pc_size"], config["pc_sharpedge_size"]
  sizes = farthest_points.group_sizes(
    vae.config.num_latents,
    num_uniform,
    num_sharp,
    vae.config.downsample_ratio,
  )
  assert sizes == farthest_points.GroupSizes(
    config["num_uniform_inputs"],
    _CONFIG[name]["sharp_inputs"],
    config["num_uniform_queries"],
    _CONFIG[name]["sharp_queries"],
  )
  surface = jnp.asarray(golden["in/surface"])
  inputs = golden["in/input_indices"].astype(np.int32)
  starts = [golden["in/fps_start_uniform"]]
  starts.append(golden.get("in/fps_start_sharp", np.zeros_like(starts[0])))
  rows = jax.vmap(
    lambda s, u, e: farthest_points.select_queries(
      s, inputs, sizes, uniform_start=u, sharp_start=e
    )
  )(surface, *starts)
  np.testing.assert_array_equal(rows, golden["in/query_indices"])

  data = surface[:, inputs]
  queries = jnp.take_along_axis(surface, rows[..., None], axis=1)

  @nnx.jit
  def run(vae, data, queries, noise):
    encoder, out = vae.encoder, vae.encoder(data, queries)
    posterior = vae.encode(data, queries)
    scaled = vae.encode_to_diffusion(data, queries, noise)
    return {
      "mid/query_features": encoder.features(queries),
      "mid/data_features_first32": encoder.features(data)[:, :32],
      "mid/after_cross_attn": encoder.attend(data, queries),
      "mid/encoder_out": out,
      "out/moments": vae.moments_proj(out),
      "out/mean": posterior.mean,
      "out/logvar": posterior.log_variance,
      "out/kl": posterior.kl(),
      "out/sample": posterior.sample(noise),
    }, scaled / vae.config.scale_factor

  results, unscaled = run(vae, data, queries, golden["in/noise"])
  for key, value in results.items():
    _check(value, golden, key)
  _check(unscaled, golden, "out/sample")
  keys = {key for key in golden if key.startswith(("mid/", "out/"))}
  assert results.keys() == keys


def test_decoder(vae):
  golden = _load("vae_decoder")
  config = _CONFIG["vae_decoder"]["config"]
  grid = isosurface.grid_points(config["octree_resolution"], config["bounds"])

  @nnx.jit
  def run(vae, latents, points, grid):
    tokens = vae.decode(latents)
    scaled = latents * vae.config.scale_factor
    keys_values = vae.field_keys_values(tokens)
    decoder = vae.field_decoder
    embedding = decoder.embed(points)
    grid_field = vae.query_field(
      tokens, jnp.broadcast_to(grid.reshape(-1, 3), (2, grid.size // 3, 3))
    )
    return {
      "mid/tokens": tokens,
      "mid/query_embedding": embedding,
      "mid/geo_after_cross_attn": decoder.cross_block(embedding, keys_values),
      "out/field": vae.query_field(keys_values, points)[..., None],
      "out/grid_field": grid_field.reshape(2, *grid.shape[:3]),
    }, vae.decode_from_diffusion(scaled)

  results, tokens = run(vae, golden["in/latents"], golden["in/queries"], grid)
  for key, value in results.items():
    _check(value, golden, key)
  _check(tokens, golden, "mid/tokens")
  keys = {key for key in golden if key.startswith(("mid/", "out/"))}
  assert results.keys() == keys


def _check(value, golden, key):
  np.testing.assert_allclose(
    value, golden[key], atol=_TOLERANCE, rtol=0, err_msg=key
  )
