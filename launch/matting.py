r"""Lists matting networks that are known to work, and downloads them.

  python -m launch.matting
  python -m launch.matting --download=isnet --folder=networks
  python -m launch.sample --input=my.mp4 --output=out \
      --matte=onnx:networks/isnet.tgz

The networks are by other authors, under the listed licences; none is part of
this project. Downloads are checked against a recorded hash. Running a network
needs the package onnxruntime (the extra "matting").
"""

from collections.abc import Sequence

from absl import flags

from launch import program
from sculpt4d_jax.io import paths
from sculpt4d_jax.io.matting import networks

_DOWNLOAD = flags.DEFINE_string(
  "download", None, "Name of the network to download; by default none."
)
_FOLDER = flags.DEFINE_string("folder", "networks", "Folder of downloads.")


def main(argv: Sequence[str]):
  """Runs the program."""
  del argv
  if _DOWNLOAD.value:
    network = networks.find(_DOWNLOAD.value)
    path = networks.download(network, paths.on_disk(_FOLDER.value, "--folder"))
    print(f"Use it with --matte=onnx:{path}; its licence is {network.licence}.")
    return
  print("\n".join(networks.table("python -m launch.matting --download")))


if __name__ == "__main__":
  program.run(main)
