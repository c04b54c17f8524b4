"""Two real processes train one model: same losses, stop together, go on."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import conftest

pytestmark = pytest.mark.slow  # Every process compiles the step.


def _free_port():
  with socket.socket() as listener:
    listener.bind(("127.0.0.1", 0))
    return listener.getsockname()[1]


def _start(workdir, num_processes, *flags):
  """Starts the processes of a run of the micro preset's autoencoder."""
  port = _free_port()
  command = [
      sys.executable, "-m", "launch.train",
      "--config=tests/integration/micro.py", f"--workdir={workdir}",
      "--stages=data,vae", *flags,
  ]
  joined = [
      "--distributed=flags", f"--coordinator=127.0.0.1:{port}",
      f"--num_processes={num_processes}",
  ]
  return [
      subprocess.Popen(
          command
          + (joined + [f"--process_id={i}"] if num_processes > 1 else []),
          cwd=conftest.ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"},
          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      )
      for i in range(num_processes)
  ]


def _finish(processes, code=0):
  outputs = [p.communicate(timeout=1500)[0] for p in processes]
  for process, output in zip(processes, outputs):
    assert process.returncode == code, output[-3000:]
  return outputs


def _losses(workdir):
  lines = (workdir / "vae" / "metrics.jsonl").read_text().splitlines()
  records = map(json.loads, lines)
  return {
      r["step"]: r["train/loss"] for r in records if "train/loss" in r
  }


def test_two_processes_train_as_one(tmp_path):
  _finish(_start(tmp_path / "one", 1))
  _finish(_start(tmp_path / "two", 2))
  one, two = _losses(tmp_path / "one"), _losses(tmp_path / "two")
  assert sorted(one) == sorted(two) == [1, 2, 3, 4]
  np.testing.assert_allclose(
      [one[s] for s in sorted(one)], [two[s] for s in sorted(one)], rtol=1e-5
  )
  assert (tmp_path / "two" / "weights" / "vae.safetensors").exists()


def test_a_notice_to_one_process_saves_and_ends_both(tmp_path):
  long = ["--config.vae_training.optimizer.num_steps=100000"]
  processes = _start(tmp_path, 2, *long)
  metrics = tmp_path / "vae" / "metrics.jsonl"
  began = time.monotonic()
  while not metrics.exists() or not metrics.read_text():
    assert time.monotonic() - began < 1200
    assert all(p.poll() is None for p in processes)
    time.sleep(0.5)
  processes[1].send_signal(signal.SIGTERM)
  outputs = _finish(processes, 143)
  assert "the state is saved" in outputs[0]
  steps = [int(p.name) for p in (tmp_path / "vae" / "checkpoints").iterdir()]
  # One process, another mesh: goes on from the last of them.
  last = max(steps)
  end = [f"--config.vae_training.optimizer.num_steps={last + 2}"]
  output = _finish(_start(tmp_path, 1, *end))[0]
  assert f"Restored step {last}" in output
  assert max(_losses(tmp_path)) == last + 2
