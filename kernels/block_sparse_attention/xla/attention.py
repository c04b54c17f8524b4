"""Plain JAX backend: runs everywhere, forward and backward.

Three ways to the same numbers, chosen by size and mask:

  small       S <= 512: all scores at once with the mask as a constant bias.
              Fastest there: one large batched product instead of many small.
  contiguous  Powers of two: dense attention between contiguous runs of tokens
              in bit-reversed order, without gathers (`xla/contiguous.py`).
  lists       Any other mask: lists of key blocks, gathered (`xla/lists.py`).

All keep the log-sum-exp and recompute the scores in the backward pass. The last
two work head by head (a few heads at once if they are small): memory is linear
in S. Arithmetic is float32, cast from the input dtype a head at a time.

With the batch sharded over devices, call it inside `jax.shard_map`: the loop
over heads of the large paths would gather a sharded axis otherwise.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
import math
import types
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from .. import errors
from .. import mask as mask_lib
from .. import reference
from . import contiguous
from . import lists as xla_lists

Path = Literal["small", "contiguous", "lists"]

_PATHS = ("small", "contiguous", "lists")
_MAX_SMALL_TOKENS = 512
_MAX_SMALL_SCORES = 1 << 26  # Elements; 256 MiB in float32.


@dataclasses.dataclass(frozen=True)
class TileSizes:
  """Sizes of the steps of the large paths; the defaults suit CPUs.

  Attributes:
    chunk_scores: Largest number of scores in a step of the contiguous path, 4
      MiB by default: more would leave the cache. The backward pass takes half
      as many, as it holds two such arrays.
    chunk_tokens: Number of queries of a segment below which it is not cut
      further. Twice as many make the backward pass of dense masks up to 6 %
      faster and that of sparse ones no faster, and take more memory.
    step_tokens: Number of queries in a step of the path of lists.
    group_tokens: Largest number of tokens of heads that are taken together.
  """

  chunk_scores: int = 1 << 20
  chunk_tokens: int = 128
  step_tokens: int = 256
  group_tokens: int = 2048

  def __post_init__(self):
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if int(value) != value or value < 1:
        raise errors.RequestError(
          f"{field.name} must be a whole number of at least 1, got {value}."
        )


@dataclasses.dataclass(frozen=True)
class _Static:
  """The static arguments of a call."""

  mask: mask_lib.Mask
  scale: float
  token_order: mask_lib.TokenOrder
  path: Path
  tiles: TileSizes


def attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: mask_lib.Mask,
  *,
  scale: float,
  token_order: mask_lib.TokenOrder = "natural",
  path: Path | None = None,
  tiles: TileSizes | None = None,
) -> tuple[jax.Array, jax.Array]:
  """Attention over the token pairs that the mask allows.

  Args:
    query: [B, H, S, K]; S = num_frames * tokens_per_frame.
    key: Same shape and dtype as query.
    value: Same shape and dtype as query.
    mask: Visible key blocks of each query block.
    scale: Factor on the scores.
    token_order: Order of the blocks within each frame.
    path: Name of a path of the module's table; None chooses by size and mask.
    tiles: Chunk sizes; None takes the defaults.

  Returns:
    Output [B, H, S, K] in the dtype of query and log-sum-exp [B, H, S] float32.

  Raises:
    NotImplementedError: The path named cannot serve the mask.
    ValueError: There is no path of that name.
  """
  if path is None:
    path = _choose(query.shape, mask)
  elif path not in _PATHS:
    raise errors.RequestError(
      f"path={path!r} is unknown; choose one of {_PATHS}."
    )
  elif path == "contiguous" and not mask.is_power_of_two:
    raise errors.NotServedError(
      "the contiguous path needs strides and blocks a frame that are powers"
      f' of two, got {mask}; path="lists" serves any mask'
    )
  static = _Static(mask, scale, token_order, path, tiles or TileSizes())
  if path == "small":
    return _small(query, key, value, static)
  return _by_heads(query, key, value, static)


def _choose(shape: tuple[int, ...], mask: mask_lib.Mask) -> Path:
  # Both bounds: short sequences, but not of so many heads that their scores,
  # all alive at once, fill the memory.
  batch, heads, tokens, _ = shape
  num_scores = batch * heads * tokens**2
  if tokens <= _MAX_SMALL_TOKENS and num_scores <= _MAX_SMALL_SCORES:
    return "small"
  return "contiguous" if mask.is_power_of_two else "lists"


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _small(
  query: jax.Array, key: jax.Array, value: jax.Array, static: _Static
) -> tuple[jax.Array, jax.Array]:
  """Computes all scores at once, and again in the backward pass.

  Recomputing them is as fast as storing them.
  """
  return _small_forward(query, key, value, static)[0]


def _small_forward(
  query: jax.Array, key: jax.Array, value: jax.Array, static: _Static
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
  query_f32, key_f32, value_f32 = (
    x.astype(jnp.float32) for x in (query, key, value)
  )
  # Unlike the backward pass this is not split into segments: on CPUs it then
  # takes two thirds of the time.
  scores = jnp.einsum("bhqk,bhsk->bhqs", query_f32 * static.scale, key_f32)
  scores += _small_bias(query, static)
  # Subtracted before exp, which would overflow in float32 from 89 on.
  maximum = scores.max(-1, keepdims=True)
  weights = jnp.exp(scores - maximum)
  total = weights.sum(-1, keepdims=True)
  output = jnp.einsum("bhqs,bhsk->bhqk", weights, value_f32) / total
  output = output.astype(query.dtype)
  log_sum_exp = (maximum + jnp.log(total))[..., 0]
  return (output, log_sum_exp), (query, key, value, output, log_sum_exp)


def _small_backward(
  static: _Static,
  residuals: tuple[jax.Array, ...],
  cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, ...]:
  query, key, value, output, log_sum_exp = residuals
  output_bar, log_sum_exp_bar = cotangents
  output_bar = _rows(output_bar)
  # d score = weight * (d weight - offset): the sum that the softmax subtracts,
  # with the share of the log-sum-exp's own cotangent in the same place.
  offset = (_rows(output) * output_bar).sum(-1) - log_sum_exp_bar.ravel()
  query_bar, key_bar, value_bar = contiguous.differentiate_chunk(
    (_rows(query) * static.scale, log_sum_exp, output_bar, offset),
    _heads(key),
    _heads(value),
    _small_bias(query, static),
  )
  # Without the barrier XLA merges each product with its transpose, at half the
  # speed.
  key_bar, value_bar = jax.lax.optimization_barrier((key_bar, value_bar))
  bars = (
    query_bar * static.scale,
    key_bar.swapaxes(1, 2),
    value_bar.swapaxes(1, 2),
  )
  return tuple(x.reshape(query.shape).astype(query.dtype) for x in bars)


_small.defvjp(_small_forward, _small_backward)


def _rows(x: jax.Array) -> jax.Array:
  """Tokens of all heads in float32, [B H S, K]."""
  return x.astype(jnp.float32).reshape(-1, x.shape[-1])


def _heads(x: jax.Array) -> jax.Array:
  """Tokens in float32 by head, [B H, S, K]."""
  return x.astype(jnp.float32).reshape(-1, *x.shape[-2:])


def _small_bias(query: jax.Array, static: _Static) -> np.ndarray:
  """Bias of all scores of a head; no row is all -inf: a block sees itself."""
  # A constant of the compiled program, at most 512 x 512; the reference's own
  # mask, so that the smallest path cannot disagree with it.
  seen = reference.token_mask(static.mask, query.shape[2], static.token_order)
  return np.where(seen, 0, -np.inf).astype(np.float32)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def _by_heads(
  query: jax.Array, key: jax.Array, value: jax.Array, static: _Static
) -> tuple[jax.Array, jax.Array]:
  return _forward(query, key, value, static)[0]


def _forward(
  query: jax.Array, key: jax.Array, value: jax.Array, static: _Static
) -> tuple[tuple[jax.Array, jax.Array], tuple[jax.Array, ...]]:
  path = _Layout(static)

  def attend(
    query: jax.Array, key: jax.Array, value: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    # S * K factors here instead of S^2 on the scores.
    query, key, value = map(path.enter, (query * static.scale, key, value))
    return tuple(map(path.leave, path.forward(query, key, value)))

  output, log_sum_exp = _map_heads(attend, static, query, key, value)
  output = output.astype(query.dtype)
  return (output, log_sum_exp), (query, key, value, output, log_sum_exp)


def _backward(
  static: _Static,
  residuals: tuple[jax.Array, ...],
  cotangents: tuple[jax.Array, jax.Array],
) -> tuple[jax.Array, ...]:
  path = _Layout(static)

  def differentiate(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    output: jax.Array,
    log_sum_exp: jax.Array,
    *bars: jax.Array,
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    output_bar, log_sum_exp_bar = bars
    offset = (output * output_bar).sum(-1) - log_sum_exp_bar
    args = (query * static.scale, key, value, log_sum_exp, output_bar, offset)
    # Everything with an axis of tokens changes its order, also the columns.
    bars = map(path.leave, path.backward(*map(path.enter, args)))
    query_bar, key_bar, value_bar = bars
    return query_bar * static.scale, key_bar, value_bar

  bars = _map_heads(differentiate, static, *residuals, *cotangents)
  return tuple(bar.astype(residuals[0].dtype) for bar in bars)


_by_heads.defvjp(_forward, _backward)


def _map_heads(
  function: Callable[..., Sequence[jax.Array]],
  static: _Static,
  *arrays: jax.Array,
) -> list[jax.Array]:
  """Maps over B and H in float32; small heads are taken several at a time."""
  batch, heads, tokens = arrays[0].shape[:3]
  group = max(1, static.tiles.group_tokens // tokens)
  # Small heads would be dominated by the overhead of a loop step. Groups are
  # equal, so that no head that does not exist is computed.
  group = math.gcd(batch * heads, group)
  if group == 1:
    # No axis of length one: XLA would copy all arrays to lay it out.
    group_shape, mapped = (), function
  else:
    group_shape, mapped = (group,), jax.vmap(function)
  grouped = [x.reshape(-1, *group_shape, *x.shape[2:]) for x in arrays]
  # A loop over heads, not a batch axis: memory for the scores of one group, and
  # a float32 copy of one group of the inputs.
  results = jax.lax.map(
    lambda xs: mapped(*(x.astype(jnp.float32) for x in xs)), grouped
  )
  first = 1 + len(group_shape)
  return [x.reshape(batch, heads, *x.shape[first:]) for x in results]


class _Layout:
  """A large path and the layout of its arrays."""

  def __init__(self, static: _Static):
    self._mask = mask = static.mask
    self._tiles = static.tiles
    self._is_contiguous = static.path == "contiguous"
    # The blocks that a query sees at stride 2^k lie 2^k apart; with the bits of
    # their index reversed they are one run. At stride 1 everything sees
    # everything, in any order.
    #
    #   natural   0 1 2 3 4 5 6 7     stride 2 sees   0 . 2 . 4 . 6 .
    #   reversed  0 4 2 6 1 5 3 7     the same        0 4 2 6 . . . .
    reorder = self._is_contiguous and mask.max_stride > 1
    self._reorder = reorder and static.token_order == "natural"
    self._token_order = static.token_order

  def forward(self, *args: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Attention of one head, in the layout of `enter`."""
    return self._module.forward(*args, *self._options(1))

  def backward(
    self, *args: jax.Array
  ) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients of one head, in the layout of `enter`."""
    # Scores and their gradients are alive together: chunks of half the size.
    return self._module.backward(*args, *self._options(2))

  # Both modules have the functions forward and backward, with these options.
  @property
  def _module(self) -> types.ModuleType:
    return contiguous if self._is_contiguous else xla_lists

  def _options(self, num_arrays: int) -> tuple[Any, ...]:
    tiles = self._tiles
    if self._is_contiguous:
      chunks = contiguous.Chunks(
        max(1, tiles.chunk_scores // num_arrays), tiles.chunk_tokens
      )
      return self._mask, chunks
    return self._mask, self._token_order, self._tiles.step_tokens

  def enter(self, x: jax.Array) -> jax.Array:
    """[S, ...] -> [F, P, ...] or [blocks, block size, ...]."""
    if self._is_contiguous:
      frames = x.reshape(self._mask.num_frames, -1, *x.shape[1:])
      return self._swap_order(frames)
    return x.reshape(self._mask.num_blocks, -1, *x.shape[1:])

  def leave(self, x: jax.Array) -> jax.Array:
    """Undoes `enter`."""
    if self._is_contiguous:
      x = self._swap_order(x)
    return x.reshape(-1, *x.shape[2:])

  def _swap_order(self, x: jax.Array) -> jax.Array:
    """Natural to bit-reversed order of blocks and back, if that is needed."""
    if not self._reorder:
      return x
    blocks = self._mask.blocks_per_frame
    # Reversing the bits of an index is transposing axes of length two.
    bits = (2,) * (blocks.bit_length() - 1)
    y = x.reshape(len(x), *bits, -1)
    y = y.transpose(0, *range(len(bits), 0, -1), len(bits) + 1)
    return y.reshape(x.shape)
