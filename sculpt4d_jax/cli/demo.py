"""Makes meshes of the clip that is shipped, with the small model.

  sculpt4d demo
  sculpt4d demo -o out/other --set sampling.temperature=0.25 --seed 1

It takes a minute or two on a CPU. Open the viewer.html that it names.
"""

import argparse

from sculpt4d_jax.cli import sample


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Defines the command's arguments."""
  parser.add_argument(
    "-o",
    "--output",
    default="out/demo",
    metavar="FOLDER",
    help="folder for the results; default: out/demo",
  )
  sample.add_settings(parser)


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  from sculpt4d_jax import shipped

  args.clip = str(shipped.demo_clip())
  return sample.run(args)
