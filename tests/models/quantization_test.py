"""Kernels in eight bits: by hand, and in a whole transformer."""

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.models import dit
from sculpt4d_jax.models import eight_bits
from sculpt4d_jax.models import layers
from sculpt4d_jax.models import quantization
from sculpt4d_jax.models.moe import experts
from tests.models import dit_test


def test_restored_by_hand():
  """Two groups of two inputs, two outputs."""
  codes = jnp.array([[127, -127], [64, 0], [1, 2], [3, 4]], jnp.int8)
  scales = jnp.array([[0.5, 1.0], [10.0, 0.1]])
  kernel = eight_bits.restore(codes, scales, jnp.float32)
  np.testing.assert_allclose(
    kernel, [[63.5, -127], [32, 0], [10, 0.2], [30, 0.4]], rtol=1e-6
  )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_linear_map_keeps_its_kernel_to_half_a_step(dtype):
  linear = layers.Linear(
    (4, 32),
    (3, 8),
    kernel_axes=("heads", "kv", None, "embed"),
    rngs=nnx.Rngs(0),
    param_dtype=dtype,
  )
  before = np.asarray(linear.kernel[...], np.float32)
  x = jax.random.normal(jax.random.key(0), (5, 4, 32))
  y = linear(x)
  quantization.quantize(linear)
  assert linear.kernel[...].dtype == jnp.int8
  assert linear.kernel_scale[...].shape == (2, 24)
  after = eight_bits.restore(
    linear.kernel[...], linear.kernel_scale[...], jnp.float32
  )
  groups = np.abs(before.reshape(2, 64, 24)).max(1, keepdims=True)
  error = np.abs(np.asarray(after) - before).reshape(2, 64, 24)
  assert (error <= groups / 127 / 2 * 1.001).all()
  relative = np.abs(linear(x) - y).max() / np.abs(y).max()
  assert 0 < relative < 0.01


def test_experts_have_scales_each():
  stack = experts.Experts(3, 64, 128, rngs=nnx.Rngs(0))
  before = stack.weights()
  quantization.quantize(stack)
  assert stack.fc1.kernel_scale[...].shape == (3, 1, 128)
  assert stack.fc2.kernel_scale[...].shape == (3, 2, 64)
  for old, new in zip(before, stack.weights()):
    assert old.shape == new.shape
    assert np.abs(old - new).max() <= np.abs(old).max() / 127
  np.testing.assert_array_equal(before.bias1, stack.weights().bias1)


def test_zeros_stay_zeros():
  linear = layers.Linear(
    64,
    2,
    kernel_axes=("embed", None),
    kernel_init=layers.zeros,
    rngs=nnx.Rngs(0),
  )
  quantization.quantize(linear)
  np.testing.assert_array_equal(linear(jnp.ones((1, 64))), 0)


def test_a_transformer_changes_little():
  args = dit_test.inputs()
  module = dit.DiT(dit_test.small(width=64), rngs=nnx.Rngs(0))
  before = dit_test.run(module, args).velocity
  quantization.quantize(module.stages)
  kinds = {
    str(leaf.dtype) for leaf in jax.tree.leaves(nnx.split(module.stages)[1])
  }
  assert kinds == {"int8", "float32"}
  after = dit_test.run(module, args).velocity
  relative = np.linalg.norm(after - before) / np.linalg.norm(before)
  assert 0 < relative < 0.03
