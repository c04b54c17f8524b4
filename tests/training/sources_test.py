"""Sources: records give batches like procedural clips, and repeatably."""

from flax import nnx
import numpy as np
import pytest

from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import mixed_source
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import sources
from sculpt4d_jax.training.tasks import dit as dit_task
from sculpt4d_jax.training.tasks import vae as vae_task
from tests.data import small_records
from tests.integration import micro

pytest.importorskip("array_record", reason="needs the extra `data`")
pytest.importorskip("grain", reason="needs the extra `data`")


def _config(*folders):
  config = micro.get_config()
  config.records.update(
    dict(
      folders=" , ".join(map(str, folders)),
      num_parts=1,
      num_threads=1,
      turn_to_camera=True,
      max_elevation=0.6,
    )
  )
  return config


@pytest.fixture(scope="module", name="data")
def _data(tmp_path_factory):
  return small_records.make(tmp_path_factory.mktemp("records") / "data")


def _shapes(batch):
  return {name: (x.shape, x.dtype) for name, x in batch.items()}


def test_both_sources_give_the_same_arrays(data, tmp_path):
  config = _config(data)
  vae = shape_vae.ShapeVAE(
    shape_vae.ShapeVAEConfig(**config.model.vae), rngs=nnx.Rngs(0)
  )
  vae_config = vae_task.VAETaskConfig(
    batch_size=2,
    num_frames=2,
    num_queries=16,
    field_band=0.3,
    kl_weight=0.0,
  )
  dit_config = dit_task.DiTTaskConfig(
    batch_size=2,
    context_dropout=0.0,
    time_sampling="uniform",
    train_image_encoder=True,
    context_field_weight=1.0,
    context_field_points=8,
  )
  found = []
  for name in ("", str(data)):
    config.records.folders = name
    source = mixed_source.open_source(preset_lib.from_config(config), tmp_path)
    surfaces = source.surfaces(vae_config)
    assert source.encode(vae) > 0
    latents = source.latents(dit_config)
    assert latents.num_frames == 3 and latents.num_held_out == 2
    assert latents.describe(0).startswith("clips ")
    found.append(
      [
        _shapes(surfaces.batch(0)),
        _shapes(latents.batch(0)),
        _shapes(latents.held_out(1)),
      ]
    )
  assert found[0] == found[1]
  assert found[0][1]["mean"] == ((2, 3, 8, 4), np.float16)


def test_features_ask_for_an_encoder_that_does_not_learn(data, tmp_path):
  config = _config(data)
  config.records.use_features = True
  source = mixed_source.open_source(preset_lib.from_config(config), tmp_path)
  source._names = {"posterior": "abc"}
  task = dit_task.DiTTaskConfig(
    batch_size=2,
    context_dropout=0.0,
    time_sampling="uniform",
    train_image_encoder=True,
  )
  with pytest.raises(ValueError, match="train_image_encoder=False"):
    source.latents(task)


def test_other_records_do_not_go_on_with_a_run(data, tmp_path):
  source = mixed_source.open_source(
    preset_lib.from_config(_config(data)), tmp_path
  )
  sources.check_identity(tmp_path / "vae", source)
  # The same records elsewhere are the same.
  moved = small_records.make(tmp_path / "moved")
  sources.check_identity(
    tmp_path / "vae",
    mixed_source.open_source(preset_lib.from_config(_config(moved)), tmp_path),
  )
  more = small_records.make(tmp_path / "more", num_clips=5)
  both = mixed_source.open_source(
    preset_lib.from_config(_config(data, more)), tmp_path
  )
  with pytest.raises(ValueError, match="have changed.*data.json"):
    sources.check_identity(tmp_path / "vae", both)


def test_missing_records_say_what_to_do(tmp_path):
  with pytest.raises(ValueError, match="docs/data.md"):
    mixed_source.open_source(
      preset_lib.from_config(_config(tmp_path / "none")), tmp_path
    )
