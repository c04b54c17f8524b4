"""Latents of a store are those of its clips and of its autoencoder."""

import dataclasses

from flax import nnx
import numpy as np
import pytest

from sculpt4d_jax.data.procedural import store as record_store
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import latents
from sculpt4d_jax.training import preset as preset_lib
from tests.integration import micro

CLIPS, FRAMES, POINTS = 3, 2, 32


@pytest.fixture(scope="module")
def config():
  return preset_lib.from_config(micro.get_config()).model.vae


def clips():
  rng = np.random.default_rng(0)
  surface = rng.uniform(-1, 1, (CLIPS, FRAMES, POINTS, 7)).astype(np.float32)
  surface[..., 6] = 0.0
  nothing = np.zeros((CLIPS, FRAMES, 1))
  return record_store.RecordStore(
    first_seed=0, surface=surface, samples=nothing, images=nothing
  )


def encode(folder, store, config, seed=0):
  vae = shape_vae.ShapeVAE(config, rngs=nnx.Rngs(seed))
  path = folder / "latents.npz"
  return latents.encode_store(
    path, store, vae, num_uniform=POINTS, num_choices=1
  )


def test_a_file_serves_its_clips_and_its_autoencoder_alone(tmp_path, config):
  store = clips()
  first = encode(tmp_path, store, config)
  assert first.mean.shape[:4] == (CLIPS, 2, 1, FRAMES)
  written = (tmp_path / "latents.npz").stat().st_mtime_ns
  again = encode(tmp_path, store, config)
  np.testing.assert_array_equal(again.mean, first.mean)
  assert (tmp_path / "latents.npz").stat().st_mtime_ns == written

  # Another clip in the place of the second one.
  surface = store.surface.copy()
  surface[1] = -surface[1, :, ::-1]
  other = encode(tmp_path, dataclasses.replace(store, surface=surface), config)
  np.testing.assert_array_equal(other.mean[0], first.mean[0])
  assert (other.mean[1] != first.mean[1]).any()

  trained = encode(tmp_path, store, config, seed=1)
  assert (trained.mean != first.mean).any()
