"""Two real processes train one model: same losses, stop together, resume.

And sample one clip.
"""

import signal
import sys

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


_SHARED_CLIP = """
import sys
import jax
jax.distributed.initialize(f"localhost:{sys.argv[1]}", 2, int(sys.argv[2]))
from jax.experimental import multihost_utils
multihost_utils.sync_global_devices("joined")
import numpy as np
from sculpt4d_jax.inference import model as model_lib
from tests.inference import small_models
from tests.integration import micro
config = model_lib.SamplingConfig(
  **micro.get_config().sampling.to_dict()
  | dict(solver="ab2", num_frames=4, num_steps=4)
)
images = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), np.uint8)
model = small_models.random_model(devices=jax.devices())
known = {1: model.draw_noise(5, 4)[1]}
found = model.sample(images, config, known_frames=known)
expected = small_models.random_model().sample(images, config, known_frames=known)
assert model._transformer.mesh.devices.size == 4
np.testing.assert_allclose(found, expected, atol=1e-4)
try:
  model.sample(images[:3], config)  # Three frames of two heads.
except ValueError as error:
  print(error)
"""


def test_two_processes_sample_one_clip_as_one(tmp_path):
  script = tmp_path / "shared.py"
  script.write_text(_SHARED_CLIP)
  port = str(runs.free_port())
  processes = [
    runs.Process(
      [sys.executable, str(script), port, number],
      cwd=runs.conftest.ROOT,
      env=runs.environment(2) | {"PYTHONPATH": "."},
    )
    for number in "01"
  ]
  for output in runs.finish(processes, 0):
    # Two branches of guidance fill one process's devices alone.
    assert "2 processes cannot share 3 frames" in output
