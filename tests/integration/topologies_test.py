"""Two and four real processes train as one, and read what any other saved."""

import json
import subprocess
import sys

import numpy as np
import pytest

from tests import conftest
from tests.integration import topologies
from tests.integration import train_processes as runs

# Each of nine meshes compiles the step.
pytestmark = [pytest.mark.slow, pytest.mark.long]

# Compiling takes longer than all that is computed, and is not shared: jax's
# cache has another key for every process.
_QUICK = {
  "XLA_FLAGS": "--xla_backend_optimization_level=0"
  " --xla_llvm_disable_expensive_passes=true"
  " --xla_cpu_parallel_codegen_split_count=1"
  " --xla_cpu_use_fusion_emitters=false"
  " --xla_cpu_prefer_vector_width=128"
}


def _start(workdir, phase, num_processes):
  """Starts a phase in as many processes."""
  port = runs.free_port()
  return [
    subprocess.Popen(
      [
        sys.executable,
        "-m",
        "tests.integration.topologies",
        str(workdir),
        phase,
        str(port),
        str(num_processes),
        str(index),
      ],
      cwd=conftest.ROOT,
      env=runs.environment() | _QUICK,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
    )
    for index in range(num_processes)
  ]


def _losses(folder):
  lines = (folder / "metrics.jsonl").read_text().splitlines()
  records = [r for r in map(json.loads, lines) if "train/loss" in r]
  return {r["step"]: r["train/loss"] for r in records}


def _check_equal(name, many, one):
  """The losses of some steps are one process's; says how nearly."""
  steps = sorted(many)
  many, one = (np.array([losses[s] for s in steps]) for losses in (many, one))
  print(f"{name}: {np.max(np.abs(many / one - 1)):.1e} from one process's")
  np.testing.assert_allclose(many, one, rtol=1e-5)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """Folder in which all meshes have gone through both phases."""
  workdir = tmp_path_factory.mktemp("topologies")
  for phase in ("train", "restore"):
    # One process alone, and processes that wait for each other, leave cores
    # idle: so all at once.
    started = [_start(workdir, phase, count) for count in topologies.MESHES]
    runs.finish(sum(started, []), timeout=1800)
  return workdir


@pytest.mark.parametrize("name", topologies.names()[1:])
def test_every_mesh_has_the_losses_of_one_process(trained, name):
  one, many = _losses(trained / "one"), _losses(trained / name)
  assert sorted(one) == sorted(many) == [1, 2, 3, 4]
  _check_equal(name, many, one)


@pytest.mark.parametrize("name", topologies.names())
def test_every_mesh_reads_every_checkpoint_to_the_bit(trained, name):
  """The digests of what all meshes read of a checkpoint are one."""
  own = json.loads((trained / f"{name}_digests.json").read_text())
  one = json.loads((trained / "one_digests.json").read_text())
  assert sorted(own) == sorted(topologies.names())
  assert own == one
  print(f"{name}: has read {len(own)} checkpoints")
  assert len(set(own.values())) > 1  # Meshes round differently.


@pytest.mark.parametrize("name", topologies.continued())
def test_it_goes_on_from_what_other_processes_saved(trained, name):
  one, resumed = _losses(trained / "one"), _losses(trained / f"{name}_resumed")
  assert sorted(resumed) == [3, 4]
  _check_equal(f"{name}, after another", resumed, one)
