"""Dry runs and shellcheck of the scripts for clusters."""

import os
import pathlib
import re
import shlex
import shutil
import subprocess

import pytest

from launch import processes

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


def _fake(folder, name, text):
  """A program of a cluster that says what it was asked to do."""
  path = folder / name
  path.write_text(f"#!/usr/bin/env bash\n{text}\n")
  path.chmod(0o755)


def _run_with_fakes(script, folder, variables):
  path = f"{folder}:{os.environ['PATH']}"
  return _run(script, {"PATH": path, "DRY_RUN": "0"} | variables)


@pytest.mark.parametrize(
  "code,restarts,is_queued",
  [
    (0, 0, False),
    (1, 0, False),  # A bug would come again,
    (2, 0, False),  # and so would a misspelt flag.
    (75, 0, True),
    (134, 0, True),
    (137, 19, True),
    (137, 20, False),  # Not enough memory, each time.
    (143, 99, True),  # The end of the time that a job gets.
  ],
)
def test_slurm_queues_a_job_again_if_it_can_resume(
  tmp_path, code, restarts, is_queued
):
  _fake(tmp_path, "srun", f"exit {code}")
  _fake(tmp_path, "scontrol", 'echo "scontrol $*"')
  result = _run_with_fakes(
    FOLDER / "slurm_gpu.sh",
    tmp_path,
    {"SLURM_JOB_ID": "5", "SLURM_RESTART_COUNT": str(restarts)},
  )
  assert result.returncode == code
  assert ("scontrol requeue 5" in result.stdout) == is_queued


def test_tasks_of_slurm_see_all_gpus_of_their_node():
  text = (FOLDER / "slurm_gpu.sh").read_text()
  assert "#SBATCH --gpus-per-node=8" in text
  assert "#SBATCH --gpus-per-task" not in text


def test_gke_restarts_a_run_that_lost_a_process():
  shown = _run(FOLDER / "gke_xpk.sh", REQUIRED).stdout
  assert f"--restart-on-exit-codes={processes.EXIT_AFTER_LOSS}" in shown


@pytest.mark.parametrize(
  "kind,image",
  [
    ("v5p-128", "v2-alpha-tpuv5"),
    ("v5litepod-64", "v2-alpha-tpuv5-lite"),
    ("v6e-256", "v2-alpha-tpuv6e"),
  ],
)
def test_a_tpu_gets_the_image_of_its_kind(kind, image):
  shown = _run(FOLDER / "tpu_vm.sh", REQUIRED | {"TYPE": kind}).stdout
  assert f"--runtime-version={image} " in shown
  result = _run(FOLDER / "tpu_vm.sh", REQUIRED | {"TYPE": "v9-8"})
  assert result.returncode == 2 and "RUNTIME" in result.stderr


def _startup_script(variables):
  shown = _run(FOLDER / "tpu_vm.sh", REQUIRED | variables).stdout
  begin = shown.index("#!/usr/bin/env bash")
  return shown[begin : shown.index("gcloud compute")]


@pytest.mark.parametrize(
  "codes,starts,last",
  [((75, 134, 0), 3, 0), ((2,), 1, 2), ((75,) * 9, 3, 75)],
)
def test_a_machine_of_a_slice_starts_again_after_a_loss(
  tmp_path, codes, starts, last
):
  """The script that a machine runs at its start, with programs that count."""
  script = _startup_script({"RESTARTS": "2"})
  script = script.replace("/opt/", f"{tmp_path}/opt/")
  (tmp_path / "codes").write_text("".join(f"{code}\n" for code in codes))
  python = tmp_path / "opt/sculpt4d/.venv/bin"
  python.mkdir(parents=True)
  _fake(
    python,
    "python",
    f"cd {tmp_path}; head -n 1 codes >code; sed -i 1d codes; exit $(cat code)",
  )
  (tmp_path / "opt/uv").mkdir()
  _fake(tmp_path / "opt/uv", "uv", 'echo "uv $*"')
  for name in ("gcloud", "curl", "sleep"):
    _fake(tmp_path, name, f"echo {name}")
  # At the end of a pipe: who writes to nobody fails.
  for name in ("tar", "sh"):
    _fake(tmp_path, name, f"cat >/dev/null; echo {name}")
  (tmp_path / "startup").write_text(script)
  result = _run_with_fakes(tmp_path / "startup", tmp_path, {})
  assert result.returncode == last, result.stderr
  left = (tmp_path / "codes").read_text().split()
  assert len(codes) - len(left) == starts
  assert "uv pip install" in result.stdout and "jax[tpu]" in result.stdout


def test_a_preempted_slice_is_requested_again(tmp_path):
  _fake(
    tmp_path,
    "gcloud",
    # It reads the archive to its end: who writes to nobody fails.
    'echo "gcloud $*" >>"$LOG"\n[[ $* != *" cp "* ]] || cat >/dev/null\n'
    "[[ $* != *describe* ]] || echo SUSPENDED",
  )
  _fake(tmp_path, "git", "echo archive")
  # Waits once, then ends the loop.
  _fake(tmp_path, "sleep", '[[ ! -e "$LOG.slept" ]] && touch "$LOG.slept"')
  log = tmp_path / "log"
  result = _run_with_fakes(
    FOLDER / "tpu_vm.sh",
    tmp_path,
    REQUIRED | {"RENEW": "1", "LOG": str(log), "DRY_RUN": "0"},
  )
  assert result.returncode == 0, result.stderr
  calls = [
    word
    for line in log.read_text().splitlines()
    for word in line.split()
    if word in ("create", "describe", "delete")
  ]
  assert calls == ["create", "describe", "delete", "create"]


@pytest.mark.parametrize("name", ["tpu_vm.sh", "gke_xpk.sh", "skypilot.sh"])
def test_a_folder_with_a_space_stays_one_word(name):
  shown = _run(FOLDER / name, REQUIRED | {"WORKDIR": "gs://b/my run"}).stdout
  if name == "gke_xpk.sh":  # Its command is one word of another.
    shown = next(w for w in shlex.split(shown) if w.startswith("--command="))
  assert r"--workdir=gs://b/my\ run" in shown


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
