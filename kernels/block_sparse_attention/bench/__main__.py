"""Times sparse attention against dense attention and other implementations.

  python -m kernels.block_sparse_attention.bench
  python -m kernels.block_sparse_attention.bench --shapes cpu_16f --clock cpu
  python -m kernels.block_sparse_attention.bench --memory
  python -m kernels.block_sparse_attention.bench --parts --shapes cpu_16f
  python -m kernels.block_sparse_attention.bench --aot v5e

By default 8, 16, 32 and 64 frames, at a size for the platform. All candidates
of a shape alternate within one process, so that changes of load or frequency
affect them alike; it prints the median over the rounds. The ideal speed-up over
dense attention is one over the density of the mask. Candidates:

  sparse  the paper's mask, blocks in bit-reversed order
  dense   the same backend with every block seeing every block
  others  see `bench/peers.py`: the installed ones

Compilation is not timed. On a machine with other load, use `--clock cpu`: the
process's CPU time. `--memory` prints the memory that the compiler reserves for
forward and backward and, on CPUs, the memory of a run. `--parts` runs sparse
and dense once each under the profiler and prints a breakdown of their time, on
CPUs. `--aot` compiles ahead of time for another chip and prints its compiler's
report, by `aot_tpu` and `aot_gpu`.
"""

import argparse
from collections.abc import Callable
import functools
import statistics
import time

import jax
import jax.numpy as jnp

from .. import api
from .. import mask as mask_lib
from .. import shapes
from . import aot_gpu
from . import aot_tpu
from . import memory as bench_memory
from . import parts as bench_parts
from . import peers as bench_peers

Candidates = dict[str, Callable[[], object]]

_FRAMES = (8, 16, 32, 64)


def main(argv: list[str] | None = None) -> None:
  """Runs the program."""
  flags = _parse(argv)
  if flags.aot is not None:
    _compile_ahead(flags.aot)
    return
  on_cpu = jax.default_backend() == "cpu"
  if flags.dtype is None:
    flags.dtype = "float32" if on_cpu else "bfloat16"
  if flags.shapes is None:
    size = "cpu" if on_cpu else "full"
    flags.shapes = [f"{size}_{frames}f" for frames in _FRAMES]
  if flags.memory:
    _print_memory(flags)
    return
  if flags.parts:
    _print_parts(flags)
    return
  clock = dict(wall=time.perf_counter, cpu=time.process_time)[flags.clock]
  print(_environment(flags))
  for name in flags.shapes:
    shape = shapes.SHAPES[name]
    density = shape.mask().density()
    print(f"\n{name}: {shape.array_shape}, density {density:.4f}")
    print(
      _row("", "", "ms", "speed-up", "ideal", "share of ideal", "of sparse")
    )
    for is_backward in (False, True):
      candidates = _candidates(shape, flags, is_backward)
      seconds = time_in_turn(candidates, flags.rounds, clock)
      _print_times(seconds, 1 / density, is_backward)


def time_in_turn(
  candidates: Candidates, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
  """Median seconds of each candidate, after an untimed run of each."""
  seconds = {name: [] for name in candidates}
  for candidate in candidates.values():
    candidate()
  for _ in range(rounds):
    for name, candidate in candidates.items():
      start = clock()
      candidate()
      seconds[name].append(clock() - start)
  return {name: statistics.median(times) for name, times in seconds.items()}


def _parse(argv: list[str] | None) -> argparse.Namespace:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
    "--shapes",
    nargs="+",
    choices=sorted(shapes.SHAPES),
    metavar="NAME",
    help=f"named shapes, of {', '.join(shapes.SHAPES)}",
  )
  parser.add_argument(
    "--dtype",
    choices=["float32", "bfloat16"],
    help="float32 on CPU and bfloat16 elsewhere if left out",
  )
  parser.add_argument("--rounds", type=int, default=5, help="runs of each")
  parser.add_argument(
    "--clock",
    choices=["wall", "cpu"],
    default="wall",
    help="elapsed time, or CPU time of all threads of the process",
  )
  parser.add_argument(
    "--implementation",
    choices=sorted(api._BACKENDS),
    help="backend; the automatic choice if left out",
  )
  parser.add_argument(
    "--no_peers", action="store_true", help="sparse and dense only"
  )
  parser.add_argument(
    "--memory", action="store_true", help="memory in place of time"
  )
  parser.add_argument(
    "--parts", action="store_true", help="what the time goes to, on CPUs"
  )
  parser.add_argument(
    "--aot",
    choices=[*aot_tpu.TOPOLOGIES, *aot_gpu.TARGETS],
    help="compile for this chip and print what its compiler reports",
  )
  flags = parser.parse_args(argv)
  if flags.rounds < 1:
    parser.error(f"--rounds must be at least 1, got {flags.rounds}")
  return flags


def _compile_ahead(chip: str) -> None:
  if chip in aot_gpu.TARGETS:
    aot_gpu.main(["--target", chip])
  else:
    aot_tpu.main(["--chips", chip])


def _attend(
  mask: mask_lib.Mask, flags: argparse.Namespace
) -> Callable[..., jax.Array | tuple[jax.Array, jax.Array]]:
  return functools.partial(
    api.block_sparse_attention,
    mask=mask,
    token_order="bit_reversed",
    implementation=flags.implementation,
  )


def _candidates(
  shape: shapes.AttentionShape, flags: argparse.Namespace, is_backward: bool
) -> Candidates:
  inputs = shapes.random_inputs(shape.array_shape, jnp.dtype(flags.dtype))
  masks = {"sparse": shape.mask(), "dense": shape.dense_mask()}
  candidates = {
    name: bench_peers.timed(_attend(mask, flags), inputs, is_backward)
    for name, mask in masks.items()
  }
  peers = {} if flags.no_peers else bench_peers.peers()
  for name, peer in peers.items():
    candidate = peer(shape, flags.dtype, is_backward)
    if candidate is not None:
      candidates[name] = candidate
  return candidates


def _print_parts(flags: argparse.Namespace) -> None:
  """Prints parts of sparse and dense, forward and with gradients."""
  print(_environment(flags))
  for name in flags.shapes:
    shape = shapes.SHAPES[name]
    inputs = shapes.random_inputs(shape.array_shape, jnp.dtype(flags.dtype))
    masks = {"sparse": shape.mask(), "dense": shape.dense_mask()}
    for is_backward in (False, True):
      direction = "forward+backward" if is_backward else "forward"
      for kind, mask in masks.items():
        run = bench_peers.compiled(_attend(mask, flags), inputs, is_backward)
        parts = bench_parts.measure(
          lambda run=run: jax.block_until_ready(run(*inputs)), run.as_text()
        )
        total = sum(milliseconds for milliseconds, _ in parts.values())
        print(f"\n{name}, {direction}, {kind}: ms of all threads")
        for part, (milliseconds, count) in parts.items():
          share = milliseconds / total
          print(f"{part:<42}{milliseconds:>10.1f}{share:>8.1%}{count:>8} calls")


def _print_memory(flags: argparse.Namespace) -> None:
  """Prints memory of forward and backward, relative to inputs and results."""
  bench_memory.return_freed_memory()
  print(_environment(flags))
  columns = ("fixed MiB", "peak MiB", "/ fixed", "measured MiB", "/ fixed")
  print(_row("", "", *columns))
  for name in flags.shapes:
    shape = shapes.SHAPES[name]
    attend = functools.partial(
      _attend(shape.mask(), flags), return_log_sum_exp=True
    )
    array = jax.ShapeDtypeStruct(shape.array_shape, jnp.dtype(flags.dtype))
    memory = bench_memory.measure(attend, array)
    columns = [f"{memory.fixed / 2**20:.1f}"]
    for peak in (memory.analysed, memory.measured):
      if peak is not None:
        columns += [f"{peak / 2**20:.1f}", f"{peak / memory.fixed:.2f}"]
    print(_row("forward+backward", name, *columns))
  print(
    "fixed: query, key, value, the output's cotangent; output, log-sum-exp and"
    " three gradients. Nothing else is kept between forward and backward."
    " peak: by the compiler's analysis. measured: resident memory, on CPUs."
  )


def _environment(flags: argparse.Namespace) -> str:
  device = jax.devices()[0]
  versions = f"jax {jax.__version__}"
  torch = bench_peers.import_torch()
  if torch is not None:
    versions += f", torch {torch.__version__}"
    versions += f" ({torch.get_num_threads()} threads)"
  measured = (
    "memory"
    if flags.memory
    else f"{flags.clock} time, median of {flags.rounds}"
  )
  return (
    f"{device.platform} ({device.device_kind}), {flags.dtype}, {measured};"
    f" {versions}"
  )


def _print_times(
  seconds: dict[str, float], ideal: float, is_backward: bool
) -> None:
  direction = "forward+backward" if is_backward else "forward"
  for name, value in seconds.items():
    speed_up = seconds["dense"] / value
    columns = [f"{1e3 * value:.1f}", f"{speed_up:.2f}"]
    if name == "sparse":
      columns += [f"{ideal:.2f}", f"{speed_up / ideal:.0%}", ""]
    else:
      columns += ["", "", f"{seconds['sparse'] / value:.3f}"]
    print(_row(direction, name, *columns))


def _row(direction: str, name: str, *columns: str) -> str:
  return f"{direction:<17}{name:<12}" + "".join(f"{c:>15}" for c in columns)


if __name__ == "__main__":
  main()
