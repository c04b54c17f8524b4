"""NVIDIA GPU backend: Pallas Mosaic GPU kernels for Hopper, Ampere and Ada.

Forward; gradient of the queries; gradient of keys and values. Work is listed by
granules (`gpu/tiles.py`), so that no kernel computes a score outside the mask
or stores a quadratic table. A step's mathematics is written once
(`gpu/steps.py`), copies and products once for each family: `gpu/kernels.py` for
Hopper, `gpu/ampere.py` for Ampere and Ada.

Why Mosaic GPU. Of the ways from jax to a tensor core it is the one that jax
keeps and that can express a list of tiles:

  Pallas Triton   Compiles such kernels too, but from jax 0.11 on its lowering
                  warns that the backend is deprecated and will be removed.
  cuDNN           `jax.nn.dot_product_attention` has no block mask. One call for
                  every group of equal stride, merged by log-sum-exps, would do
                  forward, but the gradient through a returned log-sum-exp is
                  dropped by jax's rule, and no public function takes the merged
                  log-sum-exp for a backward: two more passes over all scores.
  XLA             `xla` compiles for every GPU, but stores the scores of a chunk
                  of queries and computes in float32: for devices and arguments
                  that the kernels do not serve.
  Mosaic GPU      Explicit: copies, barriers and register budgets are written
                  out, and jax's interpreter simulates them on a CPU. Called
                  unstable by its documentation: what is used here is small. The
                  kernels for Hopper compile and are simulated alike in jax
                  0.10.2 and 0.12.0.1; jax 0.10 cannot compile for Ampere.

What it serves: head widths 64 and 128, bfloat16 and float16 (float32 scores,
softmax and sums), granules that are a multiple of 64 tokens, devices of compute
capability 9.0, 8.0, 8.6 and 8.9. It declines anything else with the reason.

The gradients take seven matrix products a tile in two kernels, where one fused
kernel takes five: sums of the queries' gradient would then come from many
programs at once, in an order that differs from run to run. Here every result is
the same to the bit each time.
"""

from collections.abc import Callable
import dataclasses
import functools
from typing import Any

import jax
from jax import ad_checkpoint
import jax.numpy as jnp

from .. import errors
from .. import mask as mask_lib
from .. import residuals as residuals_lib
from . import steps
from . import tiles as tiles_lib
from . import walk

Tiles = tiles_lib.Tiles

_HEAD_DIMS = (64, 128)
_HOPPER = "9.0"
# Shared memory that a program may use: that of a multiprocessor without the KiB
# which the driver reserves for each program.
_AMPERE = {"8.0": 163 << 10, "8.6": 99 << 10, "8.9": 99 << 10}
# Granules smaller than this (tokens) are worth a permutation that enlarges
# them.
_SMALL_GRANULE = 128


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: mask_lib.Mask,
  *,
  scale: float,
  token_order: mask_lib.TokenOrder = "natural",
  tiles: Tiles | None = None,
  compute_capability: str | None = None,
  interpret: Any = None,
) -> tuple[jax.Array, jax.Array]:
  """Attention over the token pairs that the mask allows.

  Args:
    query: [B, H, S, K]; S = num_frames * tokens_per_frame.
    key: Same shape and dtype as query.
    value: Same shape and dtype as query.
    mask: Visible key blocks of each query block.
    scale: Factor on the scores.
    token_order: Order of the blocks within each frame.
    tiles: Largest tile sizes; they are reduced to divide a granule. `GpuTiles`
      for Hopper, `AmpereTiles` for Ampere and Ada. None takes the default for
      device and head width.
    compute_capability: Capability of the target device, as "9.0". None asks
      the default device.
    interpret: None runs on the device. True walks the same tiles in plain JAX
      on any device; parameters of jax's GPU interpreter
      (`jax.experimental.pallas.mosaic_gpu.InterpretGPUParams`) simulate the
      kernels. Both serve float32 and any head width as well.

  Returns:
    Output [B, H, S, K] in the dtype of query and log-sum-exp [B, H, S] float32.

  Raises:
    NotImplementedError: The backend cannot serve the arguments.
    ValueError: The tiles do not fit a multiprocessor, or are those of another
      family of devices.
  """
  head_dim = query.shape[-1]
  if not interpret:
    compute_capability = _require_device(compute_capability)
    _require_arrays(head_dim, query.dtype)
  if tiles is None:
    tiles = default_tiles(head_dim, compute_capability or _HOPPER)
  if not interpret:
    _require_family(tiles, compute_capability)
  plan = _plan(mask, query.shape[2], scale, token_order, tiles)
  if not interpret:
    limit = _AMPERE.get(compute_capability, tiles_lib.HOPPER_SHARED_MEMORY)
    plan.tiles.require_shared_memory(head_dim, query.dtype.itemsize, limit)
  plan = dataclasses.replace(plan, interpret=interpret)
  inputs = (query, key, value)
  # All three must vary over the same mesh axes, as the kernel's type demands.
  inputs = [steps.varying_as(x, *inputs) for x in inputs]
  return _attend(*inputs, plan)


def default_tiles(head_dim: int, compute_capability: str = _HOPPER) -> Tiles:
  """The largest tiles that compile without spills.

  Hopper: warpgroups that compute take registers from the one that copies. The
  assembler that jax 0.12 starts does not do so ("setmaxnreg ignored to maintain
  compatibility across compilation units"): wide heads need smaller tiles there.

  Ampere and Ada: two programs share a multiprocessor, so that one computes
  while the other waits. Their registers allow that everywhere, the 100 KiB of
  shared memory of 8.6 and 8.9 with smaller tiles than the 164 KiB of 8.0. There
  128 rows also pay less: products take twice as long or more, and shared memory
  is as fast.

  Args:
    head_dim: Head width K.
    compute_capability: Compute capability of the device, as "9.0".
  """
  tile = tiles_lib.AmpereTile
  if compute_capability in _AMPERE:
    is_large = compute_capability == "8.0"
    stages = 2 if is_large else 1
    if head_dim <= 64:
      return tiles_lib.AmpereTiles(
        forward=tile(128, 32, stages=2),
        query_bar=tile(128, 32),
        key_value_bar=tile(64, 64, stages),
      )
    return tiles_lib.AmpereTiles(
      forward=tile(128, 32) if is_large else tile(64, 32, stages=2),
      query_bar=tile(64, 64 if is_large else 32),
      key_value_bar=tile(64, 32, stages),
    )
  if head_dim <= 64 or jax.__version_info__ < (0, 11):
    return tiles_lib.GpuTiles()
  return tiles_lib.GpuTiles(
    forward=tiles_lib.Tile(2, 64, stages=4),
    query_bar=tiles_lib.Tile(2, 64),
    key_value_bar=tiles_lib.Tile(1, 64),
  )


@dataclasses.dataclass(frozen=True)
class _Plan:
  """The static arguments of a call."""

  mask: mask_lib.Mask
  token_order: mask_lib.TokenOrder  # Of the kernels.
  reorder: bool  # Whether blocks are bit-reversed on the way in and out.
  granule: int
  scale: float
  tiles: Tiles
  interpret: Any = None

  @property
  def exponent(self) -> float:
    """Not negative: the kernels take the maximum before they scale."""
    return abs(self.scale) * steps.LOG2_E

  @property
  def sign(self) -> float:
    """Factor on the queries that makes up for the sign of the scale."""
    return -1.0 if self.scale < 0 else 1.0

  def enter(self, x: jax.Array) -> jax.Array:
    """[B, H, S, ...] to [N, S, ...] in the order of the kernels."""
    x = x.reshape(-1, *x.shape[2:])
    return self._swap_order(x)

  def leave(self, x: jax.Array, batch: int) -> jax.Array:
    """Undoes `enter`."""
    x = self._swap_order(x)
    return x.reshape(batch, -1, *x.shape[1:])

  def lists(self, by_key: bool) -> tiles_lib.TileLists:
    """Granules that see each other; see `tiles.tile_lists`."""
    return tiles_lib.tile_lists(self.mask, self.token_order, by_key)

  def kernels(self) -> Any:
    """The functions `forward`, `query_bar` and `key_value_bar`."""
    if self.interpret is True:
      return walk
    # Imported late: other devices need no Mosaic GPU.
    if isinstance(self.tiles, tiles_lib.AmpereTiles):
      from . import ampere

      return ampere
    from . import kernels as pallas_gpu_kernels

    return pallas_gpu_kernels

  def call(
    self, function: Callable[..., Any], *args: jax.Array, by_key: bool = False
  ) -> Any:
    """Calls one of the `kernels` with the lists, sizes and options."""
    options = {} if self.interpret is True else dict(interpret=self.interpret)
    results = function(
      *args,
      self.lists(by_key),
      self.granule,
      self.exponent,
      self.tiles,
      **options,
    )
    return jax.tree.map(lambda x: steps.varying_as(x, *args), results)

  def _swap_order(self, x: jax.Array) -> jax.Array:
    if not self.reorder:
      return x
    # For powers of two, bit reversal undoes itself.
    order = mask_lib.bit_reversal(self.mask.blocks_per_frame)
    blocks = x.reshape(len(x), self.mask.num_frames, len(order), -1)
    return blocks[:, :, order].reshape(x.shape)


def _plan(
  mask: mask_lib.Mask,
  num_tokens: int,
  scale: float,
  token_order: mask_lib.TokenOrder,
  tiles: Tiles,
) -> _Plan:
  block_size = num_tokens // mask.num_blocks

  def granule_in(order: mask_lib.TokenOrder) -> int:
    return tiles_lib.granule_blocks(mask, order) * block_size

  granule = granule_in(token_order)
  reorder = False
  if token_order == "natural" and granule < _SMALL_GRANULE:
    reorder = granule_in("bit_reversed") > granule
  if reorder:
    token_order = "bit_reversed"
    granule = granule_in(token_order)
  # A tile must lie within a granule, and has 64 rows at least.
  if granule % tiles_lib.WARPGROUP_ROWS:
    raise errors.NotServedError(
      f"needs granules (runs of tokens that see the same keys) of a multiple"
      f" of {tiles_lib.WARPGROUP_ROWS} tokens, and this mask has {granule}"
    )
  return _Plan(mask, token_order, reorder, granule, scale, tiles.fit(granule))


def _require_device(compute_capability: str | None) -> str:
  """The compute capability, if there are kernels for it."""
  if compute_capability is None:
    if jax.default_backend() != "gpu":
      raise errors.NotServedError(
        f"needs an NVIDIA GPU, and the device is a {jax.default_backend()}"
      )
    device = jax.devices()[0]
    compute_capability = getattr(device, "compute_capability", "unknown")
  compute_capability = str(compute_capability)
  served = (_HOPPER, *_AMPERE)
  if compute_capability not in served:
    raise errors.NotServedError(
      f"needs a device of compute capability {_HOPPER} (Hopper) or"
      f" {', '.join(_AMPERE)} (Ampere, Ada), and the device has"
      f" {compute_capability}"
    )
  if compute_capability in _AMPERE:
    from . import ampere

    if not ampere.is_supported():
      raise errors.NotServedError(
        f"needs a jax whose Pallas compiles for compute capability"
        f" {compute_capability}, such as 0.12, and this is {jax.__version__}"
      )
  return compute_capability


def _require_family(tiles: Tiles, compute_capability: str) -> None:
  is_ampere = compute_capability in _AMPERE
  expected = tiles_lib.AmpereTiles if is_ampere else tiles_lib.GpuTiles
  if not isinstance(tiles, expected):
    raise errors.RequestError(
      f"tiles must be {expected.__name__} for compute capability"
      f" {compute_capability}, got {tiles}."
    )


def _require_arrays(head_dim: int, dtype: jax.typing.DTypeLike) -> None:
  if head_dim not in _HEAD_DIMS:
    raise errors.NotServedError(
      f"needs a head width K of 64 or 128, got {head_dim}; pad it with zeros"
    )
  if dtype not in (jnp.bfloat16, jnp.float16):
    raise errors.NotServedError(
      f"needs bfloat16 or float16 inputs, got {dtype}: the tensor cores have"
      " no float32"
    )


# jax cannot differentiate the kernels. Residuals stay in the kernels' order, so
# that the backward pass permutes only cotangents and gradients.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(
  query: jax.Array, key: jax.Array, value: jax.Array, plan: _Plan
) -> tuple[jax.Array, jax.Array]:
  return _forward(query, key, value, plan)[0]


def _forward(
  query: jax.Array, key: jax.Array, value: jax.Array, plan: _Plan
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
  batch = query.shape[0]
  # The sign of a negative scale goes to the queries (`exponent`).
  inputs = [plan.enter(x) for x in (query * plan.sign, key, value)]
  name = residuals_lib.name(plan.mask.num_frames)
  output, log_sum_exp = (
    ad_checkpoint.checkpoint_name(x, name)
    for x in plan.call(plan.kernels().forward, *inputs)
  )
  results = tuple(plan.leave(x, batch) for x in (output, log_sum_exp))
  return results, (*inputs, output, log_sum_exp)


def _backward(
  plan: _Plan,
  residuals: tuple[jax.Array, ...],
  cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, ...]:
  *inputs, output, log_sum_exp = residuals
  batch = cotangents[0].shape[0]
  output_bar, log_sum_exp_bar = map(plan.enter, cotangents)
  # Sums over K of float32 products, though the factors be bfloat16.
  products = output.astype(jnp.float32) * output_bar.astype(jnp.float32)
  offset = products.sum(-1) - log_sum_exp_bar
  # Kernels work in base 2, so one subtraction gives an exponent.
  args = (*inputs, output_bar, log_sum_exp * steps.LOG2_E, offset)
  kernels = plan.kernels()
  # Two kernels: a program of each owns the rows that it sums, so no sum is
  # shared and results do not depend on timing.
  query_bar = plan.call(kernels.query_bar, *args)
  bars = plan.call(kernels.key_value_bar, *args, by_key=True)
  bars = (query_bar * plan.sign, *bars)
  return tuple(plan.leave(bar, batch) for bar in bars)


_attend.defvjp(_forward, _backward)
