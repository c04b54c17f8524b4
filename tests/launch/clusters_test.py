"""The scripts that start runs on clusters: dry runs, and shellcheck."""

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
