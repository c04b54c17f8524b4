r"""Compiles training and sampling for TPUs and checks whether they fit.

  pip install "jax[tpu]"
  python -m launch.compile_check --config=configs/sculpt4d.py \
      --topology=v5p:4x4x4 --config.mesh.context=4

The TPU compiler, which needs no TPU, compiles the preset's real training step
and sampler, or with --what=train_vae the step of its autoencoder's training,
for the named slice. The program prints the memory of a chip by kind, the FLOPs
of a step, the collectives and their bytes, and bounds of the time of a step;
`sculpt4d_jax/training/ahead_of_time/report.py` explains them. The exit code is
0 if everything fits the chip and 1 if not.

Several slices: --slices=2 --config.mesh.data=2 compiles for two of them, and
counts the collectives on the network that each needs.

--search compiles the training step of the DiT in all meshes of fsdp and
context, with each of --remat_policies and as few --micro_batches as fit. It
ranks them by the bound of their MFU and prints the fields of the best one last.

Faster, with fewer compiler passes and some per cent of error in memory:
  JAX_OPTIMIZATION_LEVEL=O0 python -m launch.compile_check ...
"""

from collections.abc import Sequence
import json
import os
import time
from typing import TYPE_CHECKING, Any

from absl import flags
from absl import logging
from ml_collections import config_flags

from launch import program
from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import atomic

if TYPE_CHECKING:
  from sculpt4d_jax.training import preset as preset_lib

# Set before libtpu starts: there is no cloud metadata, and other processes may
# be compiling too.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/sculpt4d.py", "Preset; see configs/base.py."
)
_TOPOLOGY = flags.DEFINE_string(
  "topology", "v5p:4x4x4", "Kind and shape of a slice, for instance v6e:16x16."
)
_SLICES = flags.DEFINE_integer(
  "slices",
  1,
  "Number of slices, joined by the data centre's network; divides"
  " config.mesh.data.",
  lower_bound=1,
)
_WHAT = flags.DEFINE_list(
  "what",
  ["train", "sample"],
  "Programs to compile: train, sample, train_vae (the autoencoder's training)"
  " and distill (configs/distilled.py).",
)
_SEARCH = flags.DEFINE_bool(
  "search", False, "Search for the layout of the training step."
)
_REMAT_POLICIES = flags.DEFINE_list(
  "remat_policies",
  ["full", "dots_with_no_batch_dims_saveable", "none"],
  "With --search, values of model.dit.remat_policy; none keeps all.",
)
_MICRO_BATCHES = flags.DEFINE_list(
  "micro_batches",
  ["1", "2", "4"],
  "With --search, values of dit_training.optimizer.accumulation_steps.",
)
_CONTEXTS = flags.DEFINE_list(
  "contexts",
  [],
  "With --search, values of mesh.context; all that divide the step by default.",
)
_MAX_GB = flags.DEFINE_float(
  "max_gb",
  None,
  "Largest memory of a chip, GB (10^9 bytes), above which it fails; by default"
  " the chip's memory.",
)
_JSON = flags.DEFINE_string(
  "json", None, "JSON file for the figures; optional."
)


def main(argv: Sequence[str]):
  """Runs the program."""
  del argv
  from sculpt4d_jax.training import preset as preset_lib
  from sculpt4d_jax.training.ahead_of_time import report as compiled

  makers = _makers()
  unknown = set(_WHAT.value) - set(makers)
  if unknown:
    raise UserError(f"--what={sorted(unknown)}: choose among {list(makers)}.")
  preset = preset_lib.from_config(_CONFIG.value)
  devices = compiled.topology_devices(_TOPOLOGY.value, _SLICES.value)
  if _SEARCH.value:
    return _search(preset, devices)
  mesh = partitioning.make_mesh(preset.mesh, devices)
  several = f"{_SLICES.value} x " if _SLICES.value > 1 else ""
  print(f"{preset.name} on {several}{_TOPOLOGY.value}: {dict(mesh.shape)}")
  reports = {}
  for what in _WHAT.value:
    report = reports[what] = _examine(preset, what, mesh)
    print(compiled.describe(what, report, _limit()))
    _write(reports)
  return 0 if all(report["fits"] for report in reports.values()) else 1


def _makers():
  from sculpt4d_jax.training.ahead_of_time import shapes

  return {
    "train": shapes.dit_training_step,
    "sample": shapes.sampler,
    "train_vae": shapes.vae_training_step,
    "distill": shapes.distillation_step,
  }


def _limit() -> float:
  """Bytes that a chip may take."""
  from sculpt4d_jax.training.ahead_of_time import report as compiled

  if _MAX_GB.value is not None:
    return _MAX_GB.value * 1e9
  return compiled.chip(_TOPOLOGY.value).memory_bytes


def _write(content: Any) -> None:
  if _JSON.value:
    atomic.write_bytes(_JSON.value, json.dumps(content, indent=1).encode())


def _examine(preset: "preset_lib.Preset", what: str, mesh: partitioning.Mesh):
  """Compiles one program; its report."""
  from sculpt4d_jax.training.ahead_of_time import report as compiled
  from sculpt4d_jax.training.ahead_of_time import shapes

  logging.info("Compiling %s.", what)
  start = time.monotonic()
  with partitioning.use_mesh(mesh):
    function, args = _makers()[what](preset, mesh)
    lowered = function.lower(*args)
    executable = lowered.compile()
  seconds = time.monotonic() - start
  num_clips = shapes.num_sampled_clips(preset, mesh)
  work = compiled.model_flops(preset, what, num_clips)
  chip, slices = compiled.chip(_TOPOLOGY.value), partitioning.slices(mesh)
  report = compiled.examine(executable, chip, work, mesh.size, slices)
  report["kernels"] = compiled.kernels(lowered)
  report["compile_seconds"] = round(seconds, 1)
  report["fits"] = report["memory_gb"]["peak"] * 1e9 <= _limit()
  return report


def _whole_numbers(flag: flags.FlagHolder[list[str]]) -> list[int]:
  try:
    return [int(n) for n in flag.value]
  except ValueError as error:
    raise UserError(
      f"--{flag.name}={','.join(flag.value)}: expected whole numbers, as 1,2,4."
    ) from error


def _search(preset: "preset_lib.Preset", devices: Sequence[Any]) -> int:
  """Prints layouts of the training step as they are compiled, then ranked."""
  import jax

  from sculpt4d_jax.training.ahead_of_time import search

  remats = [None if r == search.KEEP_ALL else r for r in _REMAT_POLICIES.value]
  groups = search.layouts(
    preset,
    devices,
    remats,
    _whole_numbers(_MICRO_BATCHES),
    _whole_numbers(_CONTEXTS),
  )
  print(
    f"{preset.name} on {len(devices)} chips: {len(groups)} layouts, each in as"
    " few micro-batches as fit",
    flush=True,
  )

  def examine(layout: Any):
    changed = layout.apply(preset)
    mesh = partitioning.make_mesh(changed.mesh, devices)
    try:
      report = _examine(changed, "train", mesh)
    except jax.errors.JaxRuntimeError as error:
      if "RESOURCE_EXHAUSTED" not in str(error):
        raise
      print(f"{layout}: does not fit, says the compiler", flush=True)
      return None
    print(
      f"{layout}: MFU at most {report['mfu_bound']:.1%}, peak"
      f" {report['memory_gb']['peak']} GB, compiled in"
      f" {report['compile_seconds']} s",
      flush=True,
    )
    return report

  found = search.run(groups, examine)
  print(search.table(found))
  _write([{"layout": str(layout), **report} for layout, report in found])
  return 0 if found and found[0][1]["fits"] else 1


if __name__ == "__main__":
  program.run(main)
