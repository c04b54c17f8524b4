"""Times sparse against dense attention on this machine.

  python -m kernels.block_sparse_attention.bench
  python -m kernels.block_sparse_attention.bench --shapes cpu_16f --clock cpu

All candidates of a shape run in turn within one process, so that changes of
load or frequency meet them alike; the median over the rounds is printed. The
ideal speed-up over dense attention is one over the density of the mask.
Candidates:

  sparse      the paper's mask, blocks in bit-reversed order
  dense       the same backend with every block seeing every block
  torch_sdpa  PyTorch's dense attention, if torch is installed (CPU only)

Compilation is not timed. On a machine that does other work, use `--clock cpu`:
the process's CPU time.
"""

import argparse
from collections.abc import Callable
import functools
import statistics
import time

import jax
import jax.numpy as jnp
import numpy as np

from . import api
from . import shapes

Candidates = dict[str, Callable[[], object]]


def main() -> None:
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument(
      "--shapes", nargs="+", choices=sorted(shapes.SHAPES), metavar="NAME",
      default=["cpu_8f", "cpu_16f", "cpu_32f"],
      help=f"named shapes, of {', '.join(shapes.SHAPES)}",
  )  # fmt: skip
  parser.add_argument(
      "--dtype", choices=["float32", "bfloat16"], default="float32"
  )
  parser.add_argument("--rounds", type=int, default=5, help="runs of each")
  parser.add_argument(
      "--clock", choices=["wall", "cpu"], default="wall",
      help="elapsed time, or CPU time of all threads of the process",
  )  # fmt: skip
  parser.add_argument(
      "--implementation", help="backend; the automatic choice if left out"
  )
  flags = parser.parse_args()
  if flags.rounds < 1:
    parser.error(f"--rounds must be at least 1, got {flags.rounds}")
  clock = dict(wall=time.perf_counter, cpu=time.process_time)[flags.clock]
  torch = _import_torch()
  print(_environment(flags, torch))
  for name in flags.shapes:
    shape = shapes.SHAPES[name]
    density = shape.mask().density()
    print(f"\n{name}: {shape.array_shape}, density {density:.4f}")
    print(_row("", "", "ms", "speed-up", "ideal", "share of ideal"))
    for is_backward in (False, True):
      candidates = _jax_candidates(shape, flags, is_backward)
      if torch is not None:
        candidates |= _torch_candidates(torch, shape, flags, is_backward)
      seconds = time_in_turn(candidates, flags.rounds, clock)
      _print_times(seconds, 1 / density, is_backward)


def time_in_turn(
    candidates: Candidates, rounds: int, clock: Callable[[], float]
) -> dict[str, float]:
  """Median seconds of each candidate, after a run of each not timed."""
  seconds = {name: [] for name in candidates}
  for candidate in candidates.values():
    candidate()
  for _ in range(rounds):
    for name, candidate in candidates.items():
      start = clock()
      candidate()
      seconds[name].append(clock() - start)
  return {name: statistics.median(times) for name, times in seconds.items()}


def _jax_candidates(shape, flags, is_backward) -> Candidates:
  inputs = shapes.random_inputs(shape.array_shape, jnp.dtype(flags.dtype))

  def compiled(mask):
    attend = functools.partial(
        api.block_sparse_attention,
        mask=mask,
        token_order="bit_reversed",
        implementation=flags.implementation,
    )
    # The cotangent is the output: a cheap one that is not constant.
    loss = lambda *xs: 0.5 * (attend(*xs).astype(jnp.float32) ** 2).sum()
    function = jax.grad(loss, (0, 1, 2)) if is_backward else attend
    run = jax.jit(function).lower(*inputs).compile()
    return lambda: jax.block_until_ready(run(*inputs))

  return {
      "sparse": compiled(shape.mask()),
      "dense": compiled(shape.dense_mask()),
  }


def _torch_candidates(torch, shape, flags, is_backward) -> Candidates:
  if jax.default_backend() != "cpu":
    return {}
  inputs = shapes.random_inputs(shape.array_shape)
  inputs = [
      torch.from_numpy(np.array(x)).to(getattr(torch, flags.dtype))
      for x in inputs
  ]
  attend = torch.nn.functional.scaled_dot_product_attention

  def forward():
    with torch.no_grad():
      attend(*inputs)

  def forward_and_backward():
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = attend(*leaves)
    output.backward(output.detach())

  return {"torch_sdpa": forward_and_backward if is_backward else forward}


def _import_torch():
  try:
    import torch  # pylint: disable=g-import-not-at-top
  except ImportError:
    return None
  return torch


def _environment(flags, torch) -> str:
  device = jax.devices()[0]
  versions = f"jax {jax.__version__}"
  if torch is not None:
    versions += f", torch {torch.__version__}"
    versions += f" ({torch.get_num_threads()} threads)"
  return (
      f"{device.platform} ({device.device_kind}), {flags.dtype}, {flags.clock}"
      f" time, median of {flags.rounds}; {versions}"
  )


def _print_times(seconds, ideal, is_backward) -> None:
  direction = "forward+backward" if is_backward else "forward"
  for name, value in seconds.items():
    speed_up = seconds["dense"] / value
    columns = [f"{1e3 * value:.1f}", f"{speed_up:.2f}"]
    if name == "sparse":
      columns += [f"{ideal:.2f}", f"{speed_up / ideal:.0%}"]
    print(_row(direction, name, *columns))


def _row(direction: str, name: str, *columns: str) -> str:
  return f"{direction:<17}{name:<11}" + "".join(f"{c:>15}" for c in columns)


if __name__ == "__main__":
  main()
