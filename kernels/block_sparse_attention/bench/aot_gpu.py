r"""Compiles the attention for an NVIDIA GPU ahead of time; needs no GPU.

  python -m kernels.block_sparse_attention.bench.aot_gpu --target h100
  python -m kernels.block_sparse_attention.bench.aot_gpu --target a100 --frames 16

A100, RTX 3090 and RTX 4090 need a jax that compiles for them, such as 0.12.

For 16 heads, 128 wide, bfloat16, 4096 tokens a frame in blocks of 128, in
bit-reversed order: forward, and forward with all gradients, of

  sparse  the paper's mask with the kernels for the target
  dense   the same kernels with every block seeing every block
  xla     the paper's mask in plain JAX
  cudnn   jax's dense attention by cuDNN

Prints the time of compilation and of building the lists of tiles, the memory
for intermediates, the work in matrix products, and the assembler's report on
our kernels: registers at launch and bytes spilled. Nothing is run and no time
is predicted.

Needs jax with its CUDA compiler: pip install 'jax[cuda12]'.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
import sys
import tempfile
import time
from typing import Any

import jax
import jax.numpy as jnp

from .. import api
from .. import mask as mask_lib
from .. import shapes
from ..gpu import attention as pallas_gpu
from ..gpu import tiles as tiles_lib

_GIB = 2**30
_BACKENDS = ["sparse", "dense", "xla", "cudnn"]


@dataclasses.dataclass(frozen=True)
class _Target:
  """A GPU's description for XLA's compiler, from public data sheets."""

  name: str
  major: int
  minor: int
  multiprocessors: int
  shared_memory: int  # Bytes per multiprocessor; a program has 1 KiB less.
  fpus: int  # Per multiprocessor.
  clock_ghz: float
  bandwidth: int  # Bytes a second.
  l2_bytes: int
  memory: int

  @property
  def compute_capability(self) -> str:
    return f"{self.major}.{self.minor}"

  def description(self) -> str:
    return f"""
      gpu_device_info {{
        threads_per_block_limit: 1024
        threads_per_warp: 32
        shared_memory_per_block: 49152
        shared_memory_per_block_optin: {self.shared_memory - 1024}
        shared_memory_per_core: {self.shared_memory}
        threads_per_core_limit: 2048
        registers_per_core_limit: 65536
        registers_per_block_limit: 65536
        core_count: {self.multiprocessors}
        fpus_per_core: {self.fpus}
        block_dim_limit_x: 2147483647
        block_dim_limit_y: 65535
        block_dim_limit_z: 65535
        memory_bandwidth: {self.bandwidth}
        l2_cache_size: {self.l2_bytes}
        clock_rate_ghz: {self.clock_ghz}
        device_memory_size: {self.memory}
        cuda_compute_capability {{ major: {self.major} minor: {self.minor} }}
      }}
      platform_name: "CUDA"
      dnn_version_info {{ major: 9 minor: 8 }}
      runtime_version {{ major: 12 minor: 9 }}
      device_description_str: "{self.name}"
      """


TARGETS = {
  "h100": _Target(
    "NVIDIA H100 80GB HBM3",
    9,
    0,
    132,
    228 << 10,
    128,
    1.98,
    3_352_320_000_000,
    50 << 20,
    80 << 30,
  ),
  "a100": _Target(
    "NVIDIA A100-SXM4-80GB",
    8,
    0,
    108,
    164 << 10,
    64,
    1.41,
    2_039_000_000_000,
    40 << 20,
    80 << 30,
  ),
  "rtx3090": _Target(
    "NVIDIA GeForce RTX 3090",
    8,
    6,
    82,
    100 << 10,
    128,
    1.70,
    936_000_000_000,
    6 << 20,
    24 << 30,
  ),
  "rtx4090": _Target(
    "NVIDIA GeForce RTX 4090",
    8,
    9,
    128,
    100 << 10,
    128,
    2.52,
    1_008_000_000_000,
    72 << 20,
    24 << 30,
  ),
}


def main(argv: list[str] | None = None) -> None:
  """Runs the program."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--target", choices=sorted(TARGETS), default="h100")
  parser.add_argument(
    "--frames", type=int, nargs="+", default=[16, 32, 64], help="clip lengths"
  )
  parser.add_argument("--heads", type=int, default=16)
  parser.add_argument("--head_dim", type=int, default=128)
  parser.add_argument(
    "--dtype", choices=["bfloat16", "float16"], default="bfloat16"
  )
  parser.add_argument(
    "--backends", nargs="+", choices=_BACKENDS, default=_BACKENDS
  )
  flags = parser.parse_args(argv)
  if min(flags.heads, flags.head_dim, *flags.frames) < 1:
    parser.error("--heads, --head_dim and --frames must be positive")
  prepare_environment()
  target = TARGETS[flags.target]
  device = compile_only_device(flags.target)
  sharding = jax.sharding.SingleDeviceSharding(device)
  print(f"{target.name}, {flags.dtype}, jax {jax.__version__}; not run\n")
  _print_row(
    "attention", "frames", "density", "pass", "compile s", "temp GiB", "TFLOP"
  )
  # Pallas takes the available instructions from the default device.
  with jax.default_device(device):
    for frames in flags.frames:
      _report_frames(flags, target, sharding, frames)


def _report_frames(
  flags: argparse.Namespace,
  target: _Target,
  sharding: jax.sharding.Sharding,
  frames: int,
) -> None:
  shape = shapes.AttentionShape(1, flags.heads, frames, 4096, flags.head_dim)
  array = jax.ShapeDtypeStruct(
    shape.array_shape, jnp.dtype(flags.dtype), sharding=sharding
  )
  for name in flags.backends:
    is_sparse = name in ("sparse", "xla")
    mask = shape.mask() if is_sparse else shape.dense_mask()
    attend = _candidate(name, mask, target)
    # Two matrix products forward, and two more for each of three gradients.
    # Each of our two backward kernels, or the single pass of others, recomputes
    # the scores; ours also their gradient.
    pairs = mask.density() * shape.num_tokens**2 * flags.heads
    product = 2e-12 * pairs * flags.head_dim
    counts = (2, 2 + 7 if name in ("sparse", "dense") else 2 + 5)
    passes = (
      ("forward", attend, 3, counts[0]),
      ("+ backward", _with_gradients(attend), 4, counts[1]),
    )
    for label, function, num_inputs, count in passes:
      try:
        seconds, temp, kernels = _compile(function, [array] * num_inputs)
      except NotImplementedError as reason:
        print(f"{name}: declined: {reason}")
        break
      _print_row(
        name,
        frames,
        f"{mask.density():.2%}",
        label,
        f"{seconds:.1f}",
        f"{temp / _GIB:.2f}",
        f"{product * count:.1f}",
      )
      for line in kernels:
        print(f"    {line}", flush=True)
  start = time.perf_counter()
  for by_key in (False, True):
    build = tiles_lib.tile_lists.__wrapped__
    lists = build(shape.mask(), "bit_reversed", by_key)
  seconds = time.perf_counter() - start
  size = sum(x.nbytes for x in lists)
  print(f"    lists of both kinds: {seconds:.2f} s, {2 * size / 1e6:.1f} MB\n")


def _candidate(
  name: str, mask: mask_lib.Mask, target: _Target
) -> Callable[..., jax.Array]:
  if name == "cudnn":
    return _cudnn
  backend = "xla"
  if name != "xla":
    backend = functools.partial(
      pallas_gpu.attention, compute_capability=target.compute_capability
    )
  return functools.partial(
    api.block_sparse_attention,
    mask=mask,
    token_order="bit_reversed",
    implementation=backend,
  )


def _cudnn(*inputs: jax.Array) -> jax.Array:
  by_token = [x.swapaxes(1, 2) for x in inputs]
  output = jax.nn.dot_product_attention(*by_token, implementation="cudnn")
  return output.swapaxes(1, 2)


def _with_gradients(
  attend: Callable[..., jax.Array],
) -> Callable[..., tuple[jax.Array, ...]]:
  def run(*inputs_and_bar: jax.Array) -> tuple[jax.Array, ...]:
    *inputs, bar = inputs_and_bar
    output, pull = jax.vjp(attend, *inputs)
    return output, *pull(bar)

  return run


def _compile(
  function: Callable[..., Any], arrays: Sequence[jax.ShapeDtypeStruct]
) -> tuple[float, int, list[str]]:
  """Seconds, bytes of intermediates, and a line for each of our kernels."""
  with assembler_log() as log:
    start = time.perf_counter()
    lowered = jax.jit(function).lower(*arrays)
    compiled = lowered.compile()
    seconds = time.perf_counter() - start
  memory = compiled.memory_analysis()
  return seconds, memory.temp_size_in_bytes, _kernels(log())


@contextlib.contextmanager
def assembler_log() -> Iterator[Callable[[], str]]:
  """Captures the compiler's messages on standard output."""
  sys.stdout.flush()
  with tempfile.TemporaryFile() as file:
    saved = os.dup(1)
    os.dup2(file.fileno(), 1)
    text = []
    try:
      yield lambda: text[0]
    finally:
      os.dup2(saved, 1)
      os.close(saved)
      file.seek(0)
      text.append(file.read().decode(errors="replace"))


def _kernels(log: str) -> list[str]:
  pattern = re.compile(
    r"Function properties for (\w+?)(?:_mosaic_gpu_kernel)?\s+.*?"
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?"
    r"Used (\d+) registers",
    re.DOTALL,
  )
  return [
    f"{name}: {registers} registers at launch, {stores} bytes spilled,"
    f" {loads} reloaded"
    for name, stores, loads, registers in pattern.findall(log)
  ]


def prepare_environment() -> None:
  """Lets jax's CUDA compiler start without a GPU.

  Raises:
    SystemExit: It is not installed.
  """
  if importlib.util.find_spec("jax_cuda12_plugin") is None:
    raise SystemExit(
      "This program needs jax's CUDA compiler, and the package"
      " jax_cuda12_plugin is not installed: pip install 'jax[cuda12]', in an"
      " separate environment (5.5 GB)."
    )
  os.environ.setdefault("JAX_SKIP_CUDA_CONSTRAINTS_CHECK", "1")
  os.environ["MOSAIC_GPU_DUMP_PTXAS"] = "1"
  # Autotuning would run candidates.
  flags = os.environ.get("XLA_FLAGS", "")
  os.environ["XLA_FLAGS"] = f"{flags} --xla_gpu_autotune_level=0".strip()


def compile_only_device(name: str):
  """A target's GPU, for compilation only."""
  from jax.experimental import topologies

  target = TARGETS[name]
  return topologies.get_topology_desc(
    platform="cuda",
    topology_name=target.name,
    target_config=target.description(),
    topology="1x1x1",
  ).devices[0]


def _print_row(*cells: object) -> None:
  widths = (10, 7, 8, 11, 10, 9, 9)
  print(" ".join(f"{x:>{w}}" for x, w in zip(cells, widths)), flush=True)


if __name__ == "__main__":
  main()
