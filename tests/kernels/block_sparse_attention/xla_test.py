"""The plain JAX backend equals the float32 reference, on all of its paths."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.kernels import block_sparse_attention as bsa
from sculpt4d_jax.kernels.block_sparse_attention import shapes
from sculpt4d_jax.kernels.block_sparse_attention import xla
from sculpt4d_jax.kernels.block_sparse_attention import xla_contiguous
from sculpt4d_jax.kernels.block_sparse_attention import xla_lists

BlockMask = bsa.BlockMask


def results_and_gradients(inputs, mask, **kwargs):
  """Output, log-sum-exp, and gradients for random cotangents of both."""
  keys = jax.random.split(jax.random.key(7), 2)
  output_bar = jax.random.normal(keys[0], inputs[0].shape)
  log_sum_exp_bar = jax.random.normal(keys[1], inputs[0].shape[:-1])

  def loss(*inputs):
    output, log_sum_exp = bsa.block_sparse_attention(
        *inputs, mask, return_log_sum_exp=True, **kwargs
    )
    product = (output.astype(jnp.float32) * output_bar).sum()
    product += (log_sum_exp * log_sum_exp_bar).sum()
    return product, (output, log_sum_exp)

  differentiate = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
  # Compiling takes far longer than running: optimise less.
  options = {"xla_backend_optimization_level": 0}
  jitted = jax.jit(differentiate, compiler_options=options)
  (_, results), gradients = jitted(*inputs)
  return dict(
      zip(
          ("output", "log_sum_exp", "query", "key", "value"),
          (np.asarray(x, np.float32) for x in (*results, *gradients)),
      )
  )


def assert_equals_reference(inputs, mask, tolerance=2e-5, **kwargs):
  """Compares results and gradients, relative to the largest of each."""
  actual = results_and_gradients(inputs, mask, **kwargs)
  kwargs["implementation"] = "reference"
  expected = results_and_gradients(inputs, mask, **kwargs)
  for name, value in expected.items():
    np.testing.assert_allclose(
        actual[name],
        value,
        rtol=tolerance,
        atol=tolerance * max(1.0, np.abs(value).max()),
        err_msg=f"{name} of {mask}",
    )


@pytest.fixture(name="large_path")
def fixture_large_path(monkeypatch):
  """Sends small inputs the way of large ones, in several chunks and steps."""
  monkeypatch.setattr(xla, "_MAX_SMALL_TOKENS", 0)
  monkeypatch.setattr(xla, "_GROUP_TOKENS", 64)
  monkeypatch.setattr(xla_contiguous, "_CHUNK_TOKENS", 8)
  monkeypatch.setattr(xla_lists, "_STEP_TOKENS", 8)


def inputs_for(mask, block_size, batch=1, heads=2, head_dim=8, **kwargs):
  shape = (batch, heads, mask.num_blocks * block_size, head_dim)
  return shapes.random_inputs(shape, **kwargs)


@pytest.mark.parametrize("num_frames", [1, 3, 6, 16])
def test_contiguous_path_at_any_number_of_frames(large_path, num_frames):
  mask = BlockMask(num_frames, 16)
  assert_equals_reference(
      inputs_for(mask, 2), mask, token_order="bit_reversed"
  )


def test_contiguous_path_without_padding(large_path, monkeypatch):
  # One loop for every kind of query frame, as for large inputs.
  monkeypatch.setattr(xla_contiguous, "_MAX_PADDING_SHORT", 0.0)
  mask = BlockMask(8, 8, schedule=(1, 2, 4))
  assert len(xla_contiguous._groups(mask, 0.0)) == 3
  assert_equals_reference(inputs_for(mask, 4), mask)


@pytest.mark.parametrize(
    "blocks, block_size", [(1, 5), (2, 1), (3, 3), (5, 2), (8, 3), (33, 1)]
)
def test_any_number_and_size_of_blocks(large_path, blocks, block_size):
  mask = BlockMask(4, blocks, schedule=(1, 2, 4))
  assert_equals_reference(inputs_for(mask, block_size), mask)


@pytest.mark.parametrize("variant", ["A", "B", "C", "D"])
def test_every_schedule_of_the_ablation(large_path, variant):
  mask = shapes.ablation_masks(7)[variant]
  assert_equals_reference(
      inputs_for(mask, 1, heads=1), mask, token_order="bit_reversed"
  )


@pytest.mark.parametrize(
    "mask, order",
    [
        (BlockMask(5, 12, (1, 3, 5), anchor_frames=(1, 4)), "natural"),
        (BlockMask(5, 12, (1, 3, 5), anchor_frames=(1, 4)), "bit_reversed"),
        (BlockMask(5, 8, (2, 4), anchor_frames=(0, 2, 3)), "natural"),
        (BlockMask(5, 8, (2, 6)) | BlockMask(5, 8, (5,), ()), "bit_reversed"),
        (BlockMask(3, 64, (64,), anchor_frames=()), "natural"),
    ],
    ids=["lists", "lists_reversed", "anchors", "or", "token_only"],
)
def test_masks_of_every_kind(large_path, mask, order):
  assert_equals_reference(
      inputs_for(mask, 2, heads=1), mask, token_order=order
  )


@pytest.mark.parametrize("order", ["natural", "bit_reversed"])
@pytest.mark.parametrize("blocks", [5, 8])
def test_small_path_equals_reference(blocks, order):
  mask = BlockMask(8, blocks)
  assert_equals_reference(
      inputs_for(mask, 3, batch=2), mask, token_order=order, scale=0.1
  )


@pytest.mark.parametrize(
    "mask", [BlockMask(6, 8), BlockMask(6, 5)], ids=["contiguous", "lists"]
)
class TestLargePaths:
  """Both linear-memory paths under awkward numbers."""

  def test_bfloat16(self, large_path, mask):
    inputs = inputs_for(mask, 4, dtype=jnp.bfloat16)
    # Eight bits of mantissa in the results; both sides round inputs alike.
    assert_equals_reference(inputs, mask, tolerance=1e-2)

  def test_large_logits(self, large_path, mask):
    inputs = inputs_for(mask, 4, size=100.0)
    logits = jnp.einsum("bhqk,bhsk->bhqs", inputs[0], inputs[1])
    assert float(logits.max()) > 1e4  # exp overflows float32 beyond 88.
    # float32 keeps scores of 1e4 to about 1e-3.
    assert_equals_reference(inputs, mask, tolerance=5e-3)

  def test_scale_and_many_heads(self, large_path, mask):
    inputs = inputs_for(mask, 2, batch=2, heads=3)
    assert_equals_reference(inputs, mask, scale=0.1)

  def test_no_quadratic_memory(self, mask):
    shape = (1, 1, mask.num_blocks * 160, 8)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.float32)] * 3
    loss = lambda *xs: bsa.block_sparse_attention(*xs, mask).sum()
    compiled = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*arrays).compile()
    scores = 4 * shape[2] ** 2
    assert compiled.memory_analysis().temp_size_in_bytes < scores / 4


def test_large_logits_on_small_path():
  mask = BlockMask(4, 8)
  assert_equals_reference(
      inputs_for(mask, 4, size=100.0), mask, tolerance=5e-3
  )


@pytest.mark.parametrize("num_frames", [8, 16, 32, 64])
def test_padding_stays_within_its_bound(num_frames):
  mask = BlockMask(num_frames, 32)
  exact = num_frames**2 * mask.density()
  for limit in (0.0, 0.04, 0.3):
    groups = xla_contiguous._groups(mask, limit)
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
    lists, is_filled = (x.reshape(-1, width) for x in (lists, np.isinf(bias)))
    for row, blocks, is_filled in zip(rows.ravel(), lists, is_filled):
      if row < mask.num_blocks:
        rows_seen.append(row)
        np.testing.assert_array_equal(
            blocks[~is_filled], indices[offsets[row] : offsets[row + 1]]
        )
  assert sorted(rows_seen) == list(range(mask.num_blocks))
