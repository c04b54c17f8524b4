"""Choices, plans and memory of the plain JAX backend.

That its paths equal the reference is tested in `backend_test`.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.kernels import block_sparse_attention as bsa
from sculpt4d_jax.kernels.block_sparse_attention import shapes
from sculpt4d_jax.kernels.block_sparse_attention.bench import (
  memory as bench_memory,
)
from sculpt4d_jax.kernels.block_sparse_attention.xla import attention as xla
from sculpt4d_jax.kernels.block_sparse_attention.xla import contiguous
from sculpt4d_jax.kernels.block_sparse_attention.xla import lists as xla_lists

BlockMask = bsa.BlockMask


def memory(mask, shape):
  """Bytes of forward and backward."""
  attend = functools.partial(
    xla.attention, mask=mask, scale=0.1, token_order="bit_reversed"
  )
  array = jax.ShapeDtypeStruct(shape, jnp.float32)
  return bench_memory.analyse(attend, array)


@pytest.mark.parametrize("mask", [BlockMask(6, 8), BlockMask(6, 5)], ids=str)
def test_no_quadratic_memory(mask):
  shape = (1, 1, mask.num_blocks * 160, 8)
  temporary = memory(mask, shape).temporary
  scores = 4 * shape[2] ** 2
  assert temporary < scores / 4


@pytest.mark.slow
def test_peak_memory_is_near_that_of_inputs_outputs_and_residuals():
  shape = shapes.SHAPES["cpu_16f"]
  peak = memory(shape.mask(), shape.array_shape)
  assert peak.temporary < 0.5 * peak.fixed


def test_path_is_chosen_by_size_and_mask():
  choose = lambda tokens, mask: xla._choose((1, 1, tokens, 8), mask)
  assert choose(512, BlockMask(4, 8)) == "small"
  assert choose(1024, BlockMask(4, 8)) == "contiguous"
  assert choose(1000, BlockMask(4, 5)) == "lists"
  assert xla._choose((64, 16, 512, 8), BlockMask(4, 8)) == "contiguous"


def test_path_that_cannot_serve_is_refused():
  inputs = shapes.random_inputs((1, 1, 20, 8))
  attend = functools.partial(xla.attention, *inputs, scale=1.0)
  with pytest.raises(NotImplementedError, match='path="lists" serves any'):
    attend(BlockMask(4, 5), path="contiguous")
  with pytest.raises(ValueError, match="'dense' is unknown; choose one of"):
    attend(BlockMask(4, 5), path="dense")
  with pytest.raises(ValueError, match="chunk_scores must be a whole number"):
    xla.TileSizes(chunk_scores=0)


@pytest.mark.parametrize("num_frames", [8, 16, 32, 64])
def test_padding_stays_within_its_bound(num_frames):
  mask = BlockMask(num_frames, 32)
  exact = num_frames**2 * mask.density()
  for limit in (0.0, 0.04, 0.3):
    groups = contiguous._groups(mask, limit)
    work = sum(
      len(group.frames) * x.frames.shape[1] / stride
      for group in groups
      for x, stride in zip(group.key_frames, group.strides)
    )
    assert exact <= work <= exact * (1 + limit)
    frames = sorted(np.concatenate([group.frames for group in groups]))
    assert frames == list(range(num_frames))


@pytest.mark.parametrize("max_ratio", [1.0, 1.1, 3.0])
def test_buckets_hold_the_block_lists(max_ratio):
  mask = BlockMask(7, 5)
  offsets, indices = mask.block_lists()
  rows_seen = []
  buckets = xla_lists._buckets(mask, "natural", 4, max_ratio)
  for rows, lists, bias in buckets:
    width = lists.shape[-1]
    lists, filled = (x.reshape(-1, width) for x in (lists, np.isinf(bias)))
    for row, blocks, is_filled in zip(rows.ravel(), lists, filled):
      if row < mask.num_blocks:
        rows_seen.append(row)
        np.testing.assert_array_equal(
          blocks[~is_filled], indices[offsets[row] : offsets[row + 1]]
        )
  assert sorted(rows_seen) == list(range(mask.num_blocks))
