"""Both stages of a training on records, small; interrupted and resumed."""

import json

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.stages import runner as stages
from sculpt4d_jax.training.tasks import vae as vae_task
from tests.data import small_records
from tests.integration import micro

pytest.importorskip("array_record", reason="needs the extra `data`")
pytest.importorskip("grain", reason="needs the extra `data`")

pytestmark = pytest.mark.slow  # Compiles both halves of a run.


def _config(*folders):
  config = micro.get_config()
  config.records.update(
    dict(
      folders=",".join(map(str, folders)),
      num_parts=1,
      turn_to_camera=True,
      max_elevation=0.6,
      num_threads=1,
    )
  )
  return config


@pytest.fixture(scope="module", name="trained")
def _trained(tmp_path_factory):
  """A data set, and the folder of a finished run on it."""
  root = tmp_path_factory.mktemp("records")
  data = small_records.make(root / "data")
  stages.run(
    preset_lib.from_config(_config(data)), root / "run", list(stages.STAGES)
  )
  return data, root / "run"


def test_a_run_on_records_leaves_weights_and_latents(trained):
  data, workdir = trained
  assert len(list((workdir / "weights").iterdir())) == 3
  [posteriors] = (data / "posteriors").iterdir()
  assert len(list(posteriors.iterdir())) == 2  # As many as shards.
  for stage in ("vae", "dit"):
    lines = (workdir / stage / "metrics.jsonl").read_text().splitlines()
    assert "train/loss" in json.loads(lines[0])
  assert not (workdir / "data").exists()  # Nothing procedural was made.


def test_an_interrupted_run_goes_on_exactly(trained, tmp_path, monkeypatch):
  data, workdir = trained
  batch = vae_task.VAETask.batch

  def interrupted(self, step, *rows):
    if step == 3:
      raise KeyboardInterrupt
    return batch(self, step, *rows)

  monkeypatch.setattr(vae_task.VAETask, "batch", interrupted)
  with pytest.raises(KeyboardInterrupt):
    stages.run(preset_lib.from_config(_config(data)), tmp_path, ["vae"])
  monkeypatch.setattr(vae_task.VAETask, "batch", batch)
  stages.run(preset_lib.from_config(_config(data)), tmp_path, ["vae"])
  name = "weights/vae.safetensors"
  assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()


def test_features_train_like_pictures(trained, tmp_path):
  """A frozen encoder is evaluated once, not in every step."""
  data, workdir = trained
  config = _config(data)
  config.records.use_features = True
  config.dit_training.train_image_encoder = False
  config.dit_training.context_field_weight = 0.0
  config.dit_training.init_from = str(workdir / "weights")
  stages.run(preset_lib.from_config(config), tmp_path, ["dit"])
  [features] = (data / "features").iterdir()
  assert len(list(features.iterdir())) == 2
  old, new = (
    safetensors_numpy.load_file(
      folder / "weights" / "image_encoder.safetensors"
    )
    for folder in (workdir, tmp_path)
  )
  assert old.keys() == new.keys()
  for key, array in old.items():
    np.testing.assert_array_equal(array, new[key], err_msg=key)
