"""Scores mesh sequences against the true ones, or a model on held-out clips.

  sculpt4d evaluate out/demo truth/demo           two sequences
  sculpt4d evaluate results truth                 folders of them, by name
  sculpt4d evaluate results truth --protocol actionbench --processes 2
  sculpt4d evaluate --num_sequences 20            the default model
  sculpt4d evaluate --describe                    conventions of every protocol

A sequence is a folder with a PLY, OBJ or GLB file a frame, an animated GLB, USD
or Alembic file, or a .npy cloud of tracked points. Without sequences, the model
of --preset is sampled on held-out procedural clips. It is compared with the
same weights without temporal attention, and with two answers that need no
model.

The output is a protocol's columns with 95 % intervals, and the conventions that
they depend on.
"""

import argparse
import json

from sculpt4d_jax.cli import compile_cache
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
  options.add_num_sequences(parser)
  parser.add_argument(
    "--protocol",
    default="project",
    metavar="NAME",
    help="what is measured, and how; default: project",
  )
  parser.add_argument(
    "--describe",
    action="store_true",
    help="print the conventions of every protocol and stop",
  )
  parser.add_argument(
    "--processes",
    type=int,
    default=1,
    metavar="N",
    help="processes that share the clips; default: 1",
  )
  parser.add_argument(
    "--picture_weights",
    metavar="FOLDER",
    help="with --protocol views: folder of the weights of its networks",
  )
  parser.add_argument(
    "--download",
    action="store_true",
    help="with --picture_weights: download VGG16 and CLIP ViT-B/32 into it",
  )
  parser.add_argument(
    "--picture_size",
    type=int,
    default=512,
    metavar="PIXELS",
    help="with --protocol views: side of the pictures; default: 512",
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
  from sculpt4d_jax.evaluation.protocols import evaluate
  from sculpt4d_jax.evaluation.protocols import protocol_table
  from sculpt4d_jax.evaluation.protocols import scores
  from sculpt4d_jax.evaluation.views import weight_downloads
  from sculpt4d_jax.io import atomic
  from sculpt4d_jax.io import output_checks

  if args.describe:
    entries = protocol_table.PROTOCOLS.values()
    print("\n\n".join(protocol.describe() for protocol in entries))
    return
  compile_cache.use_default()
  if bool(args.predicted) != bool(args.truth):
    raise UserError(
      "Two sequences are compared: give the predicted and the true one, or"
      " neither to evaluate a model on held-out clips."
    )
  if args.output:
    output_checks.check_file(args.output)
  if args.download:
    if not args.picture_weights:
      raise UserError("--download needs a folder: give --picture_weights too.")
    weight_downloads.download(args.picture_weights)
  protocol = evaluate.with_views(
    protocol_table.find(args.protocol),
    size=args.picture_size,
    weights=args.picture_weights,
  )
  progress = options.progress(args)
  if args.predicted:
    report = evaluate.evaluate(
      args.predicted,
      args.truth,
      protocol,
      processes=args.processes,
      progress=progress,
    )
    rows = {"prediction": report}
  else:
    config = options.read_preset(args)
    model = api.load(config, args.weights, progress=progress)
    rows = model.evaluate(
      args.num_sequences, protocol=protocol, progress=progress
    )
  print(scores.format_report(rows, markdown=args.markdown))
  if args.output:
    text = json.dumps(scores.to_json(rows), indent=2, allow_nan=False)
    atomic.write_bytes(args.output, f"{text}\n".encode())
