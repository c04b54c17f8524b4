r"""Compiles splash attention for TPUs next to the kernels, ahead of time.

  python -m kernels.block_sparse_attention.bench.aot_splash \
    --chips v5p v6e --frames 16

Splash attention, of jax or of tokamax (--packages), is what a user would
otherwise take: dense, or with the same mask, of which it skips empty tiles. For
each chip, direction and mask it is compiled with tiles of several sizes, and
the fastest ones are printed with the time of a layer, its share of the chip's
peak for the exact mask, and how many times as long as ours it takes.

The estimate favours splash attention: of a tile's work only the bundles that
use the matrix units are counted, once for each tile that is not empty, and at
least the products at peak. Its other bundles, copies and memory stalls are left
out. A tile's bundles do not depend on the length of the clip, so a clip of 8
frames is compiled and the tiles of the full one are counted.

Needs libtpu: pip install "jax[tpu]". Nothing is run.
"""

import argparse
from collections.abc import Callable, Sequence
import importlib
import itertools
import pathlib
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .. import mask as mask_lib
from .. import shapes
from ..tpu import tiles as tpu_tiles
from . import aot_tpu
from . import peers
from . import tpu_schedule

_COMPILED_FRAMES = 8  # Distances with all strides of the default schedule.
_PRODUCTS = {"fwd": 2, "dkv": 4, "dq": 3, "fused": 5}
_KERNELS = {"forward": (("fwd",),), "backward": (("dkv", "dq"), ("fused",))}


class Tile(NamedTuple):
  """Queries and keys of a tile of splash attention."""

  queries: int
  keys: int


class Estimate(NamedTuple):
  """A direction's estimate: milliseconds of a layer, kernels, their tile."""

  milliseconds: float
  kernels: tuple[str, ...]
  tile: Tile


def count_tiles(mask: mask_lib.Mask, tokens_per_frame: int, tile: Tile) -> int:
  """Number of tiles of a head in which something is seen.

  Args:
    mask: The mask.
    tokens_per_frame: Tokens of a frame, in bit-reversed order of blocks.
    tile: Multiples of a block, which divide the clip.
  """
  size = tokens_per_frame // mask.blocks_per_frame
  blocks = mask.dense_blocks("bit_reversed")
  rows, columns = tile.queries // size, tile.keys // size
  grid = blocks.reshape(
    len(blocks) // rows, rows, len(blocks) // columns, columns
  )
  return int(grid.any((1, 3)).sum())


def tile_cycles(
  listing: str, kernel: str, tile: Tile, head_dim: int, chip: str
) -> float:
  """Cycles of a tile: bundles of the matrix units, or the products at peak.

  Args:
    listing: Final bundles of the kernel.
    kernel: Key of `_PRODUCTS`.
    tile: The tile that it was compiled for.
    head_dim: Width of a head.
    chip: "v5e", "v5p" or "v6e".
  """
  blocks = tpu_schedule.read_blocks(listing)
  bundles = sum(block.length for block in blocks if block.num_products)
  flops = _PRODUCTS[kernel] * 2 * tile.queries * tile.keys * head_dim
  return max(bundles, flops / tpu_schedule.PEAKS[chip].flops_per_cycle)


def _splash(
  package: str,
  shape: shapes.AttentionShape,
  tile: Tile,
  is_dense: bool,
  is_fused: bool,
) -> Callable[..., jax.Array]:
  """A package's splash attention of one head."""
  if package == "tokamax":
    module = "tokamax._src.ops.experimental.tpu.splash_attention."
    masks = importlib.import_module(module + "splash_attention_mask")
    splash = importlib.import_module(module + "splash_attention_kernel")
  else:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    masks = splash.splash_attention_mask
  if is_dense:
    mask = masks.FullMask((shape.num_tokens, shape.num_tokens))
  else:
    mask = peers.splash_mask(masks, shape)
  sizes = dict(
    block_q=tile.queries,
    block_kv=tile.keys,
    block_q_dkv=tile.queries,
    block_kv_dkv=tile.keys,
    block_q_dq=None if is_fused else tile.queries,
    block_kv_dq=None if is_fused else tile.keys,
    use_fused_bwd_kernel=is_fused,
  )
  if package == "tokamax":
    # Its backward pass is fused, and says so in either direction.
    sizes |= dict(block_q_dq=None, block_kv_dq=None, use_fused_bwd_kernel=True)
    return splash._make_splash_attention(
      mask, config=splash.SplashConfig(**sizes), is_mqa=False, q_seq_shards=1
    )
  return splash.make_splash_mha_single_device(
    masks.MultiHeadMask([mask]), block_sizes=splash.BlockSizes(**sizes)
  )


def compile_splash(
  package: str,
  chip: str,
  kernels: Sequence[str],
  shape: shapes.AttentionShape,
  tile: Tile,
  *,
  is_dense: bool,
) -> None:
  """Compiles it for one head; libtpu then lists its bundles.

  Args:
    package: "jax" or "tokamax".
    chip: "v5e", "v5p" or "v6e".
    kernels: One of the ways in `_KERNELS`.
    shape: The clip and its mask.
    tile: Tile of all kernels.
    is_dense: Whether everything sees everything.

  Raises:
    jax.errors.JaxRuntimeError: The tile does not fit the fast memory.
  """
  attend = _splash(package, shape, tile, is_dense, "fused" in kernels)
  if kernels == ("fwd",):
    function = attend
  else:
    function = lambda q, k, v, g: jax.vjp(attend, q, k, v)[1](g)
  sharding = jax.sharding.SingleDeviceSharding(aot_tpu.devices(chip)[0])
  array = jax.ShapeDtypeStruct(
    (1, shape.num_tokens, shape.head_dim), jnp.bfloat16, sharding=sharding
  )
  arguments = [array] * (3 if kernels == ("fwd",) else 4)
  jax.jit(function).lower(*arguments).compile()


def estimate(
  package: str,
  chip: str,
  direction: str,
  call: aot_tpu.Call,
  tiles: Sequence[Tile],
  folder: pathlib.Path,
) -> Estimate | None:
  """The fastest way of splash attention; None if no tile compiles.

  Args:
    package: "jax" or "tokamax".
    chip: "v5e", "v5p" or "v6e".
    direction: "forward", or "backward" for only the gradients.
    call: The attention call.
    tiles: Tiles to try.
    folder: Folder into which `aot_tpu.prepare` has libtpu write.
  """
  mask = call.mask
  is_dense = mask.density() == 1.0
  shape = shapes.AttentionShape(
    batch=1,
    num_frames=_COMPILED_FRAMES,
    tokens_per_frame=call.tokens_per_frame,
    blocks_per_frame=mask.blocks_per_frame,
    heads=1,
    head_dim=call.head_dim,
  )
  peak = tpu_schedule.PEAKS[chip]
  found = []
  ways = _KERNELS[direction]
  if package == "tokamax":
    ways = ways[-1:]
  for kernels, tile in itertools.product(ways, tiles):
    for old in folder.glob("*splash*"):
      old.unlink()
    try:
      compile_splash(package, chip, kernels, shape, tile, is_dense=is_dense)
    except Exception as error:  # Mosaic and XLA raise many types.
      print(f"  {chip} {direction} {tile}: {str(error).splitlines()[0][:100]}")
      continue
    cycles = sum(
      tile_cycles(
        tpu_schedule.find_listing(folder, f"splash_mha_{_listed(kernel)}"),
        kernel,
        tile,
        call.head_dim,
        chip,
      )
      for kernel in kernels
    )
    count = count_tiles(mask, call.tokens_per_frame, tile)
    heads = call.heads / peak.cores
    found.append(
      Estimate(1e3 * heads * count * cycles / peak.clock, kernels, tile)
    )
  return min(found, default=None)


def _listed(kernel: str) -> str:
  """The word for a kernel in the names of its listings."""
  return "dkv" if kernel == "fused" else kernel


def main(argv: list[str] | None = None) -> None:
  """Runs the program."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  directions = ["forward", "backward"]
  chips = list(aot_tpu.TOPOLOGIES)
  parser.add_argument("--chips", nargs="+", choices=chips, default=chips)
  parser.add_argument(
    "--packages", nargs="+", choices=["jax", "tokamax"], default=["jax"]
  )
  parser.add_argument("--frames", nargs="+", type=int, default=[16])
  parser.add_argument(
    "--directions", nargs="+", choices=directions, default=directions
  )
  aot_tpu.add_sizes(parser)
  parser.add_argument(
    "--tiles",
    nargs="+",
    default=["256x256", "512x512", "1024x512", "1024x1024", "2048x1024"],
    help="Queries x keys of a tile.",
  )
  parser.add_argument(
    "--ours",
    action=argparse.BooleanOptionalAction,
    default=True,
    help="Compile our kernels too, for the ratio.",
  )
  args = parser.parse_args(argv)
  tiles = [Tile(*map(int, text.split("x"))) for text in args.tiles]
  print(
    f"{args.heads} heads x {args.head_dim}, {args.tokens_per_frame} tokens a"
    f" frame, jax {jax.__version__}, libtpu {aot_tpu.libtpu_version()}"
  )
  print(
    f"{'package':9}{'mask':7}{'chip':5}{'frames':>7} {'direction':10}{'splash ms':>10}"
    f"{'share':>7}{'ours ms':>9}{'ratio':>7}  kernels, tile"
  )
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    aot_tpu.prepare(folder)
    for chip, frames, direction, what in itertools.product(
      args.chips, args.frames, args.directions, ("paper", "dense")
    ):
      call = aot_tpu.make_call(
        what,
        frames,
        args.blocks_per_frame,
        heads=args.heads,
        tokens_per_frame=args.tokens_per_frame,
        head_dim=args.head_dim,
      )
      own = float("nan")
      if args.ours:
        own = aot_tpu.check(
          chip,
          direction,
          call,
          tiles=tpu_tiles.default(chip, call.dtype),
          folder=folder,
        )["estimate_ms"]
      for package in args.packages:
        best = estimate(package, chip, direction, call, tiles, folder)
        line = f"{package:9}{what:7}{chip:5}{frames:7} {direction:10}"
        print(line + _columns(best, own, chip, direction, call), flush=True)


def _columns(
  best: Estimate | None,
  own_ms: float,
  chip: str,
  direction: str,
  call: aot_tpu.Call,
) -> str:
  if best is None:
    return "does not compile"
  peak = tpu_schedule.PEAKS[chip]
  flops = (5 if direction == "backward" else 2) * 2 * call.head_dim
  flops *= call.mask.density() * call.heads * float(call.shape[2]) ** 2
  roofline = 1e3 * flops / peak.cores / peak.flops_per_cycle / peak.clock
  return (
    f"{best.milliseconds:10.2f}{roofline / best.milliseconds:7.1%}"
    f"{own_ms:9.2f}{best.milliseconds / own_ms:7.2f}"
    f"  {'+'.join(best.kernels)}, {best.tile.queries} x {best.tile.keys}"
  )


if __name__ == "__main__":
  main()
