r"""Compiles the TPU kernels ahead of time and estimates their speed.

  python -m kernels.block_sparse_attention.bench.aot_tpu \
    --chips v5e v5p v6e --frames 16 32 64

For every chip, number of frames and direction it prints the CPU time for making
the lists of work, the wall time to trace and compile, memory, the work relative
to the exact mask, and from the compiler's final schedule the time of a layer,
the time of the exact mask at the chip's peak (the roofline), and their ratio.
`--ideal` also compiles the same kernels for a dense mask, and prints the
speed-up of the sparse call and its share of the ideal, one over the density of
the mask. The estimate excludes memory stalls, see `tpu_schedule`; nothing is
run.

`--what` selects other calls than the paper's: a dense mask, strides that are
not powers of two, float32, and calls inside `jax.shard_map` on the devices of a
small slice, for which exchanges between devices are counted too.

Needs libtpu: pip install "jax[tpu]".
"""

import argparse
from collections.abc import Callable, Sequence
import dataclasses
import functools
from importlib import metadata
import itertools
import os
import pathlib
import tempfile
import time
from typing import Any

import jax
from jax.experimental import topologies
import jax.numpy as jnp
import numpy as np

from .. import api
from .. import mask as mask_lib
from .. import sharded
from ..tpu import attention as pallas_tpu
from ..tpu import lists as tpu_lists
from ..tpu import pair_lists
from ..tpu import tiles as tpu_tiles
from . import tpu_schedule

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}

WHAT = {
  "paper": "the paper's mask in bfloat16",
  "dense": "a mask that lets everything see everything",
  "lists": "strides that are no powers of two, hence a list of blocks",
  "float32": "the paper's mask in float32",
  "sharded_heads": "inside shard_map, each device with some of the heads",
  "sharded_frames": (
    "inside shard_map, each device with some of the frames, which are"
    " exchanged for heads"
  ),
}
_EXCHANGES = ("all-to-all", "all-gather", "all-reduce", "collective-permute")
# A float32 product consists of several bfloat16 products.
_PASSES = {"bfloat16": 1, "float32": 6}


@dataclasses.dataclass(frozen=True)
class Call:
  """An attention call; blocks are in bit-reversed order if that is faster.

  Attributes:
    mask: Visible key blocks of each query block.
    heads: Number of heads.
    tokens_per_frame: Tokens of a frame.
    head_dim: Width of a head.
    dtype: "bfloat16" or "float32".
    axis: Axis that is sharded over a slice, "heads" or "frames"; None is a call
      on one device.
  """

  mask: mask_lib.Mask
  heads: int = 16
  tokens_per_frame: int = 4096
  head_dim: int = 128
  dtype: str = "bfloat16"
  axis: str | None = None

  @property
  def shape(self) -> tuple[int, int, int, int]:
    """Shape of query, key and value: [B, H, S, K]."""
    tokens = self.mask.num_frames * self.tokens_per_frame
    return (1, self.heads, tokens, self.head_dim)


def make_call(
  what: str, num_frames: int, blocks_per_frame: int, **sizes: int
) -> Call:
  """The call for a key of `WHAT`; sizes are fields of `Call`."""
  size = (num_frames, blocks_per_frame)
  masks = {
    "dense": mask_lib.BlockMask.dense(*size),
    "lists": mask_lib.BlockMask(*size, (1, 1, 2, 3, 6, 12)),
  }
  mask = masks.get(what, mask_lib.BlockMask(*size))
  dtype = "float32" if what == "float32" else "bfloat16"
  axis = what.removeprefix("sharded_") if what.startswith("sharded") else None
  return Call(mask, **sizes, dtype=dtype, axis=axis)


def prepare(folder: pathlib.Path) -> None:
  """Makes libtpu compile without a device and list its schedules in a folder.

  Must be called before anything loads libtpu.
  """
  os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
  os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
  os.environ["LIBTPU_INIT_ARGS"] = " ".join(
    [
      os.environ.get("LIBTPU_INIT_ARGS", ""),
      f"--xla_jf_dump_to={folder}",
      "--xla_jf_dump_llo_text=true",
      "--xla_jf_dump_llo_pass_label_regex=.*final.*",
    ]
  )
  jax.config.update("jax_platforms", "cpu")


def devices(chip: str) -> list[Any]:
  """The devices of a small slice of a kind of chip.

  Raises:
    RuntimeError: libtpu is not installed or does not know the chip.
  """
  try:
    topology = topologies.get_topology_desc(
      platform="tpu", topology_name=TOPOLOGIES[chip]
    )
  except Exception as error:  # JAX raises many types.
    raise RuntimeError(
      f"cannot compile for {chip}; libtpu is needed: pip install 'jax[tpu]'."
      f" jax says: {error}"
    ) from error
  return list(topology.devices)


def check(
  chip: str,
  direction: str,
  call: Call,
  *,
  tiles: tpu_tiles.TileSizes,
  folder: pathlib.Path,
) -> dict[str, float]:
  """Compiles one direction; returns what the compiler reports.

  Args:
    chip: "v5e", "v5p" or "v6e".
    direction: "forward", or "backward" for only the gradients; a call on
      several devices is then compiled with its forward pass.
    call: The call to compile.
    tiles: Tile sizes.
    folder: Folder into which `prepare` has libtpu write.

  Returns:
    Seconds (list: of the CPU; compile), GiB of a device (temporary, arguments),
    ratio of the work to that of the mask, milliseconds (estimate, roofline) and
    their ratio, and the number of exchanges between devices.
  """
  mask = call.mask
  tpu_lists.make_lists.cache_clear()
  pair_lists.make_lists.cache_clear()
  start = time.process_time()
  layout = tpu_lists.make_layout(
    mask, call.tokens_per_frame, tiles.piece_tokens, tiles.lanes
  )
  by_keys = direction == "backward"
  lists = _lists(mask, layout, tiles, by_keys)
  list_seconds = time.process_time() - start
  start = time.perf_counter()
  compiled, num_devices = _compile(chip, direction, call, tiles)
  compile_seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  peak = tpu_schedule.PEAKS[chip]
  passes = _PASSES[call.dtype]
  product_flops = passes * 2 * layout.tokens**2 * call.head_dim
  total = 0.0
  for work in lists:
    name = f"block_sparse_{direction}_{work.tile[0]}x{work.tile[1]}"
    blocks = tpu_schedule.read_blocks(tpu_schedule.find_listing(folder, name))
    uses = getattr(tpu_schedule, f"{direction}_uses")(work)
    total += tpu_schedule.cycles(
      blocks,
      uses,
      len(work.words),
      work.singles_per_item() if by_keys else 0.0,
      product_flops / peak.flops_per_cycle,
    )
  num_units = sum(
    work.num_units + (0 if by_keys else work.num_filled) for work in lists
  )
  exact_units = mask.density() * (mask.num_frames * layout.segments) ** 2
  heads = call.heads / num_devices
  exact_flops = (5 if by_keys else 2) * passes * 2 * call.head_dim
  exact_flops *= mask.density() * heads * call.shape[2] ** 2
  estimate = heads / peak.cores * total / peak.clock
  roofline = exact_flops / peak.cores / peak.flops_per_cycle / peak.clock
  return {
    "list_s": list_seconds,
    "compile_s": compile_seconds,
    "temporary_gib": memory.temp_size_in_bytes / 2**30,
    "arguments_gib": memory.argument_size_in_bytes / 2**30,
    "work": num_units / exact_units,
    "estimate_ms": 1e3 * estimate,
    "roofline_ms": 1e3 * roofline,
    "share": roofline / estimate,
    "exchanges": num_devices > 1 and _count_exchanges(compiled.as_text()),
  }


def _lists(
  mask: mask_lib.Mask,
  layout: tpu_lists.Layout,
  tiles: tpu_tiles.TileSizes,
  by_keys: bool,
) -> Sequence[Any]:
  """The lists of work of all passes of a direction."""
  if not by_keys:
    return pair_lists.for_tiles(mask, layout, tiles)
  return tpu_lists.make_lists(
    mask, layout, tiles.tiles(by_keys), tiles.stream, tiles.buffers
  )


def against_dense(
  sparse: dict[str, float], dense: dict[str, float], mask: mask_lib.Mask
) -> dict[str, float]:
  """Speed-up over a dense mask, and its share of the ideal.

  Args:
    sparse: From `check`.
    dense: From `check`, of the same call with a dense mask.
    mask: The sparse call's mask.
  """
  speed_up = dense["estimate_ms"] / sparse["estimate_ms"]
  return {
    "dense_ms": dense["estimate_ms"],
    "speed_up": speed_up,
    "of_ideal": speed_up * mask.density(),
  }


def _count_exchanges(text: str) -> int:
  """Number of exchanges between devices in a compiled program."""
  return sum(
    text.count(f" {name}(") + text.count(f" {name}-start(")
    for name in _EXCHANGES
  )


def _compile(
  chip: str, direction: str, call: Call, tiles: tpu_tiles.TileSizes
) -> tuple[jax.stages.Compiled, int]:
  """The compiled program and the number of its devices."""
  found = devices(chip)
  if call.axis is None:
    sharding = jax.sharding.SingleDeviceSharding(found[0])
    function = _function(chip, direction, call, tiles)
    num_devices = 1
  else:
    mesh = jax.sharding.Mesh(np.array(found), ("devices",))
    dimension = {"heads": 1, "frames": 2}[call.axis]
    spec = jax.sharding.PartitionSpec(*[None] * dimension, "devices")
    sharding = jax.sharding.NamedSharding(mesh, spec)
    function = jax.shard_map(
      _function(chip, direction, call, tiles),
      mesh=mesh,
      in_specs=spec,
      out_specs=spec,
      check_vma=False,
    )
    num_devices = len(found)
  wide = jax.ShapeDtypeStruct(call.shape, call.dtype, sharding=sharding)
  row = jax.ShapeDtypeStruct(call.shape[:-1], jnp.float32, sharding=sharding)
  args = (wide, wide, wide)
  if direction == "backward":
    args += (wide,) if call.axis else (wide, row, wide, row)
  return jax.jit(function).lower(*args).compile(), num_devices


def _function(
  chip: str, direction: str, call: Call, tiles: tpu_tiles.TileSizes
) -> Callable[..., Any]:
  """The function to compile, of one device's arrays."""
  options = dict(scale=call.head_dim**-0.5, token_order="bit_reversed")
  backend = functools.partial(pallas_tpu.attention, tiles=tiles, chip=chip)
  if call.axis == "frames":
    attend = lambda *xs: sharded.attend_with_sharded_frames(
      *xs, call.mask, axis_name="devices", implementation=backend, **options
    )
  elif call.axis == "heads":
    attend = lambda *xs: api.block_sparse_attention(
      *xs, call.mask, implementation=backend, **options
    )
  elif direction == "forward":
    attend = lambda *xs: backend(*xs, call.mask, **options)
  else:
    return lambda *xs: pallas_tpu.gradients(
      *xs, call.mask, tiles=tiles, chip=chip, **options
    )
  if direction == "forward":
    return attend
  return lambda *xs: jax.vjp(attend, *xs[:3])[1](xs[3])


def add_sizes(parser: argparse.ArgumentParser) -> None:
  """Adds the sizes of a call."""
  parser.add_argument("--heads", type=int, default=16)
  parser.add_argument("--tokens_per_frame", type=int, default=4096)
  parser.add_argument("--blocks_per_frame", type=int, default=32)
  parser.add_argument("--head_dim", type=int, default=128)


def main(argv: list[str] | None = None) -> None:
  """Runs the program."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  chips = list(TOPOLOGIES)
  parser.add_argument("--chips", nargs="+", choices=chips, default=chips)
  parser.add_argument("--frames", nargs="+", type=int, default=[16, 32, 64])
  parser.add_argument(
    "--directions",
    nargs="+",
    choices=["forward", "backward"],
    default=["forward", "backward"],
  )
  add_sizes(parser)
  parser.add_argument(
    "--what",
    nargs="+",
    choices=list(WHAT),
    default=["paper"],
    help="; ".join(f"{name}: {text}" for name, text in WHAT.items()) + ".",
  )
  parser.add_argument(
    "--ideal",
    action=argparse.BooleanOptionalAction,
    default=False,
    help="Compile the dense mask too, for the share of the ideal speed-up.",
  )
  args = parser.parse_args(argv)
  print(
    f"{args.heads} heads x {args.head_dim}, {args.tokens_per_frame} tokens a"
    f" frame, jax {jax.__version__}, libtpu {libtpu_version()}. v5p: two"
    " cores, half of the heads each."
  )
  print(
    f"{'what':15}{'chip':5}{'frames':>7} {'direction':10}{'list s':>7}"
    f"{'compile s':>10}{'temp GiB':>9}{'args GiB':>9}{'work':>7}"
    f"{'est. ms':>9}{'roof ms':>9}{'share':>7}{'exchanges':>10}"
    + f"{'dense ms':>10}{'gain':>6}{'of ideal':>9}"
    * args.ideal
  )
  with tempfile.TemporaryDirectory() as folder:
    prepare(pathlib.Path(folder))
    folder = pathlib.Path(folder)
    for what, chip, frames, direction in itertools.product(
      args.what, args.chips, args.frames, args.directions
    ):
      found = _check_named(what, chip, frames, direction, args, folder)
      line = (
        f"{what:15}{chip:5}{frames:7} {direction:10}{found['list_s']:7.2f}"
        f"{found['compile_s']:10.1f}{found['temporary_gib']:9.2f}"
        f"{found['arguments_gib']:9.2f}{found['work']:7.3f}"
        f"{found['estimate_ms']:9.2f}{found['roofline_ms']:9.2f}"
        f"{found['share']:7.1%}{found['exchanges']:10d}"
      )
      if args.ideal:
        dense = _check_named("dense", chip, frames, direction, args, folder)
        mask = _call(what, frames, args).mask
        gain = against_dense(found, dense, mask)
        line += f"{gain['dense_ms']:10.2f}{gain['speed_up']:6.2f}"
        line += f"{gain['of_ideal']:9.1%}"
      print(line, flush=True)


def _call(what: str, frames: int, args: argparse.Namespace) -> Call:
  return make_call(
    what,
    frames,
    args.blocks_per_frame,
    heads=args.heads,
    tokens_per_frame=args.tokens_per_frame,
    head_dim=args.head_dim,
  )


def _check_named(
  what: str,
  chip: str,
  frames: int,
  direction: str,
  args: argparse.Namespace,
  folder: pathlib.Path,
) -> dict[str, float]:
  call = _call(what, frames, args)
  tiles = tpu_tiles.default(chip, call.dtype)
  return check(chip, direction, call, tiles=tiles, folder=folder)


def libtpu_version() -> str:
  """The version of libtpu, or that there is none."""
  try:
    return metadata.version("libtpu")
  except metadata.PackageNotFoundError:
    return "is not installed"


if __name__ == "__main__":
  main()
