"""The image encoder against Hunyuan3D 2.1 (see README.md)."""

import json
import pathlib

from flax import nnx
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from sculpt4d_jax.models import image_encoder
from sculpt4d_jax.weights import image_encoder as image_encoder_weights
from sculpt4d_jax.weights import rules as weight_rules
from tests.weights import module_params

_FOLDER = pathlib.Path(__file__).parent
_CONFIG = json.loads((_FOLDER / "config.json").read_text())


def _load(name: str) -> dict[str, np.ndarray]:
  return safetensors_numpy.load_file(_FOLDER / f"{name}.safetensors")


def _state() -> dict[str, np.ndarray]:
  return {
    name.removeprefix("state/"): array
    for name, array in _load("image_encoder").items()
    if name.startswith("state/")
  }


def _config() -> image_encoder.ImageEncoderConfig:
  fixture = _CONFIG["image_encoder"]["config"]
  c = fixture["config"]
  return image_encoder.ImageEncoderConfig(
    image_size=fixture["image_size"],
    patch_size=c["patch_size"],
    width=c["hidden_size"],
    num_layers=c["num_hidden_layers"],
    num_heads=c["num_attention_heads"],
    mlp_ratio=c["mlp_ratio"],
    layer_scale_init=c["layerscale_value"],
    pixel_mean=fixture["mean"],
    pixel_std=fixture["std"],
  )


@pytest.fixture(scope="module")
def encoder() -> image_encoder.ImageEncoder:
  config = _config()
  model = nnx.eval_shape(
    lambda: image_encoder.ImageEncoder(config, rngs=nnx.Rngs(0))
  )
  params = image_encoder_weights.convert(_state(), model)
  module_params.set_params(model, params)
  return model


def test_image_encoder(encoder):
  golden = _load("image_encoder")

  @nnx.jit
  def run(encoder, images):
    c = encoder.config
    pixels = image_encoder.to_pixels(
      images, c.image_size, c.pixel_mean, c.pixel_std
    )
    return {
      "mid/pixel_values": jnp.moveaxis(pixels, -1, 1),
      "mid/embeddings": encoder.embed(pixels),
      "out/tokens": encoder(images),
      "out/unconditional": image_encoder.unconditional_context(encoder, 2),
    }

  results = run(encoder, np.moveaxis(golden["in/image"], 1, -1))
  # What follows resized pixels shares their tolerance.
  for key, value in results.items():
    np.testing.assert_allclose(
      value, golden[key], atol=5e-5, rtol=0, err_msg=key
    )
  keys = {key for key in golden if key.startswith(("mid/", "out/"))}
  assert results.keys() == keys


def test_newer_names_mean_the_same(encoder):
  renamed = {}
  for name, array in _state().items():
    for old, new in (
      ("attention.attention.query", "attention.q_proj"),
      ("attention.attention.key", "attention.k_proj"),
      ("attention.attention.value", "attention.v_proj"),
      ("attention.output.dense", "attention.o_proj"),
    ):
      name = name.replace(old, new)
    renamed[image_encoder_weights.CONDITIONER_PREFIX + name] = array
  params = image_encoder_weights.convert(renamed, encoder)
  expected = weight_rules.params_by_path(encoder)
  assert params.keys() == expected.keys()
  for path, array in params.items():
    np.testing.assert_array_equal(array, expected[path], err_msg=path)


def test_every_tensor_is_consumed_and_exported_unchanged():
  state = _state()
  assert len(state) == 43
  config = _config()
  model = nnx.eval_shape(
    lambda: image_encoder.ImageEncoder(config, rngs=nnx.Rngs(0))
  )
  params = image_encoder_weights.convert(state, model)
  table = image_encoder_weights.rules(config.num_layers)
  exported = weight_rules.export(table, params)
  # 44,832 numbers, of which the mask token's 32 are not used.
  assert sum(p.size for p in params.values()) == 44_832 - 32
  assert set(state) - set(exported) == {"embeddings.mask_token"}
  for name, array in exported.items():
    np.testing.assert_array_equal(array, state[name], err_msg=name)
