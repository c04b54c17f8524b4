"""Time by kind of instruction, as the profiler sees it."""

import functools

import jax

from sculpt4d_jax.kernels.block_sparse_attention import shapes
from sculpt4d_jax.kernels.block_sparse_attention.bench import (
  parts as bench_parts,
)
from sculpt4d_jax.kernels.block_sparse_attention.xla import attention as xla


def test_products_and_exponentials_are_seen():
  shape = shapes.AttentionShape(1, 1, 4, 256, 16, blocks_per_frame=8)
  inputs = shapes.random_inputs(shape.array_shape)
  attend = functools.partial(xla.attention, mask=shape.mask(), scale=0.1)
  compiled = jax.jit(attend).lower(*inputs).compile()
  run = lambda: jax.block_until_ready(compiled(*inputs))
  parts = bench_parts.measure(run, compiled.as_text())
  kinds = " ".join(parts)
  assert "product" in kinds and "exponential" in kinds, parts
  assert all(count > 0 for _, count in parts.values())
