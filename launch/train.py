r"""Trains Sculpt4D: the shape autoencoder, then the 4D diffusion transformer.

The small model from nothing, on procedural clips, on this machine:

  python -m launch.train --config=configs/tiny.py --workdir=runs/tiny

The run goes through three stages: it makes the clips (`data`), trains the
autoencoder (`vae`), encodes all clips and trains the diffusion transformer
(`dit`). Interrupt it whenever you like; the same command goes on from the last
checkpoint. The finished weights are in WORKDIR/weights, which is what
launch.sample and launch.evaluate take as --checkpoint.

Watch it:    tensorboard --logdir=runs/tiny     (or read */metrics.jsonl)
Change it:   --config.dit_training.optimizer.num_steps=20000
             --config.data.num_clips=8192
One stage:   --stages=dit
On a pod:    --distributed=auto, the same command in every process, and a
             workdir that all of them see; launch/clusters/ starts them.
             config.mesh says how the devices are used.
"""

import pathlib

from absl import flags
from absl import logging
from ml_collections import config_flags

from launch import processes
from launch import program
from sculpt4d_jax.training import run
from sculpt4d_jax.training import train

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/tiny.py", "Preset; see configs/base.py for its fields."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder for data, checkpoints, metrics and weights.",
    required=True,
)
_STAGES = flags.DEFINE_list(
    "stages", list(run.STAGES), "Stages to run, of data, vae and dit."
)


def main(argv):
  del argv
  processes.initialize()
  program.log_platform()
  workdir = pathlib.Path(_WORKDIR.value)
  logging.info("Preset %s, into %s.", _CONFIG.value.name, workdir)
  try:
    run.run(_CONFIG.value, workdir, _STAGES.value)
  except train.LostProcessError as error:
    processes.leave(error)
  logging.info("Done. The weights are in %s.", workdir / "weights")


if __name__ == "__main__":
  program.run(main)
