"""Dequantises 8-bit kernels where they are used; see `quantization.py`."""

from typing import Any

import jax.numpy as jnp

from sculpt4d_jax import array_types

Array = array_types.Array


def restore(codes: Array, scales: Array, dtype: Any) -> Array:
  """A kernel in the compute dtype.

  Args:
    codes: int8, [..., inputs..., outputs...].
    scales: float32 [..., groups, outputs], all outputs on one axis.
    dtype: Type of the result.
  """
  lead = scales.shape[:-2]
  num_groups, num_outputs = scales.shape[-2:]
  groups = codes.reshape(*lead, num_groups, -1, num_outputs)
  # Float32 products, so that they are rounded only once, to the compute dtype.
  kernel = groups.astype(jnp.float32) * scales[..., :, None, :]
  return kernel.astype(dtype).reshape(codes.shape)
