"""Weights in an emulated bucket: converted, replaced, exported, read."""

from flax import nnx
import jax
import numpy as np
import pytest

from sculpt4d_jax.io import atomic
from sculpt4d_jax.weights import export as weight_export
from sculpt4d_jax.weights import model_files
from sculpt4d_jax.weights import model_folders
from tests.io import emulated
from tests.weights import pretrained_test as conversions

_CONFIGS = {"vae": conversions.CONFIGS["vae"]}


@pytest.fixture(scope="module", params=["gs", "s3"])
def bucket(request):
  # Hundreds of small objects: of one in ten, the retries would take a minute.
  with emulated.store(request.param, one_in=50) as bucket:
    yield bucket


def _leaves(folder):
  vae = conversions.load(folder, "vae", _CONFIGS["vae"])
  return [np.asarray(x) for x in jax.tree.leaves(nnx.state(vae))]


def test_a_conversion_into_a_bucket_is_read_back(bucket, tmp_path):
  for seed in (0, 1):
    conversions.write_checkpoint(tmp_path / f"{seed}.ckpt", seed=seed)
    conversions.convert(
      tmp_path / f"{seed}.ckpt", tmp_path / f"out_{seed}", _CONFIGS
    )
  remote = bucket / "converted"
  conversions.convert(tmp_path / "0.ckpt", remote, _CONFIGS)
  for ours, theirs in zip(_leaves(tmp_path / "out_0"), _leaves(remote)):
    np.testing.assert_array_equal(ours, theirs)
  with pytest.raises(atomic.OutputError, match="is not empty"):
    conversions.convert(tmp_path / "1.ckpt", remote, _CONFIGS)
  # Other weights under the same names; the copy on this machine follows.
  conversions.convert(tmp_path / "1.ckpt", remote, _CONFIGS, overwrite=True)
  for ours, theirs in zip(_leaves(tmp_path / "out_1"), _leaves(remote)):
    np.testing.assert_array_equal(ours, theirs)
  weight_export.export(remote, bucket / "back.safetensors")
  assert (bucket / "back.safetensors").is_file()


def test_a_bucket_without_weights_is_not_copied(bucket):
  (bucket / "run" / "checkpoints" / "large").write_bytes(b"1")
  (bucket / "run" / "other.safetensors").write_bytes(b"1")
  with pytest.raises(
    model_files.ModelFileError, match=f"{bucket / 'run'} is no folder of"
  ):
    model_folders.local(bucket / "run")
