"""Scores mesh sequences against the true ones, or a model on held-out clips.

  sculpt4d evaluate out/demo truth/demo           two sequences
  sculpt4d evaluate results truth                 folders of them, by name
  sculpt4d evaluate --preset tiny --num_sequences 20

A sequence is a folder with frame_0000.ply, frame_0001.ply and so on, or an
animated GLB or USD file. The last form samples procedural clips that the model
never saw, and scores the same weights with temporal attention off and two
answers that need no model.

Printed are Chamfer distance, IoU, F-Score and jitter with 95 % intervals, and
the conventions that they depend on.
"""

import argparse
import json

from sculpt4d_jax.cli import options
from sculpt4d_jax.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Defines the command's arguments."""
  parser.add_argument(
    "predicted", nargs="?", help="predicted sequence, or a folder of them"
  )
  parser.add_argument("truth", nargs="?", help="the true ones, likewise")
  options.add_preset(parser)
  options.add_weights(parser)
  parser.add_argument(
    "--num_sequences",
    type=int,
    default=20,
    help="held-out clips; default: 20",
  )
  parser.add_argument(
    "-o", "--output", metavar="FILE.json", help="file for every number"
  )
  parser.add_argument(
    "--markdown", action="store_true", help="print tables in Markdown"
  )


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from sculpt4d_jax import api
  from sculpt4d_jax.evaluation import evaluator
  from sculpt4d_jax.evaluation import geometry_metrics
  from sculpt4d_jax.io import atomic

  if bool(args.predicted) != bool(args.truth):
    raise UserError(
      "Two sequences are compared: give the predicted and the true one, or"
      " neither to evaluate a model on held-out clips."
    )
  conventions = geometry_metrics.Conventions()
  progress = options.progress(args)
  if args.predicted:
    summary = api.evaluate(
      args.predicted, args.truth, conventions=conventions, progress=progress
    )
    rows = {"prediction": summary}
  else:
    config = options.read_preset(args)
    model = api.load(config, args.weights, progress=progress)
    rows = model.evaluate(
      args.num_sequences, conventions=conventions, progress=progress
    )
  for title, summary in rows.items():
    if len(summary.sequences) > 1:
      print(f"{title}, by sequence:\n")
      print(evaluator.format_sequences(summary, markdown=args.markdown), "\n")
  print(evaluator.format_table(rows, markdown=args.markdown))
  print(f"\nConventions: {conventions.describe()}.")
  if args.output:
    text = json.dumps(
      evaluator.to_json(rows, conventions), indent=2, allow_nan=False
    )
    atomic.write_bytes(args.output, f"{text}\n".encode())
