"""Latents of records are made once, resumable and equal to the encoder's."""

import dataclasses

from flax import nnx
import jax
import numpy as np
import pytest

from sculpt4d_jax.data.loading import examples as record_examples
from sculpt4d_jax.data.records import index as dataset_index
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import record_latents
from tests.data import small_records

pytest.importorskip("array_record", reason="needs the extra `data`")

_EXAMPLE = record_examples.ExampleConfig(
  num_frames=4,
  num_parts=1,
  num_uniform=24,
  num_sharp=8,
  image_size=16,
  turn_to_camera=True,
  max_elevation=0.5,
)
_VAE = shape_vae.ShapeVAEConfig(
  num_latents=8,
  latent_channels=4,
  width=16,
  num_heads=2,
  num_encoder_layers=1,
  num_decoder_layers=1,
  downsample_ratio=4,
  num_freqs=4,
  field_mlp_ratio=2,
)


def _vae(seed=0):
  return shape_vae.ShapeVAE(_VAE, rngs=nnx.Rngs(seed))


def _job(vae=None, **changes):
  fields = dict(example=_EXAMPLE, choices=2)
  return record_latents.PosteriorJob(
    vae or _vae(), record_latents.LatentSettings(**(fields | changes))
  )


@pytest.fixture(scope="module", name="job")
def _shared_job():
  """One for all tests, so that it compiles once."""
  return _job()


@pytest.fixture(name="folder")
def _folder(tmp_path):
  return small_records.make(tmp_path / "data", num_clips=3, num_test=2)


def _files(folder, job):
  return {
    path.name: path.read_bytes()
    for path in (folder / job.folder / job.name).iterdir()
  }


def test_latents_are_made_once_and_the_rest_is_resumed(folder, job):
  assert record_latents.precompute([folder], job) == 5
  first = _files(folder, job)
  assert set(first) == {"shard0.arrayrecord", "shard1.arrayrecord"}
  assert record_latents.precompute([folder], job) == 0
  # A shard that is missing, and one that is damaged, are made again.
  path = folder / job.folder / job.name
  (path / "shard0.arrayrecord").unlink()
  (path / "shard1.arrayrecord").write_bytes(b"cut off")
  counts = [
    record_latents.precompute([folder], job, share=share, num_shares=2)
    for share in range(2)
  ]
  assert counts == [3, 2]
  assert _files(folder, job) == first


def test_latents_are_those_of_what_is_seen(folder, job):
  """The posterior of a view is that of the object turned to this view."""
  record_latents.precompute([folder], job)
  index = dataset_index.read_index(folder)
  config = dataclasses.replace(
    _EXAMPLE,
    contents=("posterior", "samples"),
    posterior=job.name,
    consecutive=False,
    num_frames=2,
  )
  reader = record_examples.ExampleReader(index, "train", config)
  found = {
    reader.read(0, np.random.default_rng(seed))["mean"][0].tobytes()
    for seed in range(40)
  }
  # Two views are low enough, each plain and mirrored, in two draws; any of
  # the 4 frames may come first.
  assert 8 <= len(found) <= 32
  example = reader.read(0, np.random.default_rng(0))
  assert example["mean"].shape == (2, 8, 4)
  scale = record_latents.latent_scale([folder], job.name)
  assert np.isfinite(scale) and scale > 0


def test_other_weights_and_settings_have_other_names():
  names = [
    _job().name,
    _job(_vae(1)).name,
    _job(choices=1).name,
    _job(example=dataclasses.replace(_EXAMPLE, turn_to_camera=False)).name,
  ]
  assert len(set(names)) == 4
  # What does not change a latent does not change the name.
  assert (
    _job(example=dataclasses.replace(_EXAMPLE, colour_jitter=0.3)).name
    == names[0]
  )


def test_missing_latents_say_how_to_make_them(folder):
  index = dataset_index.read_index(folder)
  config = dataclasses.replace(
    _EXAMPLE, contents=("posterior",), posterior="none"
  )
  reader = record_examples.ExampleReader(index, "train", config)
  with pytest.raises(ValueError, match="no shard"):
    reader.read(0, np.random.default_rng(0))


def test_features_are_the_encoder_s(folder):
  config = image_encoder_lib.ImageEncoderConfig(
    image_size=16,
    patch_size=8,
    width=16,
    num_layers=1,
    num_heads=2,
    dtype="float32",
  )
  encoder = image_encoder_lib.ImageEncoder(config, rngs=nnx.Rngs(0))
  job = record_latents.FeatureJob(
    encoder, record_latents.LatentSettings(_EXAMPLE)
  )
  assert record_latents.precompute([folder], job) == 5
  index = dataset_index.read_index(folder)
  both = record_examples.ExampleReader(
    index,
    "test",
    dataclasses.replace(
      _EXAMPLE,
      contents=("images", "features"),
      features=job.name,
      colour_jitter=0.0,
      border_ratio=(0.175, 0.175),
    ),
  )
  example = both.read(1, np.random.default_rng(2))
  tokens = jax.jit(encoder)(example["images"] / np.float32(127.5) - 1)
  np.testing.assert_allclose(example["context"], tokens, atol=4e-3)
