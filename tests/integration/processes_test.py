"""Two real processes train one model: same losses, stop together, resume."""

import signal

import numpy as np
import pytest

from tests.integration import train_processes as runs

pytestmark = pytest.mark.slow  # Every process compiles the step.


def test_two_processes_train_as_one(tmp_path):
  runs.run(tmp_path / "one", 1)
  runs.run(tmp_path / "two", 2)
  one, two = runs.losses(tmp_path / "one"), runs.losses(tmp_path / "two")
  assert sorted(one) == sorted(two) == [1, 2, 3, 4]
  np.testing.assert_allclose(
    [one[s] for s in sorted(one)], [two[s] for s in sorted(one)], rtol=1e-5
  )
  assert (tmp_path / "two" / "weights" / "vae.safetensors").exists()


def test_a_notice_to_one_process_saves_and_ends_both(tmp_path):
  long = ["--config.vae_training.optimizer.num_steps=100000"]
  processes = runs.start(tmp_path, 2, *long)
  runs.wait_for(lambda: runs.records(tmp_path), processes)
  processes[1].send_signal(signal.SIGTERM)
  outputs = runs.finish(processes, 143)
  assert "the state is saved" in outputs[0]
  # One process, another mesh: resumes from the last of them.
  last = max(runs.checkpoint_steps(tmp_path))
  end = [f"--config.vae_training.optimizer.num_steps={last + 2}"]
  (output,) = runs.run(tmp_path, 1, *end)
  assert f"Restored step {last}" in output
  assert max(runs.losses(tmp_path)) == last + 2
