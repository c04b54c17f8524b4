"""Latents over time under the paper's two ablations."""

from flax import nnx
import jax
import numpy as np
import pytest

from benchmarks.consistency import latent_changes
from sculpt4d_jax.models import shape_vae


def test_pairs_by_hand():
  first = [[1.0, 3.0], [5.0, 5.0], [2.0, 4.0]]
  second = [[2.0, 4.0], [8.0, 8.0], [1.0, 3.0]]
  found = latent_changes.paired_difference(first, second)
  # Clips differ by -1, -3 and 1: mean -1, standard deviation 2.
  assert found.mean == pytest.approx(-1)
  assert found.standard_error == pytest.approx(2 / 3**0.5)
  assert (found.num_clips, found.num_smaller) == (3, 2)
  assert not found.is_smaller


@pytest.mark.parametrize("second", [[[1.0]], [[1.0], [2.0], [3.0]]])
def test_what_is_no_pair_is_refused(second):
  with pytest.raises(ValueError, match="same clips"):
    latent_changes.paired_difference([[1.0], [2.0]], second)


def test_a_still_clip_changes_by_its_draws_alone():
  config = shape_vae.ShapeVAEConfig(
    num_latents=8,
    latent_channels=4,
    width=16,
    num_heads=2,
    num_encoder_layers=1,
    num_decoder_layers=1,
    downsample_ratio=2,
    num_freqs=2,
    dtype="float32",
  )
  vae = shape_vae.ShapeVAE(config, rngs=nnx.Rngs(0))
  rng = np.random.default_rng(0)
  surface = rng.normal(size=(1, 64, 7)).repeat(3, axis=0).astype(np.float32)
  surface[..., 6] = 0
  changes = latent_changes.latent_changes(
    vae, surface, jax.random.key(0), num_uniform=64, num_draws=2
  )
  assert all(len(values) == 2 for values in changes.values())
  assert max(changes["consistent", "mean"]) < 1e-6
  assert max(changes["consistent", "shared"]) < 1e-6
  assert min(changes["consistent", "independent"]) > 0.1
  assert min(changes["independent", "mean"]) > 0.1
  with pytest.raises(ValueError, match="two frames"):
    latent_changes.latent_changes(
      vae, surface[:1], jax.random.key(0), num_uniform=64
    )
