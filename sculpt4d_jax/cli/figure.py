"""Draws mesh sequences as a figure: six times by two views, the clip above.

  sculpt4d figure out/demo -o figure.png
  sculpt4d figure out/mine --video my.mp4
  sculpt4d figure ours/dog theirs/dog --video dog.mp4 --columns 8

Each input is the folder of a sample, any folder of meshes (PLY, OBJ, STL, GLB;
one a frame), an animated GLB or a USD file. Several inputs are drawn below one
another, at the same times, for comparison. Surfaces are plain; `sculpt4d
register` with --video writes a figure with the asset's colours.
"""

import argparse

from sculpt4d_jax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Defines the command's arguments."""
  parser.add_argument(
    "input",
    nargs="+",
    metavar="SEQUENCE",
    help="folder of meshes, animated GLB or USD file",
  )
  parser.add_argument(
    "-o",
    "--output",
    default="figure.png",
    metavar="FILE.png",
    help="picture; default: figure.png",
  )
  parser.add_argument(
    "--video", metavar="CLIP", help="clip for the first row: what was sampled"
  )
  parser.add_argument(
    "--matte", default="auto", help="cut-out of the clip; default: auto"
  )
  parser.add_argument(
    "--columns", type=int, default=6, help="number of times; default: 6"
  )
  parser.add_argument(
    "--size",
    type=int,
    default=256,
    metavar="PIXELS",
    help="side of each picture; default: 256",
  )
  parser.add_argument(
    "--views",
    default="0,0 60,20",
    metavar='"A,E ..."',
    help='azimuth and elevation of the views, degrees; default: "0,0 60,20"',
  )


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from sculpt4d_jax.errors import UserError
  from sculpt4d_jax.inference import figure_run
  from sculpt4d_jax.inference import preview
  from sculpt4d_jax.inference import run_log
  from sculpt4d_jax.io import output_checks
  from sculpt4d_jax.io import paths

  if not args.output.lower().endswith(".png"):
    raise UserError(f"--output={args.output}: expected a name ending in .png.")
  output_checks.check_file(args.output)
  sheet = figure_run.draw(
    args.input,
    run_log.RunLog(options.progress(args)),
    video=args.video,
    matte=args.matte,
    columns=args.columns,
    tile_size=args.size,
    views=figure_run.parse_views(args.views),
  )
  output = paths.of(args.output)
  preview.save_sheet(output, sheet)
  print(f"Look at {output}.")
