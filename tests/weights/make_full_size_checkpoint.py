r"""Writes a made-up checkpoint of Hunyuan3D 2.1 at its full size.

  python -m tests.weights.make_full_size_checkpoint --output=/large/model.fp16.ckpt

The file has the published names, shapes, nesting and dtype, 7.4 GB, and random
values; it is a PyTorch checkpoint that torch.load(weights_only=True) reads.
"""

import argparse
import hashlib
import pathlib
import time

from tests.weights import hunyuan_checkpoints as checkpoints

# Of the published list of names and shapes, sorted, "NAME AxB" a line.
NAMES_SHA256 = (
  "8a4f682262343f877e9081ea01fc8d0ea436a8b8c78d0393f93def96164b0887"
)
NUM_BYTES = 7_365_747_074


def released_shapes() -> checkpoints.Shapes:
  """Names and shapes of the released file."""
  return checkpoints.whole(
    checkpoints.DiTSizes(), checkpoints.VAESizes(), checkpoints.ViTSizes()
  )


def digest(shapes: checkpoints.Shapes) -> str:
  """Of a list of names and shapes, to be compared with NAMES_SHA256."""
  lines = [
    f"{name} {'x'.join(map(str, shape))}"
    for name, shape in sorted(shapes.items())
  ]
  return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawTextHelpFormatter
  )
  parser.add_argument("--output", type=pathlib.Path, required=True)
  parser.add_argument("--seed", type=int, default=0)
  arguments = parser.parse_args()
  if arguments.output.suffix not in (".ckpt", ".pt", ".pth", ".bin"):
    parser.error(
      f"--output {arguments.output}: expected a name that ends in .ckpt, "
      ".pt, .pth or .bin, as the converter goes by it"
    )
  start, shapes = time.monotonic(), released_shapes()
  checkpoints.write_torch(
    arguments.output, shapes, checkpoints.values(shapes, arguments.seed)
  )
  size = arguments.output.stat().st_size
  print(f"{size:,} bytes in {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
  main()
