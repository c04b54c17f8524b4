"""The public API: what is imported, loaded, made, kept and refused."""

import dataclasses
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest

import sculpt4d_jax as s4d
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.kernels import block_sparse_attention as bsa
from tests import small_models
from tests.integration import micro

ROOT = pathlib.Path(__file__).resolve().parents[1]


def get_config():
  """A preset whose untrained field has a surface at its median."""
  config = micro.get_config()
  config.surface.update(dict(level=0.2, band=3.0))
  return config


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
  return small_models.write(tmp_path_factory.mktemp("w"), get_config())


@pytest.fixture(scope="module")
def model(weights):
  return s4d.load(get_config(), weights, progress=False)


@pytest.fixture(scope="module")
def clip():
  """A dark square that moves over a white ground."""
  frames = np.full((3, 48, 48, 3), 255, np.uint8)
  for frame in range(3):
    frames[frame, 12:36, 8 + 4 * frame : 32 + 4 * frame] = 40
  return frames


@pytest.fixture(scope="module")
def result(model, clip):
  return model.generate(clip, progress=False)


def test_importing_the_package_starts_nothing():
  code = (
    "import sys, sculpt4d_jax as s4d; "
    "assert 'jax' not in sys.modules and 'numpy' not in sys.modules; "
    "assert set(s4d.__all__) <= set(dir(s4d)); print(s4d.__version__)"
  )
  printed = subprocess.run(
    [sys.executable, "-c", code],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
  )
  assert printed.stdout.strip() == s4d.__version__


def test_public_names_are_what_they_say():
  assert s4d.BlockMask is bsa.BlockMask
  assert s4d.block_sparse_attention is bsa.block_sparse_attention
  for name in s4d.__all__:
    assert getattr(s4d, name) is not None
  with pytest.raises(AttributeError, match="nothing"):
    getattr(s4d, "nothing")  # noqa: B009


def test_a_result_has_meshes_times_and_settings(result):
  assert len(result) == len(result.meshes) == len(result.times) == 3
  assert result.meshes[0].vertices.shape[1] == 3
  assert result.details["sampling"]["num_frames"] == 3
  assert [stage.name for stage in result.stages] == [
    "read frames",
    "find the object",
    "crop",
    "load weights",
    "denoise",
    "extract meshes",
  ]
  assert "3 meshes" in repr(result)


def test_settings_change_one_call_and_not_the_next(model, clip, result):
  other = model.generate(clip, seed=1, num_steps=2, progress=False)
  assert other.details["seed"] == 1
  assert other.details["sampling"]["num_steps"] == 2
  assert not np.allclose(other.latents, result.latents)
  again = model.generate(clip, progress=False)
  np.testing.assert_array_equal(again.latents, result.latents)


def test_quality_names_a_sampler(model, clip):
  read = model.read_clip(clip, progress=False)
  made = model.generate(read, quality="draft", num_steps=3, progress=False)
  assert made.details["sampling"]["solver"] == "ab2"
  assert made.details["sampling"]["num_steps"] == 3
  with pytest.raises(ValueError, match="sampling preset 'best'"):
    model.generate(read, quality="best", progress=False)


def test_a_second_clip_is_not_compiled_again(model, clip, result):
  read = model.read_clip(clip, progress=False)
  compiled = model.networks._advance._cache_size()
  for progress in ([].append, [].append, True):
    model.generate(read, progress=progress)
  assert model.networks._advance._cache_size() == compiled


def test_lists_of_pictures_equal_the_array(model, clip, result):
  made = model.generate(list(clip), progress=False)
  np.testing.assert_array_equal(made.latents, result.latents)


def test_a_clip_can_be_read_first(model, clip, result):
  read = model.read_clip(clip, progress=False)
  assert read.foreground.method == "plain"
  made = model.generate(read, progress=False)
  np.testing.assert_array_equal(made.latents, result.latents)


def test_progress_is_reported_by_stage_and_nothing_is_printed(
  model, clip, capfd
):
  seen = []
  model.generate(clip, progress=seen.append)
  assert all(isinstance(step, run_log.Progress) for step in seen)
  last = {step.stage: step for step in seen}
  assert list(last) == [
    "read frames",
    "find the object",
    "crop",
    "denoise",
    "extract meshes",
  ]
  assert all(step.done == step.total for step in last.values())
  assert capfd.readouterr() == ("", "")


def test_threads_get_what_the_main_thread_gets(model, clip, result):
  made = {}

  def work(seed):
    made[seed] = model.generate(clip, seed=seed, progress=False)

  threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  np.testing.assert_array_equal(made[0].latents, result.latents)
  assert not np.allclose(made[1].latents, result.latents)


def test_a_result_saves_and_shows_itself(result, tmp_path):
  paths = result.save(tmp_path / "out", progress=False)
  names = {path.name for path in paths}
  assert {"frame_0000.ply", "animation.glb", "viewer.html", "run.json"} <= names
  assert all(path.exists() for path in paths)
  shown = result._repr_html_()
  assert shown.startswith("<iframe srcdoc=") and "Sampling steps" in shown


def test_a_missing_optional_writer_leaves_out_its_file_alone(
  result, tmp_path, monkeypatch, caplog
):
  monkeypatch.setitem(sys.modules, "pxr", None)  # Importing it fails.
  names = {p.name for p in result.save(tmp_path / "out", progress=False)}
  assert "animation.usdc" not in names
  assert {"frame_0002.ply", "animation.glb", "run.json"} <= names
  assert "sculpt4d-jax[usd]" in caplog.text


def test_a_result_is_saved_in_the_formats_that_are_named(result, tmp_path):
  folder = tmp_path / "out"
  result.save(folder, formats=["obj", "glb"], progress=False)
  assert {path.name for path in folder.glob("[!.]*")} == {
    "frame_0000.obj",
    "frame_0001.obj",
    "frame_0002.obj",
    "animation.glb",
    "viewer.html",
    "preview.png",
    "run.json",
  }
  # A later run does not leave meshes of this one next to its own.
  result.save(folder, formats=["ply"], progress=False)
  assert not list(folder.glob("*.obj")) + list(folder.glob("*.glb"))
  assert len(list(folder.glob("*.ply"))) == 3


def test_a_named_format_without_its_package_is_refused(
  result, tmp_path, monkeypatch
):
  monkeypatch.setitem(sys.modules, "pxr", None)
  with pytest.raises(ValueError, match=r"sculpt4d-jax\[usd\]"):
    result.save(tmp_path / "out", formats=["usd"], progress=False)
  assert not list(tmp_path.iterdir())


def test_sequences_are_scored_from_memory_and_from_files(result, tmp_path):
  # Columns that cost little on a rough surface.
  protocol = dataclasses.replace(
    protocol_table.find("project").with_conventions(num_points=500),
    metrics=("cd", "p2s"),
  )
  result.save(tmp_path / "out", progress=False)
  for predicted, truth in (
    (result.meshes, result),
    (tmp_path / "out", result),
    (result, tmp_path / "out"),
  ):
    report = s4d.evaluate(predicted, truth, protocol, progress=False)
    assert report.estimates["cd"].mean < 0.05
    assert report.estimates["p2s"].mean < 1e-3
  with pytest.raises(ValueError, match="predicted: expected a path"):
    s4d.evaluate([1, 2], result, progress=False)
  with pytest.raises(ValueError, match="truth: expected a path.* got a int"):
    s4d.evaluate(result, 3, progress=False)


@pytest.mark.slow  # Marching cubes of the trivial answers.
def test_a_model_is_scored_by_a_protocol(model):
  protocol = protocol_table.find("motion324").with_conventions(num_points=300)
  rows = model.evaluate(1, protocol=protocol, progress=False)
  assert list(rows) == ["model", "per frame", "mean shape", "best training"]
  for report in rows.values():
    assert report.protocol is protocol
    assert report.estimates["cd_sum"].mean > 0


def test_weights_alone_name_their_preset(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  model = s4d.load("weights/tiny", progress=False)
  assert model.preset == "tiny"
  assert model.weights == ROOT / "weights" / "tiny"
  assert s4d.load("tiny", progress=False).weights == model.weights


@pytest.mark.parametrize(
  "arguments, message",
  [
    (("tinny",), "did you mean 'tiny'"),
    (("sculpt4d",), "ships no weights"),
    (("tiny", "nothing"), "nothing is no folder of weights"),
    (("sculpt4d", "weights/tiny"), "does not fit"),
  ],
)
def test_what_cannot_be_loaded_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    s4d.load(*arguments, progress=False)


def test_weights_of_another_size_ask_for_their_preset(weights):
  with pytest.raises(ValueError, match="sizes of no shipped preset"):
    s4d.load(weights, progress=False)


def test_presets_are_copied_and_changed():
  config = micro.get_config()
  changed = s4d.preset(config, {"sampling.seed": "5"})
  assert changed.sampling.seed == 5 and config.sampling.seed == 0
  assert s4d.preset("tiny").name == "tiny"


def test_bad_settings_are_refused(model, clip):
  with pytest.raises(ValueError, match="num_steps=1"):
    model.generate(clip, num_steps=1, progress=False)
  with pytest.raises(ValueError, match="magic"):
    model.generate(clip, matte="magic", progress=False)
  with pytest.raises(ValueError, match="does not exist"):
    model.generate("nothing.mp4", progress=False)


@pytest.mark.slow  # Trains both networks: a minute.
def test_training_gives_weights_that_load(tmp_path):
  folder = s4d.train(
    micro.get_config(),
    tmp_path / "run",
    changes={"dit_training.profile": (), "dit_training.samples.every": 0},
  )
  assert s4d.load(micro.get_config(), folder, progress=False).weights == folder
