"""Pallas backend for TPU: forward and fused backward over exact lists of work.

The mask is cut into pieces between which it is all or nothing (`lists.py`). The
kernels (`forward.py`, `backward.py`) stream the pieces that a tile sees past
it, so the work is exactly that of the mask, in large bfloat16 products with
float32 accumulation. float32 inputs are multiplied in float32.

This file decides which calls are served, orders and pads the blocks, and binds
the gradients.
"""

from collections.abc import Callable, Sequence
import functools
from typing import NamedTuple

import jax
from jax import ad_checkpoint
from jax import custom_batching
import jax.numpy as jnp
import numpy as np

from .. import errors
from .. import mask as mask_lib
from .. import residuals as residuals_lib
from . import array_order
from . import backward
from . import forward
from . import lists as tpu_lists
from . import pair_lists
from . import products
from . import tiles as tpu_tiles

_HEAD_DIMS = (64, 128)


class _Static(NamedTuple):
  """The static arguments of a call."""

  mask: mask_lib.Mask
  token_order: mask_lib.TokenOrder
  scale: float
  tiles: tpu_tiles.TileSizes
  layout: tpu_lists.Layout
  order: array_order.ArrayOrder
  interpret: bool


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: mask_lib.Mask,
  *,
  scale: float,
  token_order: mask_lib.TokenOrder = "natural",
  tiles: tpu_tiles.TileSizes | None = None,
  chip: tpu_tiles.Chip | None = None,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """Attention over the token pairs that the mask allows.

  Args:
    query: [B, H, S, K]; S = num_frames * tokens_per_frame.
    key: Same shape and dtype as query.
    value: Same shape and dtype as query.
    mask: Visible key blocks of each query block.
    scale: Factor on the scores.
    token_order: Order of the blocks within each frame.
    tiles: Tile sizes; None takes the default of the chip.
    chip: TPU to compile for ahead of time, for instance "v5e"; None takes the
      attached one.
    interpret: Run the kernels in Pallas' interpreter, on any device; slow, for
      tests. Sizes are free then.

  Returns:
    Output [B, H, S, K] in the dtype of query and log-sum-exp [B, H, S] float32.

  Raises:
    NotImplementedError: No TPU, or sizes that the kernels do not serve.
  """
  tokens_per_frame = query.shape[2] // mask.num_frames
  static = _static(
    query, tokens_per_frame, mask, scale, token_order, tiles, chip, interpret
  )
  return _attention(query, key, value, static)


def attention_of_frames(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: mask_lib.Mask,
  *,
  scale: float,
  token_order: mask_lib.TokenOrder = "natural",
  tiles: tpu_tiles.TileSizes | None = None,
  chip: tpu_tiles.Chip | None = None,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
  """`attention` of arrays whose frames are outermost, which stay so.

  Args:
    query: [F, B, H, N, K]; N tokens a frame.
    key: Same shape and dtype as query.
    value: Same shape and dtype as query.
    mask: Same as for `attention`, like the other named arguments.
    scale: See mask.
    token_order: See mask.
    tiles: See mask.
    chip: See mask.
    interpret: See mask.

  Returns:
    Output [F, B, H, N, K] in the dtype of query and log-sum-exp [F, B, H, N]
    float32.

  Raises:
    NotImplementedError: Same as for `attention`.
  """
  static = _static(
    query,
    query.shape[3],
    mask,
    scale,
    token_order,
    tiles,
    chip,
    interpret,
    array_order.FRAMES_FIRST,
  )
  return _attention(query, key, value, static)


def gradients(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  output: jax.Array,
  log_sum_exp: jax.Array,
  output_bar: jax.Array,
  log_sum_exp_bar: jax.Array,
  mask: mask_lib.Mask,
  *,
  scale: float,
  token_order: mask_lib.TokenOrder = "natural",
  tiles: tpu_tiles.TileSizes | None = None,
  chip: tpu_tiles.Chip | None = None,
  interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """The backward pass of `attention` alone: gradients of query, key and value.

  Args:
    query: Same as for `attention`, like key, value and the named arguments.
    key: See query.
    value: See query.
    output: Result of `attention`, like log_sum_exp.
    log_sum_exp: See output.
    output_bar: Cotangent of the output.
    log_sum_exp_bar: Cotangent of the log-sum-exp.
    mask: See query.
    scale: See query.
    token_order: See query.
    tiles: See query.
    chip: See query.
    interpret: See query.

  Raises:
    NotImplementedError: Same as for `attention`.
  """
  tokens_per_frame = query.shape[2] // mask.num_frames
  static = _static(
    query, tokens_per_frame, mask, scale, token_order, tiles, chip, interpret
  )
  residuals = (query, key, value, output, log_sum_exp)
  return _backward(static, residuals, (output_bar, log_sum_exp_bar))


def _static(
  query: jax.Array,
  tokens_per_frame: int,
  mask: mask_lib.Mask,
  scale: float,
  token_order: mask_lib.TokenOrder,
  tiles: tpu_tiles.TileSizes | None,
  chip: tpu_tiles.Chip | None,
  interpret: bool,
  order: array_order.ArrayOrder = array_order.HEADS_FIRST,
) -> _Static:
  if not interpret:
    if chip is None:
      chip = _chip_at_hand()
    _require_sizes(query, tiles)
  if tiles is None:
    tiles = tpu_tiles.default(chip, query.dtype)
  layout = tpu_lists.make_layout(
    mask,
    tokens_per_frame,
    tiles.piece_tokens,
    tiles.lanes,
  )
  return _Static(mask, token_order, scale, tiles, layout, order, interpret)


def _chip_at_hand() -> tpu_tiles.Chip:
  if jax.default_backend() != "tpu":
    raise errors.NotServedError(
      f"the kernels run on TPU, and the default backend is"
      f' "{jax.default_backend()}"; pallas_tpu.attention(interpret=True) runs'
      " them anywhere, slowly"
    )
  return tpu_tiles.chip_of(jax.devices()[0].device_kind)


def _require_sizes(query: jax.Array, tiles: tpu_tiles.TileSizes | None) -> None:
  # TPU matrix units multiply bfloat16.
  if query.dtype == jnp.float16:
    raise errors.NotServedError("float16 is not served; cast to bfloat16")
  if query.shape[-1] not in _HEAD_DIMS:
    raise errors.NotServedError(
      f"head dimension K={query.shape[-1]} is not one of {_HEAD_DIMS}, which"
      " fill the lanes of the matrix units"
    )
  if tiles is not None and tiles.lanes % tpu_tiles.LANES:
    raise errors.NotServedError(
      f"tiles.lanes={tiles.lanes} must be a multiple of {tpu_tiles.LANES} on"
      " a device"
    )


# jax cannot differentiate kernels that make their own copies. Output and
# log-sum-exp are kept, from which the backward kernel recomputes the weights.
@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _attention(
  query: jax.Array, key: jax.Array, value: jax.Array, static: _Static
) -> tuple[jax.Array, jax.Array]:
  return _forward(query, key, value, static)[0]


def _forward(
  query: jax.Array, key: jax.Array, value: jax.Array, static: _Static
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
  arrays = (query, key, value)
  name = residuals_lib.name(static.mask.num_frames)
  output, log_sum_exp = (
    ad_checkpoint.checkpoint_name(x, name)
    for x in _batched(_run_forward, static)(*arrays)
  )
  return (output, log_sum_exp), (*arrays, output, log_sum_exp)


def _backward(
  static: _Static,
  residuals: tuple[jax.Array, ...],
  cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, jax.Array, jax.Array]:
  return _batched(_run_backward, static)(*residuals, *cotangents)


_attention.defvjp(_forward, _backward)


def _batched(
  function: Callable[..., tuple[jax.Array, ...]], static: _Static
) -> Callable[..., tuple[jax.Array, ...]]:
  """Makes vmap join its axis to the batch; arrays are [B, H, S, ...].

  With frames first they are [F, B, H, N, ...].
  """
  at = 1 if static.order.frames_first else 0  # The batch axis.

  # The kernels address arrays in main memory by head, so that a new batch axis
  # has to become heads.
  @custom_batching.custom_vmap
  def run(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return function(*arrays, static)

  @run.def_vmap
  def _(
    axis_size: int, in_batched: Sequence[bool], *arrays: jax.Array
  ) -> tuple[tuple[jax.Array, ...], tuple[bool, ...]]:
    arrays = [
      x if batched else jnp.broadcast_to(x, (axis_size, *x.shape))
      for x, batched in zip(arrays, in_batched)
    ]

    # vmap of vmap: the call below is batched by this rule again.
    def join(x: jax.Array) -> jax.Array:
      x = jnp.moveaxis(x, 0, at)
      return x.reshape(*x.shape[:at], -1, *x.shape[at + 2 :])

    def split(x: jax.Array) -> jax.Array:
      x = x.reshape(*x.shape[:at], axis_size, -1, *x.shape[at + 1 :])
      return jnp.moveaxis(x, at, 0)

    results = tuple(split(x) for x in run(*map(join, arrays)))
    return results, (True,) * len(results)

  return run


def _run_forward(
  query: jax.Array, key: jax.Array, value: jax.Array, static: _Static
) -> tuple[jax.Array, jax.Array]:
  pieces = _Pieces(static, query.shape)
  output, log_sum_exp = forward.forward(
    *map(pieces.enter, (query, key, value)),
    pair_lists.for_tiles(static.mask, static.layout, static.tiles),
    scale=static.scale,
    valid=static.layout.valid,
    tiles=static.tiles,
    order=static.order,
    interpret=static.interpret,
  )
  # [.., 1, tokens] to [.., tokens, 1]: `leave` expects tokens before width.
  log_sum_exp = pieces.leave(log_sum_exp.swapaxes(-1, -2))
  return pieces.leave(output), log_sum_exp[..., 0]


def _run_backward(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  output: jax.Array,
  log_sum_exp: jax.Array,
  output_bar: jax.Array,
  log_sum_exp_bar: jax.Array,
  static: _Static,
) -> tuple[jax.Array, jax.Array, jax.Array]:
  pieces = _Pieces(static, query.shape)
  # The gradient of the softmax, p * (dp - sum(p * dp)): the sum equals output *
  # output_bar over K. The log-sum-exp has the gradient p, so its cotangent
  # joins with a minus.
  # The barrier keeps the compiler from converting whole arrays beforehand.
  output, output_bar = jax.lax.optimization_barrier((output, output_bar))
  offset = (output.astype(jnp.float32) * output_bar).sum(-1) - log_sum_exp_bar
  # The log-sum-exp is in base 2, because the kernels compute weights by exp2.
  rows = [
    pieces.enter(x[..., None])[..., None, :, 0]
    for x in (products.LOG2_E * log_sum_exp, offset)
  ]
  query_bar, key_bar, value_bar = backward.backward(
    *map(pieces.enter, (query, key, value, output_bar.astype(query.dtype))),
    jnp.concatenate(rows, -2),
    tpu_lists.make_lists(
      static.mask,
      static.layout,
      static.tiles.tiles(by_keys=True),
      static.tiles.stream,
      static.tiles.buffers,
    ),
    scale=static.scale,
    valid=static.layout.valid,
    tiles=static.tiles,
    order=static.order,
    interpret=static.interpret,
  )
  # Scaled once a token here instead of once a score in the kernel.
  query_bar = static.scale * query_bar.swapaxes(-1, -2)
  key_bar = static.scale * key_bar.astype(jnp.float32)
  return tuple(
    pieces.leave(x.astype(query.dtype)) for x in (query_bar, key_bar, value_bar)
  )


class _Pieces:
  """Changes arrays to the kernels' order of blocks and shape, and back.

  The arrays are [B, H, S, n], or [F, B, H, N, n] with frames first.
  """

  def __init__(self, static: _Static, shape: tuple[int, ...]):
    self._layout = static.layout
    self._shape = shape[:-1]
    self._frames_first = static.order.frames_first
    blocks = len(static.layout.block_order)
    # The blocks of a piece must be neighbours in memory, so that one copy moves
    # it; with strides that are powers of two, bit-reversed order makes them so.
    order = np.array(static.layout.block_order)
    if static.token_order == "bit_reversed":
      # From the order that the blocks are in to the order of the kernels.
      order = mask_lib.inverse_order(mask_lib.bit_reversal(blocks))[order]
    self._blocks = blocks
    self._order = None if (order == np.arange(blocks)).all() else order

  def enter(self, x: jax.Array) -> jax.Array:
    """To [heads, frames, segments, tokens, n], or frames before heads."""
    layout = self._layout
    x = self._permute(x, self._order)
    leading = (-1, layout.num_frames)
    if self._frames_first:
      leading = leading[::-1]
    x = x.reshape(*leading, layout.segments, layout.valid, x.shape[-1])
    # Scores are [keys, queries]: tokens fill the lanes of registers, 128 on a
    # device.
    #
    #   frame    [ valid tokens | 0 ][ valid tokens | 0 ]   a segment each
    fill = layout.tokens - layout.valid
    return jnp.pad(x, [(0, 0)] * 3 + [(0, fill), (0, 0)]) if fill else x

  def leave(self, x: jax.Array) -> jax.Array:
    """Undoes `enter`."""
    x = x[..., : self._layout.valid, :]
    x = x.reshape(*self._shape, x.shape[-1])
    order = self._order
    return self._permute(
      x, None if order is None else mask_lib.inverse_order(order)
    )

  def _permute(self, x: jax.Array, order: np.ndarray | None) -> jax.Array:
    if order is None:
      return x
    frames = self._layout.num_frames
    leading = x.shape[:3] if self._frames_first else (*x.shape[:2], frames)
    blocks = x.reshape(*leading, self._blocks, -1)
    return blocks[..., order, :].reshape(x.shape)
