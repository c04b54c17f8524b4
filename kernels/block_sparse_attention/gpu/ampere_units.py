"""Copies and products of the kernels for Ampere and Ada, and a simulation.

`Device` starts copies, multiplies and lays out arrays on a GPU; `Simulation`
does the same by value in jax's GPU interpreter, which has no instructions from
before Hopper.
"""

import jax
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from ..pallas_types import Ref

# Inner width of a product that is read from shared memory at once. The compiler
# lays out rows of this many numbers without bank conflicts.
_DEPTH = 32


class Device:
  """Copies, products and layouts of the hardware."""

  def copy(self, source: Ref, smem: Ref) -> None:
    """Starts to copy from main to shared memory."""
    # Copies of this kind check no bounds; tiles divide the arrays.
    plgpu.copy_gmem_to_smem(
      source, smem, oob_mode=plgpu.OOBFillMode.PROMISE_IN_BOUNDS
    )

  def wait(self, num_copies: int) -> None:
    """Waits until at most so many copies are left."""
    plgpu.wait_gmem_to_smem(num_copies)

  def load(self, source: Ref) -> jax.Array:
    """Reads from main memory."""
    # To registers, a few bytes a thread.
    return plgpu.load(source, optimized=False)

  def store(self, target: Ref, x: jax.Array) -> None:
    """Writes to main memory."""
    plgpu.store(target, x, optimized=False)

  def product(
    self, left: jax.Array | Ref, right: Ref, transposed: bool = False
  ) -> jax.Array:
    """Float32 product with a matrix in shared memory."""
    shape = (left.shape[0], right.shape[0 if transposed else 1])
    return self._add(jnp.zeros(shape, jnp.float32), left, right, transposed)

  def add_product(
    self, total: jax.Array, left: jax.Array | Ref, right: Ref
  ) -> jax.Array:
    """Adds a matrix product to a sum."""
    return self._add(total, left, right, transposed=False)

  def _add(
    self, total: jax.Array, left: jax.Array | Ref, right: Ref, transposed: bool
  ) -> jax.Array:
    # Weights, which are in registers already.
    if isinstance(left, jax.Array):
      return plgpu.mma(total, left, right[...])
    # Operands are read in parts: both as a whole do not fit the registers.
    for start in range(0, left.shape[1], _DEPTH):
      part = slice(start, start + _DEPTH)
      right_part = right.at[:, part].T if transposed else right.at[part]
      total = plgpu.mma(total, left[:, part], right_part[...])
    return total

  def round_to(self, x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """A product, rounded, as the left factor of the next.

    A thread holds the same elements of both; only their order in its registers
    differs. jax converts layouts itself, but does not know this pair.
    """
    from jax.experimental.mosaic import gpu as mosaic_gpu

    left = plgpu.Layout.MMA_LHS(dtype)

    @plgpu.inline_mgpu(
      arg_types=(plgpu.Layout.MMA_ACC(dtype),),
      return_type=plgpu.ShapeDtypeStruct(x.shape, dtype, layout=left),
    )
    def convert(
      _: mosaic_gpu.LaunchContext, x: mosaic_gpu.FragmentedArray
    ) -> mosaic_gpu.FragmentedArray:
      x = x.astype(mosaic_gpu.utils.dtype_to_ir_type(jnp.dtype(dtype)))
      zero = mosaic_gpu.c(0, x.mlir_dtype)
      y = mosaic_gpu.FragmentedArray.splat(zero, x.shape, left.to_mgpu())
      y.registers[...] = x.registers.reshape(y.registers.shape)
      return y

    return convert(x)


class Simulation:
  """The same by value.

  A copy completes at once: what a slot is overwritten with too early shows,
  what is read too early does not.
  """

  def copy(self, source: Ref, smem: Ref) -> None:
    """Copies from main to shared memory."""
    smem[...] = source[...]

  def wait(self, num_copies: int) -> None:
    """Returns at once: no copy is ever left."""
    del num_copies

  def load(self, source: Ref) -> jax.Array:
    """Reads from main memory."""
    return source[...]

  def store(self, target: Ref, x: jax.Array) -> None:
    """Writes to main memory."""
    target[...] = x

  def product(
    self, left: jax.Array | Ref, right: Ref, transposed: bool = False
  ) -> jax.Array:
    """Float32 matrix product."""
    right = right[...].T if transposed else right[...]
    return jnp.dot(left[...], right, preferred_element_type=jnp.float32)

  def add_product(
    self, total: jax.Array, left: jax.Array | Ref, right: Ref
  ) -> jax.Array:
    """Adds a matrix product to a sum."""
    return total + self.product(left, right)

  def round_to(self, x: jax.Array, dtype: jax.typing.DTypeLike) -> jax.Array:
    """Rounds to a dtype."""
    return x.astype(dtype)


Unit = Device | Simulation
