"""Lists matting networks that are known to work, and downloads them.

  sculpt4d matting
  sculpt4d matting --download isnet --folder networks
  sculpt4d sample my.mp4 --matte onnx:networks/isnet.tgz

Networks are the work of others, under the licences listed; none is part of this
project. A download is checked against a recorded hash. Running a network needs
the extra "matting".
"""

import argparse

from sculpt4d_jax.io import paths


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Defines the command's arguments."""
  parser.add_argument(
    "--download", metavar="NAME", help="network to download; default: none"
  )
  parser.add_argument(
    "--folder", default="networks", help="folder of downloads"
  )


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from sculpt4d_jax.io.matting import networks

  if not args.download:
    print("\n".join(networks.table("sculpt4d matting --download")))
    return
  network = networks.find(args.download)
  path = networks.download(network, paths.on_disk(args.folder, "--folder"))
  print(f"Use it with --matte onnx:{path}; its licence is {network.licence}.")
