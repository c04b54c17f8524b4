"""Compiles the kernels for Ampere and runs their PTX on a machine in NumPy.

  python -m tests.kernels.block_sparse_attention.gpu.check_ampere_ptx

Compares outputs, log-sum-exps and gradients with the reference, and prints the
largest difference of each, relative to the largest value. Needs no GPU, but
jax's CUDA compiler, and a jax that compiles for Ampere:
pip install 'jax[cuda12]>=0.12'.
"""

import functools
import os
import re
from unittest import mock

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax.kernels.block_sparse_attention import mask as mask_lib
from sculpt4d_jax.kernels.block_sparse_attention import reference
from sculpt4d_jax.kernels.block_sparse_attention import shapes
from sculpt4d_jax.kernels.block_sparse_attention.bench import aot_gpu
from sculpt4d_jax.kernels.block_sparse_attention.gpu import (
  attention as pallas_gpu,
)
from tests.kernels.block_sparse_attention.gpu import ptx_machine

# Tokens, heads and programs enough for every loop and slot to come round.
_CASES = (  # Mask, tokens a block, heads, head width, dtype.
  (mask_lib.BlockMask(2, 2, (1, 2)), 64, 2, 64, jnp.bfloat16),
  (mask_lib.BlockMask(2, 1), 128, 1, 128, jnp.bfloat16),
  (mask_lib.BlockMask(3, 1, (1, 1)), 64, 1, 128, jnp.float16),
)


def main() -> None:
  aot_gpu.prepare_environment()
  os.environ["MOSAIC_GPU_DUMP_PTX"] = "1"
  os.environ["MOSAIC_GPU_DUMP_HOST_LLVM"] = "1"
  for case in _CASES:
    mask, block_size, heads, head_dim, dtype = case
    print(
      f"{mask}, blocks of {block_size}, {heads} heads of {head_dim},"
      f" {jnp.dtype(dtype)}:"
    )
    for name, error in _errors(*case).items():
      print(f"  {name} {error:.1e}", flush=True)


def _errors(mask, block_size, heads, head_dim, dtype):
  """Largest difference of each result, relative to the largest value."""
  shape = (1, heads, mask.num_blocks * block_size, head_dim)
  inputs = shapes.random_inputs(shape, dtype)
  keys = jax.random.split(jax.random.key(7), 2)
  bars = (
    jax.random.normal(keys[0], shape).astype(dtype),
    jax.random.normal(keys[1], shape[:-1]),
  )

  def both(attend, **kwargs):
    run = lambda *xs: attend(*xs, mask, scale=0.3, **kwargs)
    results, pull = jax.vjp(run, *inputs)
    return *results, *pull(bars)

  expected = both(reference.attention)
  device = aot_gpu.compile_only_device("a100")
  with mock.patch.object(plgpu, "kernel", _kernel_in_numpy(device)):
    actual = both(pallas_gpu.attention, compute_capability="8.0")
  names = ("output", "log_sum_exp", "query", "key", "value")
  errors = {}
  for name, x, y in zip(names, actual, expected):
    x, y = np.asarray(x, np.float32), np.asarray(y, np.float32)
    errors[name] = float(np.abs(x - y).max() / np.abs(y).max())
  return errors


def _kernel_in_numpy(device):
  """Replaces `plgpu.kernel`: compiles, then runs the PTX."""
  make = plgpu.kernel

  def kernel(body, *, out_type, grid, **kwargs):
    compiled = make(body, out_type=out_type, grid=grid, **kwargs)

    def call(*args):
      text = _compile(compiled, args, device)
      run = functools.partial(_run, text, args, out_type, grid)
      late, at_once = run(late=True), run(late=False)
      for x, y in zip(late, at_once):
        np.testing.assert_array_equal(x, y)
      return [jnp.asarray(x) for x in late]

    return call

  return kernel


def _run(text, args, out_type, grid, late):
  arrays = [np.asarray(x) for x in args]
  arrays += [np.zeros(x.shape, x.dtype) for x in out_type]
  order = _parameters(text)
  ptx = text[text.index(".version") :]
  machine = ptx_machine.Machine(ptx, [arrays[i] for i in order], late)
  for head in range(grid[0]):
    for program in range(grid[1]):
      machine.run_block(program, head)
  return [
    machine.read(order.index(len(args) + i), x.shape, x.dtype)
    for i, x in enumerate(out_type)
  ]


def _compile(function, args, device) -> str:
  """PTX of a kernel and the code that launches it."""
  sharding = jax.sharding.SingleDeviceSharding(device)
  types = [
    jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding) for x in args
  ]
  with aot_gpu.assembler_log() as log, jax.default_device(device):
    jax.jit(function).lower(*types).compile()
  return log()


def _parameters(text: str) -> list[int]:
  """Which array every parameter of the kernel is, by the launching code.

  That loads the arrays' pointers from a table, and stores them in a structure
  in the order of the parameters.
  """
  sources = {"%1": 0} | {
    name: int(index)
    for name, index in re.findall(
      r"(%\d+) = getelementptr ptr, ptr %1, i32 (\d+)", text
    )
  }
  arrays = {
    name: sources[source]
    for name, source in re.findall(r"(%\d+) = load ptr, ptr (%\d+)", text)
    if source in sources
  }
  fields = {
    name: int(index)
    for name, index in re.findall(
      r"(%\d+) = getelementptr \{.*?\}, ptr %\d+, i32 0, i32 (\d+)", text
    )
  }
  order = {
    fields[field]: arrays[name]
    for name, field in re.findall(r"store ptr (%\d+), ptr (%\d+)", text)
    if field in fields
  }
  return [order[i] for i in range(len(order))]


if __name__ == "__main__":
  main()
