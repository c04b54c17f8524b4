"""The complete pipeline at a tiny size: data, training, weights, meshes."""

import json

import numpy as np
import pytest
from safetensors import numpy as safetensors_numpy

from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import outputs
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io.meshes import glb as animated_glb
from sculpt4d_jax.io.meshes import ply_obj
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.stages import runner as run
from sculpt4d_jax.training.tasks import vae as vae_task
from sculpt4d_jax.weights import model_files
from tests import conftest
from tests.integration import micro

TINY = str(conftest.ROOT / "weights" / "tiny")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Folder of a finished run of the micro preset."""
  workdir = tmp_path_factory.mktemp("run")
  run.run(preset_lib.from_config(micro.get_config()), workdir, list(run.STAGES))
  return workdir


@pytest.fixture(scope="module")
def model(trained):
  """Its networks; one for all tests, so that they compile once."""
  return model_lib.Sculpt4D.load(
    preset_lib.from_config(micro.get_config()).model, trained / "weights"
  )


def _clip(num_frames):
  """A grey disc that moves over white."""
  y, x = np.mgrid[:32, :32]
  frames = np.full((num_frames, 32, 32, 3), 255, np.uint8)
  for index in range(num_frames):
    disc = (x - 12 - 3 * index) ** 2 + (y - 16) ** 2 < 60
    frames[index][disc] = 110
  return frames


def _generate(model, config, num_frames=3, **changes):
  log = run_log.RunLog(progress=False)
  sampling = model_lib.SamplingConfig(**(config.sampling.to_dict() | changes))
  clip = pipeline.read_clip(
    _clip(num_frames),
    log,
    num_frames=sampling.num_frames,
    image_size=config.model.image_encoder.image_size,
  )
  # The micro model learns nothing, so its surface is where its field has its
  # median; a trained one has it at 0.
  values = model.field(model.sample(clip.images, sampling)[0])(
    np.random.default_rng(0).uniform(-1, 1, (512, 3)).astype(np.float32)
  )
  surface = pipeline.SurfaceConfig(
    **(config.surface.to_dict() | {"level": float(np.median(values))})
  )
  return pipeline.generate(model, clip, sampling, surface, log), log


def test_a_run_leaves_weights_and_metrics(trained):
  names = {path.name for path in (trained / "weights").iterdir()}
  assert names == {
    "vae.safetensors",
    "dit.safetensors",
    "image_encoder.safetensors",
  }
  for stage in ("vae", "pictures", "dit"):
    lines = (trained / stage / "metrics.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["step"] == 1
    assert list((trained / stage / "tensorboard").iterdir())


def test_a_run_tells_where_its_time_went_and_what_its_samples_look_like(
  trained,
):
  lines = (trained / "dit" / "metrics.jsonl").read_text().splitlines()
  records = [json.loads(line) for line in lines]
  parts = [f"train/seconds/{n}" for n in ("data", "transfer", "save", "step")]
  for record in records:
    if "train/loss" in record:
      total = record["train/seconds/all"]
      np.testing.assert_allclose(sum(record[p] for p in parts), total)
      assert 0 < record["train/mfu"] < 1
  last = records[-1]
  assert last["step"] == 4 and np.isfinite(last["eval/flow_loss"])
  assert 0 <= last["sample/iou"] <= 1 and last["sample/chamfer"] > 0
  events = b"".join(
    path.read_bytes() for path in (trained / "dit" / "tensorboard").iterdir()
  )
  assert events.count(b"\x89PNG") == 1
  assert list((trained / "dit" / "profile").rglob("*.xplane.pb"))
  best = json.loads((trained / "dit" / "best.json").read_text())
  assert best == {"metric": "eval/flow_loss", "4": last["eval/flow_loss"]}
  assert (trained / "dit" / "best" / "4").is_dir()


@pytest.mark.slow  # Compiles a step of three networks.
def test_a_student_is_distilled_and_samples_in_two_calls(trained, tmp_path):
  config = micro.get_config()
  config.model.dit.step_embedding = True
  config.distillation.update(
    dict(
      init_from=str(trained / "weights"),
      batch_size=config.dit_training.batch_size,
      eval_clips=1,
    )
  )
  config.distillation.optimizer.update(dict(num_steps=2, warmup_steps=1))
  run.run(preset_lib.from_config(config), tmp_path, ["data", "distill"])
  names = {path.name for path in (tmp_path / "weights").iterdir()}
  assert {"vae.safetensors", "dit.safetensors"} <= names
  student = model_lib.Sculpt4D.load(
    preset_lib.from_config(config).model, tmp_path / "weights"
  )
  result, _ = _generate(student, config, num_steps=3, guidance_scale=1.0)
  assert len(result.meshes) == 3


@pytest.mark.slow  # Compiles both halves of the run once more.
def test_an_interrupted_run_goes_on_exactly(trained, tmp_path, monkeypatch):
  config = micro.get_config()
  (tmp_path / "data").symlink_to(trained / "data")
  batch = vae_task.VAETask.batch

  def interrupted(self, step, *rows):
    if step == 3:
      raise KeyboardInterrupt
    return batch(self, step, *rows)

  monkeypatch.setattr(vae_task.VAETask, "batch", interrupted)
  with pytest.raises(KeyboardInterrupt):
    run.run(preset_lib.from_config(config), tmp_path, ["vae"])
  monkeypatch.setattr(vae_task.VAETask, "batch", batch)
  run.run(preset_lib.from_config(config), tmp_path, ["vae"])
  name = "weights/vae.safetensors"
  assert (tmp_path / name).read_bytes() == (trained / name).read_bytes()


@pytest.mark.slow  # Compiles the DiT's training once more.
def test_fine_tuning_starts_from_given_weights(trained, tmp_path):
  """Also from their autoencoder, where none was trained."""
  config = micro.get_config()
  (tmp_path / "data").symlink_to(trained / "data")
  config.dit_training.init_from = str(trained / "weights")
  config.dit_training.optimizer.learning_rate = 0.0
  config.dit_training.optimizer.ema_decay = 0.0
  run.run(preset_lib.from_config(config), tmp_path, ["dit"])
  for name in ("vae", "dit", "image_encoder"):
    old, new = (
      safetensors_numpy.load_file(f / "weights" / f"{name}.safetensors")
      for f in (trained, tmp_path)
    )
    for key, array in old.items():
      np.testing.assert_allclose(array, new[key], atol=1e-3, err_msg=key)


@pytest.mark.slow  # Compiles the DiT's training once more.
def test_lora_trains_and_saves_adapters_alone(trained, tmp_path):
  config = micro.get_config()
  config.dit_training.update(
    dict(
      init_from=str(trained / "weights"),
      train_image_encoder=False,
      context_field_weight=0.0,
      profile=(),
    )
  )
  config.dit_training.lora.rank = 2
  config.dit_training.optimizer.learning_rate = 0.1
  (tmp_path / "data").symlink_to(trained / "data")
  run.run(preset_lib.from_config(config), tmp_path, ["dit"])
  load = lambda folder, name: safetensors_numpy.load_file(
    folder / "weights" / f"{name}.safetensors"
  )
  adapters = load(tmp_path, "adapters")
  assert adapters and all("adapter" in name for name in adapters)
  # Merged into the weights: the adapted maps differ, all others do not.
  old, new = load(trained, "dit"), load(tmp_path, "dit")
  assert set(old) == set(new)
  adapted = {
    name.partition(".adapter.")[0].removeprefix("dit.") + ".kernel"
    for name in adapters
  }
  assert adapted < set(old)
  for name, value in old.items():
    assert np.array_equal(value, new[name]) == (name not in adapted), name
  # The checkpoint holds no more than that: moments, averages, adapters.
  state = tmp_path / "dit" / "checkpoints" / "4"
  size = sum(p.stat().st_size for p in state.rglob("*") if p.is_file())
  whole = trained / "dit" / "checkpoints" / "4"
  assert size < 0.5 * sum(
    p.stat().st_size for p in whole.rglob("*") if p.is_file()
  )
  model_lib.Sculpt4D.load(
    preset_lib.from_config(config).model, tmp_path / "weights"
  )
  # It resumes from there, and without given weights it does not start.
  config.dit_training.optimizer.num_steps = 5
  run.run(preset_lib.from_config(config), tmp_path, ["dit"])
  config.dit_training.init_from = ""
  with pytest.raises(ValueError, match="LoRA adapts given weights"):
    run.run(preset_lib.from_config(config), tmp_path, ["dit"])


def test_stages_are_checked(tmp_path):
  with pytest.raises(ValueError, match="Unknown stages"):
    run.run(preset_lib.from_config(micro.get_config()), tmp_path, ["dance"])
  config = micro.get_config()
  config.data.held_out_seed = config.data.first_seed + 1
  with pytest.raises(ValueError, match="overlap"):
    run.run(preset_lib.from_config(config), tmp_path, ["data"])


@pytest.mark.parametrize(
  "stages, change, message",
  [
    (["data", "vae"], {"mesh.fsdp": 999}, "devices"),
    (
      ["data", "vae"],
      {"vae_training.keep_best": 1, "vae_training.best_metric": "sample/iou"},
      "chosen by sample/iou",
    ),
    (["data", "dit"], {}, "train the autoencoder first"),
    (["data", "vae", "dit"], {"dit_training.init_from": "no"}, "no weights"),
    (["data", "vae"], {"vae_training.init_from": "no"}, "no weights"),
    (["data", "vae"], {"vae_training.init_from": TINY}, "does not fit the p"),
    (
      ["data", "dit"],
      {
        "dit_training.batch_size": 3,
        "dit_training.optimizer.accumulation_steps": 2,
      },
      "not a multiple of accumulation_steps",
    ),
    (
      ["data", "vae", "dit"],
      {
        "dit_training.lora.rank": 2,
        "dit_training.train_image_encoder": False,
        "dit_training.context_field_weight": 0.0,
      },
      "LoRA adapts given weights",
    ),
  ],
)
def test_what_cannot_work_stops_before_the_first_stage(
  tmp_path, stages, change, message
):
  config = micro.get_config()
  config.update_from_flattened_dict(change)
  with pytest.raises(ValueError, match=message):
    run.run(preset_lib.from_config(config), tmp_path, stages)
  assert not list(tmp_path.iterdir())


def test_clip_to_files(model, tmp_path):
  config = micro.get_config()
  result, log = _generate(model, config)
  assert len(result.meshes) == 3
  paths = outputs.write(tmp_path / "out", result, {"preset": "micro"}, log)
  assert {path.name for path in paths} == {
    "frame_0000.ply",
    "frame_0001.ply",
    "frame_0002.ply",
    outputs.GLB,
    outputs.USD,
    outputs.VIEWER,
    outputs.PREVIEW,
    outputs.RUN,
  }
  plys = ply_obj.read_mesh_sequence(tmp_path / "out")
  glbs, _ = animated_glb.read_animated_glb(tmp_path / "out" / outputs.GLB)
  for made, ply, glb in zip(result.meshes, plys, glbs, strict=True):
    np.testing.assert_array_equal(made.vertices, ply.vertices)
    np.testing.assert_array_equal(made.faces, glb.faces)
  record = json.loads((tmp_path / "out" / outputs.RUN).read_text())
  assert [s["name"] for s in record["stages"]][-1] == "write files"
  assert all(s["seconds"] >= 0 for s in record["stages"])


def test_a_full_disk_leaves_nothing(model, tmp_path, monkeypatch):
  config = micro.get_config()
  result, log = _generate(model, config)

  def full(path):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(atomic, "_flush", full)
  with pytest.raises(atomic.OutputError, match="No space left"):
    outputs.write(tmp_path / "out", result, {}, log)
  assert not (tmp_path / "out").exists()


def test_same_seed_same_bytes_and_another_seed_others(model):
  config = micro.get_config()
  first, again, other = (
    _generate(model, config, seed=seed)[0] for seed in (1, 1, 2)
  )
  np.testing.assert_array_equal(first.latents, again.latents)
  assert not np.array_equal(first.latents, other.latents)
  for a, b in zip(first.meshes, again.meshes):
    np.testing.assert_array_equal(a.vertices, b.vertices)
    np.testing.assert_array_equal(a.faces, b.faces)


def test_a_single_picture_makes_one_mesh(model):
  config = micro.get_config()
  result, _ = _generate(model, config, num_frames=1)
  assert len(result.meshes) == 1


def test_progress_is_reported_from_inside_the_compiled_loop(model):
  config = micro.get_config()
  sampling = model_lib.SamplingConfig(**config.sampling)
  steps = []
  model.sample(np.zeros((2, 16, 16, 3), np.uint8), sampling, steps.append)
  assert sorted(steps) == [1, 2]


def test_shared_noise_is_the_same_in_every_frame(model):
  noise = model.draw_noise(0, 3, "shared")
  np.testing.assert_array_equal(noise[0], noise[2])
  noise = model.draw_noise(0, 3, "independent")
  assert not np.array_equal(noise[0], noise[2])


def test_weights_that_do_not_fit_are_refused_with_the_reason(trained, tmp_path):
  weights = trained / "weights"
  config = micro.get_config()
  config.model.dit.width = 32
  with pytest.raises(model_files.ModelFileError, match="width: the file has"):
    model_lib.Sculpt4D.load(preset_lib.from_config(config).model, weights)
  config = micro.get_config()
  with pytest.raises(model_files.ModelFileError, match="no folder of weights"):
    model_lib.Sculpt4D.load(
      preset_lib.from_config(config).model, tmp_path / "nothing"
    )
  broken = tmp_path / "broken"
  broken.mkdir()
  for path in weights.iterdir():
    (broken / path.name).write_bytes(path.read_bytes()[:-100])
  with pytest.raises(model_files.ModelFileError, match="no whole safetensors"):
    model_lib.Sculpt4D.load(preset_lib.from_config(config).model, broken)
  with pytest.raises(model_files.ModelFileError, match="no weights at"):
    (broken / "vae.safetensors").unlink()
    model_lib.Sculpt4D.load(preset_lib.from_config(config).model, broken)
