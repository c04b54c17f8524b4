"""Registers one mesh to a sequence of meshes: one topology that moves.

  sculpt4d register out -o out/registered
  sculpt4d register out -o out/mine --mesh my.glb

The input is the folder of a sample, any folder of meshes (PLY, OBJ, STL, GLB; one
a frame), an animated GLB or a USD file. The output folder gets registered.glb
(morph targets), registered.usdc, vertices.npz and registration.json, which says
of every frame how well it was registered. Frames that failed are named.
"""

import argparse
import pathlib

from absl import logging

from sculpt4d_jax.cli import options


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Defines the command's arguments."""
  parser.add_argument(
    "input", help="folder of meshes, animated GLB or USD file"
  )
  parser.add_argument(
    "-o",
    "--output",
    default="registered",
    metavar="FOLDER",
    help="folder for the results, made if missing; default: registered",
  )
  parser.add_argument(
    "--key",
    default="auto",
    help="number of the frame whose topology is taken, or auto",
  )
  parser.add_argument(
    "--mesh", metavar="FILE", help="mesh whose topology is kept instead"
  )
  parser.add_argument(
    "--max_faces", type=int, help="face budget of the frames, at least 4"
  )


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from sculpt4d_jax.inference import outputs
  from sculpt4d_jax.inference import registering
  from sculpt4d_jax.inference import run_log
  from sculpt4d_jax.io.meshes import sequence_input

  if args.key != "auto" and not args.key.isdigit():
    raise ValueError(f"--key {args.key}: expected auto or a frame's number.")
  if args.max_faces is not None and args.max_faces < 4:
    raise ValueError(f"--max_faces {args.max_faces} must be at least 4.")
  output = pathlib.Path(args.output)
  outputs.check_writable(output)
  log = run_log.RunLog(options.progress(args))
  with log.stage("read meshes"):
    source = sequence_input.read(args.input)
    mesh = args.mesh and sequence_input.read_mesh(args.mesh)
  registered = registering.register(
    source.meshes,
    key=None if args.key == "auto" else int(args.key),
    mesh=mesh,
    max_faces=args.max_faces,
    log=log,
  )
  paths = registering.write(output, registered, source, log)
  logging.info("Wrote %d files to %s.", len(paths), output)
  print(registering.summary(registered))
