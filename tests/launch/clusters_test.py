"""Dry runs and shellcheck of the scripts for clusters."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "launch" / "clusters"
SCRIPTS = sorted(FOLDER.glob("*.sh"))
REQUIRED = dict(
  PROJECT="p",
  ZONE="z",
  BUCKET="gs://b",
  CLUSTER="c",
  IMAGE="i",
  EXTRA="--config.dit_training.batch_size=16",
)


def _run(script, variables):
  return subprocess.run(
    ["bash", str(script)],
    env={"PATH": os.environ["PATH"], "DRY_RUN": "1"} | variables,
    capture_output=True,
    text=True,
    check=False,
    timeout=60,
  )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_dry_run_shows_the_training_command(script):
  result = _run(script, REQUIRED)
  assert result.returncode == 0, result.stderr
  shown = result.stdout.replace("\\", "")
  assert "launch.train" in shown
  assert "--config.dit_training.batch_size=16" in shown


def test_nothing_is_mounted():
  for script in SCRIPTS:
    assert "fuse" not in script.read_text().lower(), script.name


def test_slices_are_asked_for_together():
  shown = _run(FOLDER / "tpu_vm.sh", REQUIRED | {"SLICES": "2"}).stdout
  assert "--node-count=2" in shown and "--node-id" not in shown
  shown = _run(FOLDER / "gke_xpk.sh", REQUIRED | {"SLICES": "2"}).stdout
  assert "--num-slices=2" in shown


@pytest.mark.parametrize("name", ["tpu_vm.sh", "gke_xpk.sh", "skypilot.sh"])
def test_runs_lie_in_the_bucket(name):
  shown = _run(FOLDER / name, REQUIRED).stdout.replace("\\", "")
  assert "--workdir=gs://b/runs/sculpt4d" in shown


def test_the_task_of_skypilot_is_yaml_with_a_script_that_parses():
  yaml = pytest.importorskip("yaml")
  text = _run(FOLDER / "skypilot.sh", REQUIRED).stdout
  task = yaml.safe_load(text[: text.index("sky jobs launch")])
  assert task["num_nodes"] == 1
  assert task["resources"]["accelerators"] == "H100:8"
  assert task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75, 134]
  parsed = subprocess.run(
    ["bash", "-n"], input=task["setup"] + task["run"], text=True, check=False
  )
  assert parsed.returncode == 0


def test_a_preset_of_slurm_gets_the_restart_code():
  assert "code == 75" in (FOLDER / "slurm_gpu.sh").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_every_variable_is_explained(script):
  text = script.read_text()
  used = set(re.findall(r"^(?:: \"\$\{)?([A-Z_]+)(?:=\$\{|:\?)", text, re.M))
  explained = set(re.findall(r"^#   ([A-Z_]+) ", text, re.M))
  assert used == explained


def test_missing_variables_are_named():
  result = _run(FOLDER / "tpu_vm.sh", {})
  assert result.returncode != 0
  assert "name a Google Cloud project" in result.stderr


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(script):
  if shutil.which("shellcheck") is None:
    pytest.skip("shellcheck is not installed")
  result = subprocess.run(
    ["shellcheck", str(script)], capture_output=True, text=True, check=False
  )
  assert result.returncode == 0, result.stdout
