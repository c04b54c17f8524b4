"""Registers one mesh to a sequence of meshes: one topology that moves.

  sculpt4d register out -o out/registered
  sculpt4d register out -o out/mine --mesh my.glb

The input is the folder of a sample, any folder of meshes (PLY, OBJ, STL, GLB;
one a frame), an animated GLB or a USD file. The output folder gets
registered.glb (morph targets), registered.usdc, vertices.npz and
registration.json, which states how well each frame was registered. Frames that
failed are named.

With --video the mesh gets colours from the clip that was sampled, and the
folder an overlay of the mesh on the video; with --bones a skeleton
(registered_skin.glb, registered.bvh). Both add a figure, a viewer page and a
turntable.
"""

import argparse

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
    "--mesh",
    metavar="FILE",
    help="your mesh, which is moved instead; a GLB's materials and skeleton"
    " are kept",
  )
  parser.add_argument(
    "--max_faces", type=int, help="face budget of the frames, at least 4"
  )
  parser.add_argument(
    "--one_topology",
    action="store_true",
    help="show all frames by one mesh, also those that it cannot show well",
  )
  parser.add_argument(
    "--video", metavar="CLIP", help="clip that was sampled, for colours"
  )
  parser.add_argument(
    "--matte", default="auto", help="cut-out of the clip; default: auto"
  )
  parser.add_argument("--start", type=float, help="first second used")
  parser.add_argument("--end", type=float, help="last second used")
  parser.add_argument(
    "--texture",
    choices=("first", "all", "none"),
    default="all",
    help="frames that give colours; default: all",
  )
  parser.add_argument(
    "--shading",
    choices=("unlit", "lit"),
    default="unlit",
    help="keep the filmed light, or divide it out; default: unlit",
  )
  parser.add_argument(
    "--bones", default="0", help="number of bones, auto, or 0 for none"
  )


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from sculpt4d_jax.inference import register_run
  from sculpt4d_jax.inference import run_log

  video = None
  if args.video:
    video = register_run.Video(args.video, args.matte, args.start, args.end)
  made = register_run.run(
    args.input,
    args.output,
    run_log.RunLog(options.progress(args)),
    key=args.key,
    mesh=args.mesh,
    max_faces=args.max_faces,
    one_topology=args.one_topology,
    video=video,
    bones=args.bones,
    texture=args.texture,
    shading=args.shading,
  )
  logging.info("Wrote %d files to %s.", len(made.files), args.output)
  print(made.summary)
