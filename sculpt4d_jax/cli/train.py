r"""Trains a model: the shape autoencoder, then the diffusion transformer.

The default model from scratch, on procedural clips, on this machine:

  sculpt4d train --workdir runs/small

A smaller one, in a fraction of the time:

  sculpt4d train --preset tiny --workdir runs/tiny

The run makes the clips (stage `data`), trains the autoencoder (`vae`),
pretrains the image encoder if the preset says so (`pictures`), encodes all
clips and trains the diffusion transformer (`dit`). Interrupt it whenever you
like: the same command resumes from the last checkpoint. The weights are then
in WORKDIR/weights, which other commands take as --weights, with the same
--preset.

On records of animated assets, from the shipped weights:

  sculpt4d train --preset tiny_records --workdir runs/mine \
      --set records.folders=data/mine

Change it:    --set dit_training.optimizer.num_steps=20000
One stage:    --stages dit
Watch it:     tensorboard --logdir runs/tiny
"""

import argparse

from absl import logging

from sculpt4d_jax.cli import compile_cache
from sculpt4d_jax.cli import exits
from sculpt4d_jax.cli import options
from sculpt4d_jax.io import paths

# As in training/stages/runner.py, whose import takes seconds; a test compares.
STAGES = ("data", "vae", "pictures", "dit")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Defines the command's arguments."""
  options.add_preset(parser)
  parser.add_argument(
    "--workdir",
    metavar="FOLDER",
    help="folder of data, checkpoints, metrics and weights; default:"
    " runs/PRESET",
  )
  parser.add_argument(
    "--stages",
    nargs="+",
    choices=(*STAGES, "distill"),
    default=list(STAGES),
    help="stages to run; default: all but distill, which makes a model of few"
    " steps from distillation.init_from",
  )


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from sculpt4d_jax import api
  from sculpt4d_jax.training.stages import runner

  config = options.read_preset(args)
  workdir = paths.of(args.workdir or f"runs/{config.name}")
  compile_cache.use(workdir / "compiled")
  exits.log_platform()
  logging.info("Preset %s, into %s.", config.name, workdir)
  api.train(config, workdir, stages=args.stages)
  print(runner.describe_results(workdir, args.stages))
