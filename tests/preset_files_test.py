import pathlib

import pytest

from sculpt4d_jax import preset_files

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_every_file_of_configs_is_a_preset_by_name():
  files = {path.stem for path in (ROOT / "configs").glob("*.py")}
  assert set(preset_files.names()) == files - {"__init__"}
  for name in preset_files.names():
    assert preset_files.read(name).model.dit.depth > 0


@pytest.mark.parametrize(
  "given, name",
  [
    ("tiny", "tiny"),
    ("pods:v5e-64", "sculpt4d_v5e-64"),
    (str(ROOT / "configs" / "tiny.py"), "tiny"),
    (f"{ROOT}/configs/pods.py:gpu-8", "sculpt4d_gpu-8"),
  ],
)
def test_presets_by_name_and_by_file(given, name):
  assert preset_files.read(given).name == name


def test_a_file_of_the_user_begins_with_a_shipped_preset(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "from sculpt4d_jax.configs import tiny\n"
    "def get_config():\n"
    "  config = tiny.get_config()\n"
    "  config.sampling.num_frames = 12\n"
    "  return config\n"
  )
  assert preset_files.read(path).sampling.num_frames == 12


@pytest.mark.parametrize(
  "given, message",
  [
    ("tinny", "did you mean 'tiny'"),
    ("nothing.py", "no such preset file"),
    ("empty.py", "defines no get_config"),
    ("wrong.py", "must return a ConfigDict, got dict"),
    ("broken.py", "broken.py cannot be read"),
    ("foreign.py", "foreign.py cannot be read"),
  ],
)
def test_what_is_no_preset_is_refused(given, message, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  pathlib.Path("empty.py").write_text("")
  pathlib.Path("wrong.py").write_text("def get_config():\n  return {}\n")
  pathlib.Path("broken.py").write_text("def get_config(:\n")
  pathlib.Path("foreign.py").write_text("import no_such_module_anywhere\n")
  with pytest.raises(ValueError, match=message):
    preset_files.read(given)


def test_texts_are_read_as_the_type_of_the_field():
  config = preset_files.read("tiny")
  changes = preset_files.parse_changes(
    [
      "sampling.num_steps=20",
      "sampling.offload=true",
      "sampling.noise=shared",
      "dit_training.optimizer.learning_rate=1e-4",
      "dit_training.optimizer.frozen=base",
      "dit_training.lora.also_train=temporal,base",
      "model.dit.temporal_schedule=1,2,4",
      "model.vae.remat_policy=full",
    ]
  )
  preset_files.change(config, changes)
  assert config.sampling.num_steps == 20
  assert config.sampling.offload is True
  assert config.sampling.noise == "shared"
  assert config.dit_training.optimizer.learning_rate == 1e-4
  assert config.dit_training.optimizer.frozen == ("base",)
  assert config.dit_training.lora.also_train == ("temporal", "base")
  assert config.model.dit.temporal_schedule == (1, 2, 4)
  assert config.model.vae.remat_policy == "full"


def test_values_are_taken_as_they_are():
  config = preset_files.read("tiny")
  preset_files.change(
    config, {"sampling.seed": 3, "dit_training.profile": [1, 2]}
  )
  assert config.sampling.seed == 3
  assert config.dit_training.profile == (1, 2)


@pytest.mark.parametrize(
  "changes, message",
  [
    ({"sampling.num_step": 3}, "did you mean 'num_steps'"),
    ({"sample.num_steps": 3}, "no field 'sample'"),
    ({"sampling": 3}, "is a section"),
    ({"name.more": 3}, "has no fields"),
    ({"sampling.num_steps": "many"}, "expected a whole number"),
    ({"sampling.num_steps": 2.5}, "expected a whole number"),
    ({"sampling.offload": "3"}, "expected true or false"),
  ],
)
def test_changes_that_cannot_be_are_refused(changes, message):
  with pytest.raises(ValueError, match=message):
    preset_files.change(preset_files.read("tiny"), changes)


def test_a_change_without_a_value_is_refused():
  with pytest.raises(ValueError, match="write FIELD=VALUE"):
    preset_files.parse_changes(["sampling.num_steps"])
