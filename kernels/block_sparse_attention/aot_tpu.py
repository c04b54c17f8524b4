r"""Compiles the TPU kernels for chips that need not be there; says how fast.

  python -m kernels.block_sparse_attention.aot_tpu \
    --chips v5e v5p v6e --frames 16 32 64

For every chip, number of frames and direction it prints the CPU time to make
the lists of work, the wall time to trace and compile; memory; the work over the
exact mask; and from the compiler's final schedule the time of a layer, the time
that the exact mask takes at the chip's peak (the roofline), and their ratio.
See `tpu_schedule` for what the estimate contains: stalls on memory are left
out, and nothing is run.

Needs libtpu: pip install "jax[tpu]".
"""

import argparse
import os
import pathlib
import tempfile
import time

import jax
from jax.experimental import topologies
import jax.numpy as jnp

from . import mask as mask_lib
from . import pallas_tpu
from . import tpu_lists
from . import tpu_schedule
from . import tpu_tiles

_TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}


def prepare(folder: pathlib.Path) -> None:
  """Makes libtpu compile without a device and list its schedules in a folder.

  Must be called before anything loads libtpu.
  """
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  os.environ["LIBTPU_INIT_ARGS"] = " ".join([
      os.environ.get("LIBTPU_INIT_ARGS", ""),
      f"--xla_jf_dump_to={folder}",
      "--xla_jf_dump_llo_text=true",
      "--xla_jf_dump_llo_pass_label_regex=.*final.*",
  ])
  jax.config.update("jax_platforms", "cpu")


def device(chip: str):
  """One device of a chip that is compiled for.

  Raises:
    RuntimeError: libtpu is not installed or does not know the chip.
  """
  try:
    topology = topologies.get_topology_desc(
        platform="tpu", topology_name=_TOPOLOGIES[chip]
    )
  except Exception as error:  # jax raises various kinds.
    raise RuntimeError(
        f"cannot compile for {chip}; libtpu is needed: pip install 'jax[tpu]'."
        f" jax says: {error}"
    ) from error
  return topology.devices[0]


def check(
    chip: str,
    direction: str,
    mask: mask_lib.Mask,
    *,
    heads: int,
    tokens_per_frame: int,
    head_dim: int,
    tiles: tpu_tiles.TileSizes,
    folder: pathlib.Path,
) -> dict[str, float]:
  """Compiles one direction; returns what the compiler reports.

  Args:
    chip: "v5e", "v5p" or "v6e".
    direction: "forward", or "backward" for the gradients alone.
    mask: Which blocks see which; blocks in bit-reversed order.
    heads: Number of heads.
    tokens_per_frame: Tokens of a frame.
    head_dim: Width of a head.
    tiles: How the work is cut.
    folder: Where `prepare` has libtpu write to.

  Returns:
    Seconds (list: of the CPU; compile), GiB (temporary, arguments), ratio of
    the work to that of the mask, milliseconds (estimate, roofline), and their
    ratio.
  """
  shape = (1, heads, mask.num_frames * tokens_per_frame, head_dim)
  tpu_lists.make_lists.cache_clear()
  start = time.process_time()
  layout = tpu_lists.make_layout(
      mask, tokens_per_frame, tiles.piece_tokens, tiles.lanes
  )
  by_keys = direction == "backward"
  lists = tpu_lists.make_lists(
      mask, layout, tiles.tiles, tiles.stream, tiles.buffers, by_keys
  )
  list_seconds = time.process_time() - start
  start = time.perf_counter()
  compiled = _compile(chip, direction, shape, mask, tiles)
  compile_seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  peak = tpu_schedule.PEAKS[chip]
  product_flops = 2 * layout.tokens**2 * head_dim
  total = 0.0
  for work in lists:
    name = f"block_sparse_{direction}_{work.tile[0]}x{work.tile[1]}"
    blocks = tpu_schedule.read_blocks(tpu_schedule.find_listing(folder, name))
    uses = getattr(tpu_schedule, f"{direction}_uses")(work)
    total += tpu_schedule.cycles(
        blocks,
        uses,
        len(work.words),
        work.singles_per_item(),
        product_flops / peak.flops_per_cycle,
    )
  exact_units = mask.density() * (mask.num_frames * layout.segments) ** 2
  products = 5 if by_keys else 2
  exact_flops = (
      products * 2 * mask.density() * heads * shape[2] ** 2 * head_dim
  )
  estimate = heads / peak.cores * total / peak.clock
  roofline = exact_flops / peak.cores / peak.flops_per_cycle / peak.clock
  return {
      "list_s": list_seconds,
      "compile_s": compile_seconds,
      "temporary_gib": memory.temp_size_in_bytes / 2**30,
      "arguments_gib": memory.argument_size_in_bytes / 2**30,
      "work": sum(work.num_units for work in lists) / exact_units,
      "estimate_ms": 1e3 * estimate,
      "roofline_ms": 1e3 * roofline,
      "share": roofline / estimate,
  }


def _compile(chip, direction, shape, mask, tiles):
  sharding = jax.sharding.SingleDeviceSharding(device(chip))
  array = lambda shape, dtype: jax.ShapeDtypeStruct(
      shape, dtype, sharding=sharding
  )
  wide = array(shape, jnp.bfloat16)
  row = array(shape[:-1], jnp.float32)
  options = dict(
      scale=shape[-1] ** -0.5,
      token_order="bit_reversed",
      tiles=tiles,
      chip=chip,
  )
  if direction == "forward":
    function = lambda *xs: pallas_tpu.attention(*xs, mask, **options)
    args = (wide, wide, wide)
  else:
    function = lambda *xs: pallas_tpu.gradients(*xs, mask, **options)
    args = (wide, wide, wide, wide, row, wide, row)
  return jax.jit(function).lower(*args).compile()


def main(argv: list[str] | None = None) -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  chips = list(_TOPOLOGIES)
  parser.add_argument("--chips", nargs="+", choices=chips, default=chips)
  parser.add_argument("--frames", nargs="+", type=int, default=[16, 32, 64])
  parser.add_argument(
      "--directions",
      nargs="+",
      choices=["forward", "backward"],
      default=["forward", "backward"],
  )
  parser.add_argument("--heads", type=int, default=16)
  parser.add_argument("--tokens_per_frame", type=int, default=4096)
  parser.add_argument("--blocks_per_frame", type=int, default=32)
  parser.add_argument("--head_dim", type=int, default=128)
  parser.add_argument("--dense", action="store_true", help="Dense mask.")
  args = parser.parse_args(argv)
  print(
      f"{args.heads} heads x {args.head_dim}, bfloat16,"
      f" {args.tokens_per_frame} tokens a frame, jax {jax.__version__}. v5p:"
      " two cores, half of the heads each."
  )
  print(
      f"{'chip':5}{'frames':>7} {'direction':10}{'list s':>7}{'compile s':>10}"
      f"{'temp GiB':>9}{'args GiB':>9}{'work':>7}{'est. ms':>9}{'roof ms':>9}"
      f"{'share':>7}"
  )
  with tempfile.TemporaryDirectory() as folder:
    prepare(pathlib.Path(folder))
    make = mask_lib.BlockMask.dense if args.dense else mask_lib.BlockMask
    for chip in args.chips:
      for frames in args.frames:
        for direction in args.directions:
          found = check(
              chip,
              direction,
              make(frames, args.blocks_per_frame),
              heads=args.heads,
              tokens_per_frame=args.tokens_per_frame,
              head_dim=args.head_dim,
              tiles=tpu_tiles.default(chip),
              folder=pathlib.Path(folder),
          )
          print(
              f"{chip:5}{frames:7} {direction:10}{found['list_s']:7.2f}"
              f"{found['compile_s']:10.1f}{found['temporary_gib']:9.2f}"
              f"{found['arguments_gib']:9.2f}{found['work']:7.3f}"
              f"{found['estimate_ms']:9.2f}{found['roofline_ms']:9.2f}"
              f"{found['share']:7.1%}",
              flush=True,
          )


if __name__ == "__main__":
  main()
