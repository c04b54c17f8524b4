"""A decoder is trained further for the latents of a given encoder."""

from flax import nnx
import jax
import numpy as np
import pytest

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.stages import runner
from sculpt4d_jax.training.tasks import presets
from sculpt4d_jax.weights import model_folders
from tests import small_models
from tests.integration import micro


def _train(workdir, **changes):
  config = micro.get_config()
  config.vae_training.update(changes)
  runner.run(preset_lib.from_config(config), workdir, ["vae"])
  return workdir / "weights"


def _load(folder):
  preset = preset_lib.from_config(micro.get_config())
  shapes = jax.eval_shape(presets.vae(preset).init_params)
  params, details = model_folders.load(
    folder, "vae", shapes, preset.model.vae, "float32"
  )
  return nnx.to_pure_dict(params), details


def _is_equal(first, second):
  return all(
    np.array_equal(a, b)
    for a, b in zip(
      jax.tree.leaves(first), jax.tree.leaves(second), strict=True
    )
  )


def test_decoder_learns_and_encoder_and_scale_are_kept(tmp_path):
  given = small_models.write(
    tmp_path / "given", micro.get_config(), scale_factor=0.7
  )
  trained = _train(
    tmp_path / "trained",
    init_from=str(given),
    decoder_only=True,
    latent_noise=0.5,
  )
  (before, facts), (after, facts_after) = _load(given), _load(trained)
  for name in ("encoder", "moments_proj"):
    assert _is_equal(before[name], after[name]), name
  for name in ("latents_proj", "blocks", "field_decoder"):
    assert not _is_equal(before[name], after[name]), name
  assert facts_after["scale_factor"] == facts["scale_factor"] == 0.7


def test_decoder_alone_needs_weights_of_an_encoder(tmp_path):
  with pytest.raises(UserError, match="vae_training.init_from"):
    _train(tmp_path, decoder_only=True)


def _draws(latent_noise):
  config = micro.get_config()
  config.vae_training.latent_noise = latent_noise
  task = presets.vae(preset_lib.from_config(config))
  batch = {"surface": np.zeros((64, 3, 32, 7), np.float32)}
  return task.draw(batch, jax.random.key(0))


def test_noise_on_latents_has_the_stated_size_and_no_part_in_other_draws():
  plain, noisy = _draws(0.0), _draws(0.6)
  assert "errors" not in plain
  np.testing.assert_array_equal(plain["noise"], noisy["noise"])
  assert noisy["errors"].shape == (64, 3, 8, 4)
  size = np.sqrt(np.mean(np.square(noisy["errors"]), axis=(2, 3)))
  # Uniform in [0, 0.6], each measured by 32 numbers: 3 deviations above.
  assert size.max() < 0.6 * (1 + 3 / np.sqrt(2 * 32))
  assert abs(size.mean() - 0.3) < 0.05
  assert len(np.unique(size.round(4))) > 150  # Every frame has its own.


def test_noise_out_of_range_is_refused():
  with pytest.raises(UserError, match="latent_noise=-1"):
    _draws(-1.0)
