r"""Compiles training and sampling for TPUs that are not here, and says if it fits.

  pip install "jax[tpu]"
  python -m launch.compile_check --config=configs/sculpt4d.py \
      --topology=v5p:4x4x4 --config.mesh.context=4

The real training step and the real sampler of the preset, or with
--what=train_vae the step of its autoencoder's training, are compiled for the named
slice by the TPU compiler, which needs no TPU. Printed are the memory of a
chip by kind, the work of a step, the collectives and their bytes, and bounds of
the time of a step; see `sculpt4d_jax/training/ahead_of_time/report.py` for what they mean.
Exit code 0 says that all of it fits the chip, 1 that it does not.

Several slices: --slices=2 --config.mesh.data=2 compiles for two of them, and
counts the collectives on the network that each needs.

A quicker look, some percent off in memory, with fewer of the compiler's passes:
  JAX_OPTIMIZATION_LEVEL=O0 python -m launch.compile_check ...
"""

import json
import os
import time

from absl import flags
from absl import logging
from ml_collections import config_flags

from launch import program
from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import atomic

# Before libtpu starts: no cloud to ask about this machine, and others here may
# be compiling too.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/sculpt4d.py", "Preset; see configs/base.py."
)
_TOPOLOGY = flags.DEFINE_string(
  "topology", "v5p:4x4x4", "Kind and shape of a slice, as v6e:16x16."
)
_SLICES = flags.DEFINE_integer(
  "slices",
  1,
  "Slices, joined by the data centre's network; divides config.mesh.data.",
  lower_bound=1,
)
_WHAT = flags.DEFINE_list(
  "what",
  ["train", "sample"],
  "What to compile, of train, sample, train_vae (the autoencoder's) and"
  " distill (of configs/distilled.py).",
)
_MAX_GB = flags.DEFINE_float(
  "max_gb",
  None,
  "Fails above so many GB (10^9 bytes) a chip; default: the chip's memory.",
)
_JSON = flags.DEFINE_string("json", None, "File for the figures, if wanted.")


def main(argv):
  del argv
  from sculpt4d_jax.training import preset as preset_lib
  from sculpt4d_jax.training.ahead_of_time import report as compiled
  from sculpt4d_jax.training.ahead_of_time import shapes

  makers = {
    "train": shapes.dit_training_step,
    "sample": shapes.sampler,
    "train_vae": shapes.vae_training_step,
    "distill": shapes.distillation_step,
  }
  unknown = set(_WHAT.value) - set(makers)
  if unknown:
    raise UserError(f"--what={sorted(unknown)}: choose among {list(makers)}.")
  preset = preset_lib.from_config(_CONFIG.value)
  chip = compiled.chip(_TOPOLOGY.value)
  mesh = partitioning.make_mesh(
    preset.mesh,
    compiled.topology_devices(_TOPOLOGY.value, _SLICES.value),
  )
  slices = partitioning.slices(mesh)
  several = f"{_SLICES.value} x " if _SLICES.value > 1 else ""
  print(f"{preset.name} on {several}{_TOPOLOGY.value}: {dict(mesh.shape)}")
  limit = chip.memory_bytes if _MAX_GB.value is None else _MAX_GB.value * 1e9
  reports = {}
  for what in _WHAT.value:
    logging.info("Compiling %s.", what)
    start = time.monotonic()
    with partitioning.use_mesh(mesh):
      function, args = makers[what](preset, mesh)
      lowered = function.lower(*args)
      executable = lowered.compile()
    seconds = time.monotonic() - start
    num_clips = shapes.num_sampled_clips(preset, mesh)
    work = compiled.model_flops(preset, what, num_clips)
    report = compiled.examine(executable, chip, work, mesh.size, slices)
    report["kernels"] = compiled.kernels(lowered)
    report["compile_seconds"] = round(seconds, 1)
    report["fits"] = report["memory_gb"]["peak"] * 1e9 <= limit
    reports[what] = report
    print(compiled.describe(what, report, limit))
    if _JSON.value:
      atomic.write_bytes(_JSON.value, json.dumps(reports, indent=1).encode())
  return 0 if all(report["fits"] for report in reports.values()) else 1


if __name__ == "__main__":
  program.run(main)
