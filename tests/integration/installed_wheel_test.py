"""The wheel alone, in an environment without the checkout: what a user has."""

import json
import pathlib
import re
import zipfile

import pytest

from tests.integration import wheels

ROOT = wheels.ROOT
QUICK = ("--steps", "3", "--resolution", "32", "--quiet")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
  return wheels.build(tmp_path_factory)


@pytest.fixture(scope="module")
def environment(wheel, tmp_path_factory):
  return wheels.Environment(tmp_path_factory.mktemp("env") / "venv", wheel)


@pytest.fixture
def run(environment, tmp_path):
  """Runs a program in an empty folder; it must succeed."""

  def run(program, *arguments):
    result = environment.run(program, *arguments, cwd=tmp_path)
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    assert str(ROOT) not in result.stdout + result.stderr
    return result

  return run


def readme_lines():
  """The Python lines of the README."""
  text = (ROOT / "README.md").read_text()
  return re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]


def test_the_readme_shows_six_lines_of_python():
  lines = [line for line in readme_lines().splitlines() if line.strip()]
  assert len(lines) <= 6 and "s4d.load" in readme_lines()


@pytest.mark.slow
def test_info_and_help(run, environment):
  text = run("sculpt4d", "info").stdout
  assert str(environment.folder) in text
  assert re.search(r"weights shipped +.*\btiny\b", text)
  assert re.search(r"usd-core .*sculpt4d-jax\[usd\]|usd-core +\d", text)
  assert "examples" not in run("sculpt4d", "--help").stderr


@pytest.mark.slow
def test_the_demo_keeps_its_result_without_usd(run, tmp_path):
  result = run("sculpt4d", "demo", *QUICK)
  made = {path.name for path in (tmp_path / "out" / "demo").iterdir()}
  assert {"viewer.html", "animation.glb", "frame_0015.ply", "run.json"} <= made
  assert "animation.usdc" not in made
  assert "sculpt4d-jax[usd]" in result.stderr
  assert "Open out/demo/viewer.html" in result.stdout


@pytest.mark.slow
def test_a_clip_of_the_user(run, wheel, tmp_path):
  name = "sculpt4d_jax/shipped/demo/clip.mp4"
  (tmp_path / "my.mp4").write_bytes(zipfile.ZipFile(wheel).read(name))
  run("sculpt4d", "sample", "my.mp4", "-o", "mine", "--frames", "2", *QUICK)
  said = json.loads((tmp_path / "mine" / "run.json").read_text())
  assert said["preset"] == "small" and len(said["meshes"]) == 2


@pytest.mark.slow
def test_the_lines_of_the_readme(run, tmp_path):
  code = readme_lines().replace('"clip.mp4"', "shipped.demo_clip()")
  assert "demo_clip" in code
  run("python", "-c", f"from sculpt4d_jax import shipped\n{code}")
  assert (tmp_path / "out" / "viewer.html").exists()


@pytest.mark.slow
@pytest.mark.long
def test_training_a_preset_by_name_and_sampling_its_weights(run, tmp_path):
  changes = [
    "data.num_clips=8",
    "data.num_held_out=2",
    "vae_training.batch_size=2",
    "vae_training.optimizer.num_steps=2",
    "vae_training.optimizer.warmup_steps=1",
    "vae_training.eval_clips=2",
    "dit_training.batch_size=2",
    "dit_training.optimizer.num_steps=2",
    "dit_training.optimizer.warmup_steps=1",
    "dit_training.eval_clips=2",
  ]
  options = [word for change in changes for word in ("--set", change)]
  result = run("sculpt4d", "train", "--preset", "tiny", *options)
  assert "The weights are in runs/tiny/weights." in result.stdout
  weights = tmp_path / "runs" / "tiny" / "weights"
  assert {path.name for path in weights.glob("*.safetensors")} == {
    "dit.safetensors",
    "image_encoder.safetensors",
    "vae.safetensors",
  }


@pytest.mark.slow
def test_a_preset_of_the_user_starts_from_shipped_weights(
  environment, tmp_path
):
  pathlib.Path(tmp_path / "mine.py").write_text(
    "from sculpt4d_jax.configs import tiny_records\n"
    "def get_config():\n"
    "  config = tiny_records.get_config()\n"
    "  config.records.folders = 'nothing'\n"
    "  return config\n"
  )
  result = environment.run(
    "sculpt4d", "train", "--preset", "mine.py", cwd=tmp_path
  )
  # The shipped weights were found; the records were not.
  assert result.returncode == 2
  assert "there is no data set at nothing" in result.stderr
  assert "Traceback" not in result.stderr
