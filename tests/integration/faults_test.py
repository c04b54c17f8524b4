"""Training that is killed, out of disk, or short of a process resumes exactly.

Real processes of `launch.train`, real signals, a real full file system. The
model is the micro preset's autoencoder, which takes a step in milliseconds.
"""

import random
import signal
import subprocess
import time

import pytest

from tests import conftest
from tests.integration import train_processes as runs

pytestmark = pytest.mark.slow  # Dozens of processes, each of which starts jax.

NUM_KILLS = 20
NUM_STEPS = 1200
STEPS = f"--config.vae_training.optimizer.num_steps={NUM_STEPS}"
SAVE = "--config.vae_training.save_every="
ONCE = [STEPS, f"{SAVE}{NUM_STEPS}"]
OFTEN = [STEPS, f"{SAVE}20"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """Folder of an uninterrupted run."""
  folder = tmp_path_factory.mktemp("whole")
  runs.run(folder, 1, *ONCE)
  return folder


def _copy_data(source, folder):
  (folder / "data").symlink_to(source / "data")


def _is_saving(folder):
  checkpoints = folder / "vae" / "checkpoints"
  return checkpoints.exists() and any(
    "tmp" in path.name for path in checkpoints.iterdir()
  )


def _weights(folder):
  return (folder / "weights" / "vae.safetensors").read_bytes()


def _assert_same(folder, whole):
  """Every step that was ever taken had the loss of the uninterrupted run."""
  expected = runs.losses(whole)
  seen = [r for r in runs.records(folder) if "train/loss" in r]
  assert {r["step"] for r in seen} == set(expected)
  for record in seen:
    assert record["train/loss"] == expected[record["step"]], record["step"]
  assert _weights(folder) == _weights(whole)


def _kill(folder, rng, number):
  """One life and its violent end; the signal, where it fell, what was whole."""
  sent = (signal.SIGTERM, signal.SIGKILL)[number % 2]
  place = ("start", "step", "save")[number % 3]
  newest = max(runs.checkpoint_steps(folder), default=None)
  (process,) = runs.start(folder, 1, *OFTEN)
  if place == "start":  # While it imports, reads, restores or compiles.
    time.sleep(rng.uniform(0.2, 6.0))
  else:
    wanted = len(runs.records(folder)) + rng.randrange(1, 50)
    runs.wait_for(lambda: len(runs.records(folder)) >= wanted, [process])
    if place == "save":
      runs.wait_for(lambda: _is_saving(folder), [process])
    time.sleep(rng.uniform(0, 0.1))
  assert process.poll() is None, "It ended by itself; make it longer."
  was_saving = _is_saving(folder)
  process.send_signal(sent)
  output = process.communicate(timeout=300)[0]
  code = 143 if sent == signal.SIGTERM else -signal.SIGKILL
  # Before the program has its own handler, SIGTERM is the system's.
  early = place == "start" and process.returncode == -signal.SIGTERM
  assert process.returncode == code or early, output[-3000:]
  assert "cannot be read" not in output, output[-3000:]
  if "Restored step" in output:
    assert f"Restored step {newest} " in output, output[:3000]
  return sent.name, place, was_saving, runs.checkpoint_steps(folder)


@pytest.mark.long
def test_twenty_kills_change_no_bit(whole, tmp_path, capsys):
  _copy_data(whole, tmp_path)
  rng = random.Random(6)
  deaths = [_kill(tmp_path, rng, n) for n in range(NUM_KILLS)]
  with capsys.disabled():
    for death in deaths:
      sent, place, saving, whole_steps = death
      print(
        f"\n{sent} at a {place}, saving: {saving}, whole after it: {whole_steps}",
        end="",
      )
  assert any(saving for _, _, saving, _ in deaths)
  # The newest checkpoint is damaged on top of it: the one before serves.
  before, newest = runs.checkpoint_steps(tmp_path)[-2:]
  for path in (tmp_path / "vae" / "checkpoints" / str(newest)).rglob("*"):
    if path.is_file() and "ocdbt" in str(path):
      path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
  (output,) = runs.run(tmp_path, 1, *ONCE)
  assert f"Checkpoint {newest} " in output and "cannot be read" in output
  assert f"Restored step {before} " in output
  _assert_same(tmp_path, whole)


def test_sigterm_saves_the_step_it_came_in(whole, tmp_path):
  """Also of one process, and far from a step that would be saved anyway."""
  _copy_data(whole, tmp_path)
  (process,) = runs.start(tmp_path, 1, *ONCE)
  runs.wait_for(lambda: len(runs.records(tmp_path)) > 7, [process])
  process.send_signal(signal.SIGTERM)
  (output,) = runs.finish([process], 143)
  (step,) = runs.checkpoint_steps(tmp_path)
  assert f"Told to stop at step {step}; the state is saved" in output
  assert step == max(runs.losses(tmp_path)) < NUM_STEPS


# A checkpoint has 0.7 MB, and twice as much while it is written: the first one
# fits, the third does not.
_ON_A_SMALL_DISK = """
set -eu
mount -t tmpfs -o size=2200k tmpfs {disk}
cp -r {data} {disk}/data
set +e
{command} {often} > {out}/full.txt 2>&1
echo $? > {out}/code.txt
ls {disk}/vae/checkpoints > {out}/left.txt
set -e
mount -o remount,size=64m {disk}
{command} {once} > {out}/resumed.txt 2>&1
cp -r {disk}/vae {disk}/weights {out}
"""


def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(
  whole, tmp_path
):
  probe = subprocess.run(
    ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"],
    capture_output=True,
    check=False,
  )
  if probe.returncode:
    pytest.skip("file systems cannot be mounted in a namespace of one's own")
  disk, out = tmp_path / "disk", tmp_path / "out"
  disk.mkdir()
  out.mkdir()
  command = " ".join(runs.command(disk))
  script = _ON_A_SMALL_DISK.format(
    disk=disk,
    out=out,
    data=whole / "data",
    command=command,
    often=" ".join(OFTEN),
    once=" ".join(ONCE),
  )
  result = subprocess.run(
    ["unshare", "-rm", "bash", "-c", script],
    cwd=conftest.ROOT,
    # Compiled code, which a run keeps in its folder, would fill it first.
    env=runs.environment() | {"JAX_COMPILATION_CACHE_DIR": str(out / "jax")},
    capture_output=True,
    text=True,
    check=False,
    timeout=900,
  )
  said = (out / "full.txt").read_text()
  assert result.returncode == 0, (result.stderr, said)
  assert (out / "code.txt").read_text().strip() == "2", said
  message = said.strip().splitlines()[-1]
  assert message.startswith("train: ") and "no space left" in message.lower()
  assert "Traceback" not in said
  left = [n for n in (out / "left.txt").read_text().split() if n.isdigit()]
  assert left, "There were whole checkpoints."
  resumed = (out / "resumed.txt").read_text()
  assert f"Restored step {max(map(int, left))} " in resumed
  _assert_same(out, whole)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_lost_process_ends_the_others_within_a_minute(
  whole, tmp_path, victim
):
  _copy_data(whole, tmp_path)
  processes = runs.start(tmp_path, 2, *OFTEN)
  runs.wait_for(lambda: runs.checkpoint_steps(tmp_path), processes)
  processes[victim].kill()
  began = time.monotonic()
  output = processes[1 - victim].communicate(timeout=60)[0]
  assert time.monotonic() - began < 60
  code = processes[1 - victim].returncode
  if code == 75:
    assert "another one has gone" in output
    assert "Traceback" not in output
  else:  # Without the first process jax itself ends the others.
    assert victim == 0 and code == -signal.SIGABRT
    assert "another task died" in output
  processes[victim].communicate()


def test_a_process_that_hangs_ends_the_others(whole, tmp_path):
  """As one does whose network is gone: no connection is ever closed."""
  _copy_data(whole, tmp_path)
  processes = runs.start(tmp_path, 2, *OFTEN, "--heartbeat_seconds=10")
  runs.wait_for(lambda: runs.checkpoint_steps(tmp_path), processes)
  processes[1].send_signal(signal.SIGSTOP)
  try:
    output = processes[0].communicate(timeout=60)[0]
  finally:
    processes[1].kill()
    processes[1].communicate()
  assert processes[0].returncode != 0
  assert "another one has gone" in output or "another task died" in output
