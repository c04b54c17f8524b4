"""The view that a computing warpgroup has of the kernels for Hopper.

Its own rows in shared memory, operands that another warpgroup copies there, and
matrix products of the warpgroup.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
import jax.numpy as jnp

from ..pallas_types import Ref
from . import tiles as tiles_lib


class Program:
  """The rows, operands and products of a computing warpgroup.

  Attributes:
    warpgroup: Index of the warpgroup among the computing ones.
    num_steps: Length of its loop.
    own: Shared memory for its own 64 rows of every tiled input.
    inputs: References to whole inputs: first those tiled by rows, then those
      tiled by columns.
    outputs: References to whole results, tiled by rows.
    scratch: All scratch by name.
  """

  def __init__(
    self,
    head: jax.Array,
    first_row: jax.Array,
    num_steps: jax.Array,
    inputs: Sequence[Ref],
    outputs: Sequence[Ref],
    scratch: dict[str, Ref | list[Ref]],
  ):
    self.warpgroup = lax.axis_index("warpgroup")
    self.num_steps = num_steps
    self.inputs = inputs
    self.outputs = outputs
    self.scratch = scratch
    self.own = [x.at[self.warpgroup] for x in scratch["own"]]
    row = first_row + self.warpgroup * tiles_lib.WARPGROUP_ROWS
    self._rows = (head, pl.ds(row, tiles_lib.WARPGROUP_ROWS))
    self._num_loaded = 0

  def load_own(self, smem: Ref, source: Ref) -> None:
    """Copies the warpgroup's rows of an input."""
    # A barrier for every copy: each is used once.
    index = self.warpgroup * len(self.own) + self._num_loaded
    self._num_loaded += 1
    barrier = self.scratch["own_ready"].at[index]
    plgpu.copy_gmem_to_smem(source.at[self._rows], smem, barrier)
    plgpu.barrier_wait(barrier)

  def store_own(self, arrays: Sequence[Ref], targets: Sequence[Ref]) -> None:
    """Copies the warpgroup's rows of results, and waits."""
    # Copies by the TMA read shared memory by another way than the threads write
    # it; this makes the writes visible to them.
    plgpu.commit_smem()
    for smem, target in zip(arrays, targets):
      plgpu.copy_smem_to_gmem(smem, target.at[self._rows])
    plgpu.wait_smem_to_gmem(0)

  def operands(self, step: jax.Array) -> list["Operand"]:
    """The columns of one step."""
    scratch = self.scratch
    num_stages = scratch["columns"][0].shape[0]
    slot = lax.rem(step, num_stages)
    return [
      Operand(*(x.at[slot] for x in group))
      for group in zip(
        scratch["columns"], scratch["ready"], scratch["consumed"]
      )
    ]

  def product(
    self,
    left: jax.Array | Ref,
    right: Ref,
    transposed: bool = False,
    after_issue: Callable[[], None] = lambda: None,
  ) -> jax.Array:
    """Float32 matrix product; `after_issue` is called while it runs."""

    def compute(total: Ref) -> jax.Array:
      self.issue(total, left, right, transposed)
      # Reading the sum waits for the product.
      after_issue()
      return total[...]

    shape = (left.shape[0], right.shape[0 if transposed else 1])
    return pl.run_scoped(compute, plgpu.ACC(shape, jnp.float32))

  def issue(
    self,
    total: Ref,
    left: jax.Array | Ref,
    right: Ref,
    transposed: bool = False,
  ) -> None:
    """Starts to add a matrix product to registers."""
    # A warpgroup's product takes its left factor from registers or from shared
    # memory, and its right one from shared memory only.
    if isinstance(left, jax.Array):
      left = self._stage("staging", left)
    if transposed:
      # jax's interpreter does not know transposed references.
      stage = "transposed" in self.scratch
      right = self._stage("transposed", right[...].T) if stage else right.T
    plgpu.wgmma(total, left, right)

  def _stage(self, name: str, x: jax.Array) -> jax.Array | Ref:
    """Puts an array into shared memory, where there is some for it."""
    if name not in self.scratch:
      return x
    smem = self.scratch[name].at[self.warpgroup]
    smem[...] = x
    plgpu.commit_smem()
    return smem


class Operand:
  """A tile in shared memory and its two barriers."""

  def __init__(self, smem: Ref, ready: Ref, consumed: Ref):
    self._smem = smem
    self._ready = ready
    self._consumed = consumed
    self._is_there = False

  def read(self) -> Ref:
    """Waits for the tile and returns it."""
    if not self._is_there:  # A second wait would be for the next tile.
      plgpu.barrier_wait(self._ready)
    self._is_there = True
    return self._smem

  def release(self) -> None:
    """Says that this warpgroup does not need the tile any more."""
    # The copying warpgroup refills the slot when all have arrived.
    plgpu.barrier_arrive(self._consumed)


class Part(NamedTuple):
  """One of several arrays that are copied together."""

  operand: Operand
  index: int
  release: Callable[[], None]

  def read(self) -> Ref:
    """Waits for all parts and returns this one."""
    return self.operand.read().at[self.index]


class Sum(NamedTuple):
  """A running sum in registers."""

  total: Ref
  program: Program

  def add(self, left: jax.Array, right: Ref) -> None:
    """Starts to add a matrix product."""
    self.program.issue(self.total, left, right)


def finish() -> None:
  """Waits for all products of the warpgroup that were issued."""
  plgpu.wgmma_wait(0)


def rendezvous(barrier: Ref) -> None:
  """Waits until all threads of the barrier are here."""
  plgpu.barrier_arrive(barrier)
  plgpu.barrier_wait(barrier)
