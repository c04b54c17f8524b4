r"""Trains Sculpt4D: the shape autoencoder, then the 4D diffusion transformer.

The default model from scratch, on procedural clips, on this machine, and a
smaller one in a fraction of the time:

  python -m launch.train --workdir=runs/small
  python -m launch.train --config=configs/tiny.py --workdir=runs/tiny

A run has stages: it makes the clips (`data`), trains the autoencoder (`vae`),
pretrains the image encoder if the preset says so (`pictures`), encodes all
clips and trains the diffusion transformer (`dit`). You can interrupt it at any
time; the same command resumes from the last checkpoint. The finished weights
are in WORKDIR/weights, the --checkpoint of launch.sample and launch.evaluate,
with the same --config.

On records of launch.prepare_data, from the shipped weights:

  python -m launch.train --config=configs/tiny_records.py \
    --config.records.folders=data/mine --workdir=runs/mine

Watch it:    tensorboard --logdir=runs/tiny     (or read */metrics.jsonl)
See samples: --config.dit_training.samples.every=500
Trace it:    --config.dit_training.profile=100,5
Adapt it:    --config.dit_training.lora.rank=16 \
             --config.dit_training.init_from=WEIGHTS
Change it:   --config.dit_training.optimizer.num_steps=20000
             --config.data.num_clips=8192
One stage:   --stages=dit
On a pod:    --distributed=auto, the same command in every process, and a
             workdir that all of them see; launch/clusters/ starts them.
In a bucket: --workdir=gs://BUCKET/runs/tiny, or s3://..., see docs/storage.md.
             config.mesh sets the device mesh.
After a fault, the same command resumes; docs/training.md describes SIGTERM,
full disks and lost processes.
"""

from collections.abc import Sequence

from absl import flags
from absl import logging
from ml_collections import config_flags

from launch import processes
from launch import program
from sculpt4d_jax.cli import compile_cache
from sculpt4d_jax.io import paths
from sculpt4d_jax.training import loop
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.stages import runner as stages

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/small.py", "Preset; see configs/base.py for its fields."
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Folder for data, checkpoints, metrics and weights.",
  required=True,
)
_STAGES = flags.DEFINE_list(
  "stages",
  list(stages.STAGES),
  "Stages to run, of data, vae, pictures and dit; or distill by itself, which"
  " makes a model of few steps from config.distillation.init_from.",
)


def main(argv: Sequence[str]):
  """Runs the program."""
  del argv
  processes.initialize()
  workdir = paths.of(_WORKDIR.value)
  compile_cache.use(workdir / "compiled")
  program.log_platform()
  logging.info("Preset %s, into %s.", _CONFIG.value.name, workdir)
  try:
    stages.run(preset_lib.from_config(_CONFIG.value), workdir, _STAGES.value)
  except loop.LostProcessError as error:
    processes.leave(error)
  logging.info("Done. %s", stages.describe_results(workdir, _STAGES.value))


if __name__ == "__main__":
  program.run(main)
