r"""Compares kernels for the dense attention of a frame on TPUs, ahead of time.

  python -m kernels.block_sparse_attention.bench.aot_dense --chips v5p v6e

Besides attention over time, a layer has spatial attention, from the tokens of a
frame to each other, and cross-attention, to the frame's context. Neither number
of tokens is a multiple of anything: kernels fill them up to whole tiles, and
segment ids keep the padding out of the softmax. Candidates are splash attention
of jax and of tokamax and flash attention of jax, with tiles of several sizes,
and for spatial attention our kernels with a dense mask, which take the tokens
without the last one.

For each candidate two times of a layer are printed, with their shares of the
peak of the matrix units for the products without padding. "least" counts, of
every tile, the bundles that use the matrix units and at least the products at
peak; "most" also counts all other bundles of the loop over tiles, each time,
although some run for the first and the last tile of a row only. Memory stalls
are left out. Our kernels have one estimate, which counts everything.

Needs libtpu: pip install "jax[tpu]". Nothing is run.
"""

import argparse
from collections.abc import Callable
import importlib
import itertools
import pathlib
import tempfile
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .. import mask as mask_lib
from ..tpu import tiles as tpu_tiles
from . import aot_tpu
from . import tpu_schedule

# Queries and keys of a frame: 4096 latents and the token of the time; the
# context of an image has 37 x 37 patches and one token more.
CASES = {"spatial": (4097, 4097), "cross": (4097, 1370)}
_BLOCKS_PER_FRAME = 32
# Products of a tile, by a word of the kernel's name.
_SPLASH_PRODUCTS = {
  "forward": {"splash*fwd": 2},
  "backward": {"splash*dkv": 5},
}
_FLASH_PRODUCTS = {
  "forward": {"flash": 2},
  "backward": {"flash*dkv": 4, "flash*dq": 3},
}


class Tile(NamedTuple):
  """Sizes of a tile, in tokens.

  Attributes:
    queries: Queries of a tile.
    keys: Keys of a tile.
    compute: Keys that are computed with at once, a divisor of `keys`.
  """

  queries: int
  keys: int
  compute: int


class Estimate(NamedTuple):
  """Milliseconds of a layer: a lower bound and an upper bound."""

  least: float
  most: float


def padded(num_tokens: int, size: int) -> int:
  """Tokens after padding to whole tiles."""
  return -(-num_tokens // size) * size


def estimate_listing(
  listing: str, products: int, tile: Tile, head_dim: int, chip: str
) -> tuple[float, float]:
  """Cycles of a tile, at least and at most.

  Args:
    listing: Final bundles of the kernel.
    products: Products of queries and keys that the kernel computes.
    tile: The tile that it was compiled for.
    head_dim: Width of a head.
    chip: "v5e", "v5p" or "v6e".
  """
  blocks = tpu_schedule.read_blocks(listing)
  bundles = sum(block.length for block in blocks if block.num_products)
  others = sum(
    block.length for block in blocks if block.loops and not block.num_products
  )
  flops = products * 2 * tile.queries * tile.keys * head_dim
  least = max(bundles, flops / tpu_schedule.PEAKS[chip].flops_per_cycle)
  return least, least + others


def _segments(
  module: object, num_tokens: tuple[int, int], case: tuple[int, int]
) -> object:
  ids = [
    (jnp.arange(total) >= real).astype(jnp.int32)
    for total, real in zip(num_tokens, case)
  ]
  # Padding queries may attend; they are cut off.
  return module.SegmentIds(jnp.zeros_like(ids[0]), ids[1])


def _splash(
  package: str, case: tuple[int, int], tile: Tile
) -> Callable[..., jax.Array]:
  """A package's splash attention of one head, [1, tokens, K]."""
  shape = padded(case[0], tile.queries), padded(case[1], tile.keys)
  sizes = dict(
    block_q=tile.queries,
    block_kv=tile.keys,
    block_kv_compute=tile.compute,
    block_q_dkv=tile.queries,
    block_kv_dkv=tile.keys,
    block_kv_dkv_compute=tile.compute,
    use_fused_bwd_kernel=True,
  )
  if package == "tokamax":
    module = "tokamax._src.ops.experimental.tpu.splash_attention."
    masks = importlib.import_module(module + "splash_attention_mask")
    splash = importlib.import_module(module + "splash_attention_kernel")
    attend = splash._make_splash_attention(
      masks.FullMask(shape),
      config=splash.SplashConfig(**sizes),
      is_mqa=False,
      q_seq_shards=1,
    )
  else:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    attend = splash.make_splash_mha_single_device(
      splash.MultiHeadMask([splash.FullMask(shape)]),
      block_sizes=splash.BlockSizes(**sizes),
    )
  return lambda *xs: attend(*xs, _segments(splash, shape, case))


def _flash(case: tuple[int, int], tile: Tile) -> Callable[..., jax.Array]:
  """Jax's flash attention of one head, [1, tokens, K]."""
  from jax.experimental.pallas.ops.tpu import flash_attention as flash

  shape = padded(case[0], tile.queries), padded(case[1], tile.keys)
  sizes = flash.BlockSizes(
    block_b=1,
    block_q=tile.queries,
    block_k_major=tile.keys,
    block_k=tile.compute,
    block_q_major_dkv=tile.queries,
    block_q_dkv=tile.queries,
    block_k_major_dkv=tile.keys,
    block_k_dkv=tile.compute,
    block_q_dq=tile.queries,
    block_k_major_dq=tile.keys,
    block_k_dq=tile.compute,
  )

  def attend(*xs: jax.Array) -> jax.Array:
    segments = _segments(flash, shape, case)
    segments = flash.SegmentIds(*(x[None] for x in segments))
    return flash.flash_attention(
      *(x[None] for x in xs), segment_ids=segments, block_sizes=sizes
    )[0]

  return attend


def estimate(
  package: str,
  chip: str,
  direction: str,
  case: tuple[int, int],
  tile: Tile,
  *,
  rows: int,
  head_dim: int,
  folder: pathlib.Path,
) -> Estimate:
  """Compiles a candidate for one head.

  Args:
    package: "jax", "tokamax" or "flash".
    chip: "v5e", "v5p" or "v6e".
    direction: "forward", or "backward" for only the gradients.
    case: Numbers of queries and keys.
    tile: Tile of all kernels.
    rows: Heads times frames.
    head_dim: Width of a head.
    folder: Folder into which `aot_tpu.prepare` has libtpu write.

  Raises:
    Exception: The tile does not compile; Mosaic and XLA raise many types.
  """
  for old in (*folder.glob("*flash*"), *folder.glob("*splash*")):
    old.unlink()
  if package == "flash":
    attend, products = _flash(case, tile), _FLASH_PRODUCTS[direction]
  else:
    attend, products = _splash(package, case, tile), _SPLASH_PRODUCTS[direction]
  function = attend
  if direction == "backward":
    function = lambda q, k, v, g: jax.vjp(attend, q, k, v)[1](g)
  sharding = jax.sharding.SingleDeviceSharding(aot_tpu.devices(chip)[0])
  query, key = (
    jax.ShapeDtypeStruct((1, total, head_dim), jnp.bfloat16, sharding=sharding)
    for total in (padded(case[0], tile.queries), padded(case[1], tile.keys))
  )
  arguments = (query, key, key) + (query,) * (direction == "backward")
  jax.jit(function).lower(*arguments).compile()
  cycles = [
    estimate_listing(
      tpu_schedule.find_listing(folder, kernel),
      number,
      tile,
      head_dim,
      chip,
    )
    for kernel, number in products.items()
  ]
  peak = tpu_schedule.PEAKS[chip]
  steps = query.shape[1] // tile.queries * (key.shape[1] // tile.keys)
  factor = 1e3 * rows / peak.cores * steps / peak.clock
  return Estimate(*(factor * sum(x) for x in zip(*cycles)))


def roofline(
  chip: str, direction: str, case: tuple[int, int], rows: int, head_dim: int
) -> float:
  """Milliseconds of the products without padding, at the chip's peak."""
  peak = tpu_schedule.PEAKS[chip]
  flops = (10 if direction == "backward" else 4) * rows * head_dim
  flops *= case[0] * case[1]
  return 1e3 * flops / peak.cores / peak.flops_per_cycle / peak.clock


def _ours(
  chip: str, direction: str, args: argparse.Namespace, folder: pathlib.Path
) -> Estimate:
  """Our kernels with a dense mask, a frame without its last token."""
  tokens = CASES["spatial"][0] - 1
  call = aot_tpu.Call(
    mask_lib.BlockMask.dense(1, _BLOCKS_PER_FRAME),
    heads=args.heads,
    tokens_per_frame=tokens,
    head_dim=args.head_dim,
  )
  tiles = tpu_tiles.default(chip, call.dtype)
  found = aot_tpu.check(chip, direction, call, tiles=tiles, folder=folder)
  return Estimate(*[args.frames * found["estimate_ms"]] * 2)


def main(argv: list[str] | None = None) -> None:
  """Runs the program."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  directions = ["forward", "backward"]
  packages = ["jax", "tokamax", "flash", "ours"]
  chips = list(aot_tpu.TOPOLOGIES)
  parser.add_argument("--chips", nargs="+", choices=chips, default=chips)
  parser.add_argument(
    "--packages", nargs="+", choices=packages, default=["jax", "flash", "ours"]
  )
  parser.add_argument(
    "--cases", nargs="+", choices=list(CASES), default=list(CASES)
  )
  parser.add_argument(
    "--directions", nargs="+", choices=directions, default=directions
  )
  parser.add_argument("--heads", type=int, default=16)
  parser.add_argument("--frames", type=int, default=16)
  parser.add_argument("--head_dim", type=int, default=128)
  parser.add_argument(
    "--tiles",
    nargs="+",
    default=["384x1408x1408", "1408x1408x1408"],
    help="Queries x keys of a tile x keys computed with at once.",
  )
  args = parser.parse_args(argv)
  tiles = [Tile(*map(int, text.split("x"))) for text in args.tiles]
  print(
    f"{args.heads} heads x {args.head_dim}, {args.frames} frames, bfloat16,"
    f" jax {jax.__version__}, libtpu {aot_tpu.libtpu_version()}"
  )
  print(
    f"{'case':9}{'chip':5}{'direction':10}{'package':9}{'tile':17}"
    f"{'least ms':>9}{'share':>7}{'most ms':>9}{'share':>7}"
  )
  with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    aot_tpu.prepare(folder)
    for case, chip, direction, package in itertools.product(
      args.cases, args.chips, args.directions, args.packages
    ):
      sizes = CASES[case]
      rows = args.heads * args.frames
      peak = roofline(chip, direction, sizes, rows, args.head_dim)
      for tile in tiles if package != "ours" else [None]:
        if package == "ours" and case != "spatial":
          continue
        label = "x".join(map(str, tile)) if tile else ""
        start = f"{case:9}{chip:5}{direction:10}{package:9}{label:17}"
        try:
          if tile is None:
            found = _ours(chip, direction, args, folder)
          else:
            found = estimate(
              package,
              chip,
              direction,
              sizes,
              tile,
              rows=rows,
              head_dim=args.head_dim,
              folder=folder,
            )
        except Exception as error:  # Mosaic and XLA raise many types.
          print(f"{start} {str(error).splitlines()[0][:80]}", flush=True)
          continue
        print(
          start
          + f"{found.least:9.2f}{peak / found.least:7.1%}"
          + f"{found.most:9.2f}{peak / found.most:7.1%}",
          flush=True,
        )


if __name__ == "__main__":
  main()
