"""Reproduces the paper's tables, as far as weights and hardware allow.

  sculpt4d reproduce --table A2 -o runs/a2
  sculpt4d reproduce --table A1 --preset tiny -o runs/a1
  sculpt4d reproduce --table A4 --preset tiny -o runs/a4

A1 is the ablation: variants A to F and Ours-full, trained from the same start
with several seeds; A2 counts operations; A3 compares baselines that work frame
by frame with ours, by pictures; A4 samples longer clips. At the released size,
the default, it prints what is known without weights next to the paper's
figures. A small preset is trained and scored: hours on two cores, and the same
command resumes.

The output folder gets report.html and report.md with every figure, its interval
and its command.
"""

import argparse

from sculpt4d_jax.cli import compile_cache
from sculpt4d_jax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Defines the command's arguments."""
  parser.add_argument(
    "--table", required=True, metavar="NAME", help="A1, A2, A3 or A4"
  )
  options.add_preset(parser, "sculpt4d")
  parser.add_argument(
    "-o",
    "--output",
    default="reproduced",
    metavar="FOLDER",
    help="folder for runs, scores and the report; default: reproduced",
  )
  parser.add_argument(
    "--seeds",
    default="0,1,2",
    metavar="N,...",
    help="seeds of the training; default: 0,1,2",
  )
  parser.add_argument(
    "--num_steps",
    type=int,
    default=2000,
    help="training steps of each variant; default: 2000",
  )
  options.add_num_sequences(parser)
  parser.add_argument(
    "--protocol",
    metavar="NAME",
    help="what is measured, and how; default: the table's",
  )
  parser.add_argument(
    "--variants",
    default="",
    metavar="NAME,...",
    help="rows of the table to compute; default: all",
  )


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from sculpt4d_jax.io import paths
  from sculpt4d_jax.training import paper_tables

  compile_cache.use_default()
  request = paper_tables.Request(
    args.table,
    options.read_preset(args),
    paths.on_disk(args.output, "--output"),
    args.command_line,
    seeds=paper_tables.parse_seeds(args.seeds),
    num_steps=args.num_steps,
    num_clips=args.num_sequences,
    protocol=args.protocol,
    variants=tuple(filter(None, args.variants.split(","))),
  )
  print(paper_tables.reproduce(request))
