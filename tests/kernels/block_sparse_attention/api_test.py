"""The public function: orders, transformations, choices and refusals."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.kernels import block_sparse_attention as bsa
from sculpt4d_jax.kernels.block_sparse_attention import api
from sculpt4d_jax.kernels.block_sparse_attention import shapes as kernel_shapes
from sculpt4d_jax.kernels.block_sparse_attention.xla import attention as xla

MASK = bsa.BlockMask(4, 4, schedule=(1, 2, 4))
SHAPE = (2, 2, 32, 8)


@pytest.fixture(name="small", params=[True, False], ids=["small", "large"])
def fixture_small(request, monkeypatch):
  if not request.param:
    monkeypatch.setattr(xla, "_MAX_SMALL_TOKENS", 0)


def attend(*inputs, **kwargs):
  return bsa.block_sparse_attention(*inputs, MASK, **kwargs)


def test_dense_mask_is_ordinary_attention(small):
  inputs = kernel_shapes.random_inputs(SHAPE)
  dense = bsa.BlockMask.dense(4, 4)
  actual = bsa.block_sparse_attention(*inputs, dense)
  by_token = [x.swapaxes(1, 2) for x in inputs]
  expected = jax.nn.dot_product_attention(*by_token).swapaxes(1, 2)
  np.testing.assert_allclose(actual, expected, atol=1e-5)


def test_attention_by_hand():
  # Two frames of two tokens. A token sees its frame, and itself in the other
  # one: equal keys give the mean of the three values seen.
  mask = bsa.BlockMask(2, 2, schedule=(1, 2), anchor_frames=())
  zeros = jnp.zeros((1, 1, 4, 1))
  value = jnp.array([1.0, 2.0, 4.0, 8.0]).reshape(1, 1, 4, 1)
  output, log_sum_exp = bsa.block_sparse_attention(
    zeros, zeros, value, mask, return_log_sum_exp=True
  )
  sums = [1 + 2 + 4, 1 + 2 + 8, 1 + 4 + 8, 2 + 4 + 8]
  expected = np.array(sums) / 3
  np.testing.assert_allclose(output.ravel(), expected, rtol=1e-6)
  np.testing.assert_allclose(log_sum_exp.ravel(), np.log(3), rtol=1e-6)


@pytest.mark.parametrize("blocks", [4, 6])
def test_orders_agree_after_permutation(small, blocks):
  mask = bsa.BlockMask(4, blocks, schedule=(1, 2, 4))
  inputs = kernel_shapes.random_inputs((2, 2, 4 * 24, 8))
  attend = jax.jit(
    bsa.block_sparse_attention, static_argnames=("mask", "token_order")
  )
  order = bsa.bit_reversed_tokens(24, blocks)

  def permute(x, order):
    frames = x.reshape(2, 2, 4, 24, 8)
    return frames[:, :, :, order].reshape(x.shape)

  natural = attend(*inputs, mask=mask)
  inputs = (permute(x, order) for x in inputs)
  reordered = attend(*inputs, mask=mask, token_order="bit_reversed")
  back = permute(reordered, bsa.inverse_order(order))
  np.testing.assert_allclose(back, natural, atol=1e-6)


def test_unseen_tokens_have_no_influence(small):
  # Block 1 of frame 3 does not see block 0 of frame 1 (distance 2, stride 4).
  query, key, value = kernel_shapes.random_inputs(SHAPE)
  gradient = jax.grad(
    lambda value: attend(query, key, value)[:, :, 26:28].sum()
  )(value)
  assert not gradient[:, :, 8:10].any()
  assert gradient[:, :, 0:8].all()  # The anchor frame.


def test_mask_may_be_a_static_argument():
  inputs = kernel_shapes.random_inputs(SHAPE)
  jitted = jax.jit(bsa.block_sparse_attention, static_argnums=3)
  np.testing.assert_allclose(jitted(*inputs, MASK), attend(*inputs), atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_output_has_the_dtype_of_the_input(small, dtype):
  inputs = kernel_shapes.random_inputs(SHAPE, dtype)
  output, log_sum_exp = attend(*inputs, return_log_sum_exp=True)
  assert output.dtype == dtype and log_sum_exp.dtype == jnp.float32
  expected = attend(*(x.astype(jnp.float32) for x in inputs))
  np.testing.assert_allclose(
    output.astype(jnp.float32), expected, rtol=1e-2, atol=1e-2
  )


def test_automatic_choice_goes_on_to_the_next_backend(monkeypatch):
  def declines(*unused_args, **unused_kwargs):
    raise NotImplementedError("needs an accelerator")

  inputs = kernel_shapes.random_inputs(SHAPE)
  expected = attend(*inputs)
  monkeypatch.setitem(api._BACKENDS, "declines", declines)
  monkeypatch.setattr(api, "_AUTOMATIC", ("declines", "xla"))
  np.testing.assert_array_equal(attend(*inputs), expected)
  with pytest.raises(NotImplementedError, match="needs an accelerator"):
    attend(*inputs, implementation="declines")
  monkeypatch.setattr(api, "_AUTOMATIC", ("declines",))
  with pytest.raises(NotImplementedError, match="declines: needs an acc"):
    attend(*inputs)


def test_unknown_choices_are_refused():
  inputs = kernel_shapes.random_inputs(SHAPE)
  with pytest.raises(ValueError, match=r"'reference', 'xla'\]"):
    attend(*inputs, implementation="cuda")
  with pytest.raises(ValueError, match="token_order must be"):
    attend(*inputs, token_order="morton")
  with pytest.raises(ValueError, match="scale must be finite"):
    attend(*inputs, scale=float("nan"))


@pytest.mark.parametrize(
  "shapes, message",
  [
    ([(2, 32, 8)] * 3, r"query must be \[B, H, S, K\]"),
    ([SHAPE, (2, 1, 32, 8), SHAPE], "key must have the shape of query"),
    ([SHAPE, SHAPE, (2, 2, 32, 4)], "value must have the shape of query"),
    ([(2, 2, 30, 8)] * 3, "S=30 tokens, not a positive multiple"),
    ([(2, 2, 0, 8)] * 3, "S=0 tokens"),
    ([(2, 2, 24, 8)] * 3, "tokens_per_frame=6 is not a positive multiple"),
  ],
)
def test_bad_shapes_are_refused(shapes, message):
  with pytest.raises(ValueError, match=message):
    attend(*(jnp.zeros(shape) for shape in shapes))


def test_bad_dtypes_and_masks_are_refused():
  query, key, value = kernel_shapes.random_inputs(SHAPE)
  with pytest.raises(ValueError, match="key must have the dtype of query"):
    attend(query, key.astype(jnp.bfloat16), value)
  with pytest.raises(ValueError, match="query must be float32"):
    attend(*(x.astype(jnp.int32) for x in (query, key, value)))
  with pytest.raises(ValueError, match="mask must be a BlockMask, got ndarray"):
    bsa.block_sparse_attention(query, key, value, MASK.dense_blocks())


def test_kernels_need_no_other_package():
  """The folder works alone: on a path that has nothing else of this project."""
  folder = pathlib.Path(api.__file__).parents[1]
  program = (
    "import sys; import block_sparse_attention as bsa;"
    " import jax.numpy as jnp;"
    " x = jnp.ones((1, 1, 16, 4)); mask = bsa.BlockMask(2, 4);"
    " print(bsa.block_sparse_attention(x, x, x, mask).sum());"
    " assert not any(name.startswith('sculpt4d') for name in sys.modules)"
  )
  done = subprocess.run(
    [sys.executable, "-c", program],
    cwd=folder,
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert float(done.stdout) == 64.0


def test_sharding_over_batch_and_heads_needs_no_communication(run_on_devices):
  run_on_devices(
    4,
    """
      import jax, numpy as np
      from jax.sharding import AxisType, NamedSharding, PartitionSpec
      from sculpt4d_jax.kernels import block_sparse_attention as bsa
      from sculpt4d_jax.kernels.block_sparse_attention import shapes, xla

      mesh = jax.make_mesh(
          (2, 2), ("data", "heads"), axis_types=(AxisType.Auto,) * 2)
      spec = PartitionSpec("data", "heads")
      mask = bsa.BlockMask(4, 4, schedule=(1, 2, 4))
      inputs = shapes.random_inputs((2, 2, 32, 8))
      attend = lambda *xs: bsa.block_sparse_attention(*xs, mask)
      expected = bsa.block_sparse_attention(
          *inputs, mask, implementation="reference")
      inputs = jax.device_put(inputs, NamedSharding(mesh, spec))
      mapped = jax.shard_map(attend, mesh=mesh, in_specs=spec, out_specs=spec)
      for limit, function in ((512, attend), (0, mapped)):
        xla._MAX_SMALL_TOKENS = limit
        run = jax.jit(function).lower(*inputs).compile()
        for exchange in ("all-gather", "all-to-all", "collective-permute"):
          assert exchange not in run.as_text(), (limit, exchange)
        np.testing.assert_allclose(run(*inputs), expected, atol=1e-5)
      """,
  )
