"""NVIDIA GPU backend: Pallas Mosaic GPU kernels for Hopper.

Forward; gradient of the queries; gradient of keys and values. Work is listed by
granules (`pallas_gpu_tiles`), so that no kernel computes a score that the mask
hides, whatever the mask, and none knows a quadratic table.

Why Mosaic GPU. Of the ways from jax to a tensor core it is the one that jax
keeps and that can express a list of tiles:

  Pallas Triton   Compiles such kernels too, but from jax 0.11 on its lowering
                  warns that the backend is deprecated and will be removed.
  cuDNN           `jax.nn.dot_product_attention` has no block mask. One call for
                  every group of equal stride, merged by log-sum-exps, would do
                  forward, but the gradient through a returned log-sum-exp is
                  dropped by jax's rule: the merged backward needs two more
                  passes over all scores.
  Mosaic GPU      Explicit: copies, barriers and register budgets are written
                  out, and jax's interpreter simulates them on a CPU. Called
                  unstable by its documentation: what is used here is small, and
                  compiles and is simulated alike in jax 0.10.2 and 0.12.0.1.

What it serves: head widths 64 and 128, bfloat16 and float16 (float32 scores,
softmax and sums), granules that are a multiple of 64 tokens, devices of compute
capability 9.0. It declines anything else with the reason: Ampere has neither
the matrix instructions nor the copy unit that the kernels are built on.

The gradients take seven matrix products a tile in two kernels, where one fused
kernel takes five: sums of the queries' gradient would then come from many
programs at once, in an order that differs from run to run. Here every result is
the same to the bit each time.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from . import mask as mask_lib
from . import pallas_gpu_steps as steps
from . import pallas_gpu_tiles as tiles_lib
from . import pallas_gpu_walk as walk

_HEAD_DIMS = (64, 128)
_COMPUTE_CAPABILITY = "9.0"
# Below, bit-reversing the blocks pays if that makes granules larger.
_SMALL_GRANULE = 128


def attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: mask_lib.Mask,
    *,
    scale: float,
    token_order: mask_lib.TokenOrder = "natural",
    tiles: tiles_lib.GpuTiles | None = None,
    compute_capability: str | None = None,
    interpret: Any = None,
) -> tuple[jax.Array, jax.Array]:
  """Attention over the token pairs that the mask allows.

  Args:
    query: [B, H, S, K]; S = num_frames * tokens_per_frame.
    key: As query.
    value: As query.
    mask: Which blocks see which.
    scale: Factor on the scores.
    token_order: Order in which the blocks of every frame come.
    tiles: Largest tile sizes; they are reduced to divide a granule. None takes
      the default for the head width.
    compute_capability: Of the device that is compiled for, as "9.0". None asks
      the default device.
    interpret: None runs on the device. True walks the same tiles in plain JAX
      on any device; parameters of jax's GPU interpreter
      (`jax.experimental.pallas.mosaic_gpu.InterpretGPUParams`) simulate the
      kernels. Both serve float32 and any head width as well.

  Returns:
    Output [B, H, S, K] in the dtype of query and log-sum-exp [B, H, S] float32.

  Raises:
    NotImplementedError: The backend cannot serve the arguments.
    ValueError: The tiles do not fit a multiprocessor.
  """
  head_dim = query.shape[-1]
  if not interpret:
    _require_device(compute_capability)
    _require_arrays(head_dim, query.dtype)
  plan = _plan(mask, query.shape[2], scale, token_order, head_dim, tiles)
  if not interpret:
    plan.tiles.require_shared_memory(head_dim, query.dtype.itemsize)
  plan = dataclasses.replace(plan, interpret=interpret)
  inputs = (query, key, value)
  inputs = [steps.varying_as(x, *inputs) for x in inputs]
  return _attend(*inputs, plan)


def default_tiles(head_dim: int) -> tiles_lib.GpuTiles:
  """Tile sizes for Hopper: the largest that compile without spills to speak of.

  Warpgroups that compute take registers from the one that copies. The assembler
  that jax 0.12 starts does not do so ("setmaxnreg ignored to maintain
  compatibility across compilation units"): wide heads need smaller tiles there.

  Args:
    head_dim: Head width K.
  """
  if head_dim <= 64 or jax.__version_info__ < (0, 11):
    return tiles_lib.GpuTiles()
  return tiles_lib.GpuTiles(
      forward=tiles_lib.Tile(2, 64, stages=4),
      query_bar=tiles_lib.Tile(2, 64),
      key_value_bar=tiles_lib.Tile(1, 64),
  )


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Everything about a call that is known when it is traced."""

  mask: mask_lib.Mask
  token_order: mask_lib.TokenOrder  # Of the kernels.
  reorder: bool  # Whether blocks are bit-reversed on the way in and out.
  granule: int
  scale: float
  tiles: tiles_lib.GpuTiles
  interpret: Any = None

  @property
  def exponent(self) -> float:
    """Not negative: the kernels take the maximum before they scale."""
    return abs(self.scale) * steps.LOG2_E

  @property
  def sign(self) -> float:
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
    return tiles_lib.tile_lists(self.mask, self.token_order, by_key)

  def kernels(self) -> Any:
    """The functions `forward`, `query_bar` and `key_value_bar`."""
    if self.interpret is True:
      return walk
    # Imported late: whoever runs on another device needs no Mosaic GPU.
    from . import pallas_gpu_kernels

    return pallas_gpu_kernels

  def call(self, function, *args, by_key: bool = False):
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


def _plan(mask, num_tokens, scale, token_order, head_dim, tiles) -> _Plan:
  block_size = num_tokens // mask.num_blocks

  def granule_in(order):
    return tiles_lib.granule_blocks(mask, order) * block_size

  granule = granule_in(token_order)
  reorder = False
  if token_order == "natural" and granule < _SMALL_GRANULE:
    reorder = granule_in("bit_reversed") > granule
  if reorder:
    token_order = "bit_reversed"
    granule = granule_in(token_order)
  if granule % tiles_lib.WARPGROUP_ROWS:
    raise NotImplementedError(
        f"needs granules (runs of tokens that see the same keys) of a multiple"
        f" of {tiles_lib.WARPGROUP_ROWS} tokens, and this mask has {granule}"
    )
  if tiles is None:
    tiles = default_tiles(head_dim)
  return _Plan(
      mask, token_order, reorder, granule, scale, tiles.fit(granule)
  )


def _require_device(compute_capability: str | None) -> None:
  if compute_capability is None:
    if jax.default_backend() != "gpu":
      raise NotImplementedError(
          f"needs an NVIDIA GPU, and the device is a {jax.default_backend()}"
      )
    device = jax.devices()[0]
    compute_capability = getattr(device, "compute_capability", "unknown")
  if str(compute_capability) != _COMPUTE_CAPABILITY:
    raise NotImplementedError(
        f"needs compute capability {_COMPUTE_CAPABILITY} (Hopper), and the"
        f" device has {compute_capability}"
    )


def _require_arrays(head_dim: int, dtype) -> None:
  if head_dim not in _HEAD_DIMS:
    raise NotImplementedError(
        f"needs a head width K of 64 or 128, got {head_dim}; pad it with zeros"
    )
  if dtype not in (jnp.bfloat16, jnp.float16):
    raise NotImplementedError(
        f"needs bfloat16 or float16 inputs, got {dtype}: the tensor cores have"
        " no float32"
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attend(query, key, value, plan):
  return _forward(query, key, value, plan)[0]


def _forward(query, key, value, plan):
  batch = query.shape[0]
  inputs = [plan.enter(x) for x in (query * plan.sign, key, value)]
  output, log_sum_exp = plan.call(plan.kernels().forward, *inputs)
  results = tuple(plan.leave(x, batch) for x in (output, log_sum_exp))
  return results, (*inputs, output, log_sum_exp)


def _backward(plan, residuals, cotangents):
  *inputs, output, log_sum_exp = residuals
  batch = cotangents[0].shape[0]
  output_bar, log_sum_exp_bar = map(plan.enter, cotangents)
  # Sums over K of float32 products, though the factors be bfloat16.
  products = output.astype(jnp.float32) * output_bar.astype(jnp.float32)
  offset = products.sum(-1) - log_sum_exp_bar
  args = (*inputs, output_bar, log_sum_exp * steps.LOG2_E, offset)
  kernels = plan.kernels()
  query_bar = plan.call(kernels.query_bar, *args)
  bars = plan.call(kernels.key_value_bar, *args, by_key=True)
  bars = (query_bar * plan.sign, *bars)
  return tuple(plan.leave(bar, batch) for bar in bars)


_attend.defvjp(_forward, _backward)
