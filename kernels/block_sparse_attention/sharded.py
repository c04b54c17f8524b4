"""Attention of clips whose frames lie on several devices: frames <-> heads.

The mask saves work but no communication: every key block of every frame is seen
by some query of a given frame, so a device that holds some frames would need
the keys and values of all others. Instead, each of n devices sends its frames
away by heads and receives all frames of H / n heads (one all-to-all an array),
attends without communication, and sends the output back. All devices have the
same mask, and so the same work.

Volume. A device receives (n - 1) / n^2 * B * S * H * K numbers for each array
that is exchanged. Forward exchanges four: query, key, value and the output.
Backward exchanges four: the output's cotangent and three gradients; inside
`jax.checkpoint`, the forward's four again. At 64 frames x 4096 tokens, 16 heads
of 128 in bfloat16 on 16 devices an array is 63 MB a device, forward 252 MB; to
gather keys and values is 2.0 GB. Where heads are already split over another
mesh axis, H counts the heads of a device.

Source: Jacobs et al., DeepSpeed Ulysses, 2023.
"""

from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from . import api
from . import errors
from . import mask as mask_lib

# Axes of [B, H, S, K].
_HEADS, _TOKENS = 1, 2


def attend_with_sharded_frames(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: mask_lib.Mask,
  *,
  axis_name: str,
  **kwargs: Any,
) -> jax.Array:
  """`block_sparse_attention` inside `jax.shard_map`, frames being sharded.

  Args:
    query: This device's frames of the queries, [B, H, S / n, K]: whole frames,
      in the order of the devices along the axis.
    key: Same shape and dtype as query.
    value: Same shape and dtype as query.
    mask: Mask of the whole clip.
    axis_name: Mesh axis of n devices along which the frames lie.
    **kwargs: scale, token_order and implementation of
      `block_sparse_attention`.

  Returns:
    This device's frames of the output, [B, H, S / n, K].

  Raises:
    ValueError: The axis does not divide heads or frames; what
      `block_sparse_attention` refuses.
  """
  if kwargs.get("return_log_sum_exp"):
    raise errors.RequestError(
      "return_log_sum_exp is not served with sharded frames; call"
      " block_sparse_attention on whole clips for it."
    )
  # The mask counts whole frames; a frame split between devices would still have
  # the right number of tokens.
  _check_divides("frames", mask.num_frames, axis_name)
  return with_all_frames(
    lambda *arrays: api.block_sparse_attention(*arrays, mask, **kwargs),
    query,
    key,
    value,
    axis_name=axis_name,
    frame_axis=_TOKENS,
    head_axis=_HEADS,
  )


def with_all_frames(
  attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  axis_name: str,
  frame_axis: int,
  head_axis: int,
) -> jax.Array:
  """Calls `attend` on all frames of a part of the heads.

  The exchange itself, for any attention whose heads know nothing of each other
  and any order of axes; inside `jax.shard_map`, frames being sharded.

  Args:
    attend: Takes and returns arrays that hold n times the frames, and one of n
      parts of the heads.
    query: This device's frames of the queries, all heads.
    key: Same shape and dtype as query.
    value: Same shape and dtype as query.
    axis_name: Mesh axis of n devices along which the frames lie, in order.
    frame_axis: Axis of the arrays that the frames lead: frames, or the tokens
      of all frames.
    head_axis: Axis of the heads.

  Returns:
    This device's frames of what `attend` returns, all heads.

  Raises:
    ValueError: n does not divide the heads.
  """
  _check_divides("heads", query.shape[head_axis], axis_name)

  # Tiled all-to-all: part i along `split` goes to device i, and the parts
  # received are joined along `join` in the order of the devices, which is that
  # of the frames.
  def exchange(x: jax.Array, split: int, join: int) -> jax.Array:
    return lax.all_to_all(x, axis_name, split, join, tiled=True)

  arrays = (exchange(x, head_axis, frame_axis) for x in (query, key, value))
  return exchange(attend(*arrays), frame_axis, head_axis)


def with_all_frames_of_groups(
  attend: Callable[[jax.Array, jax.Array, jax.Array], jax.Array],
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  *,
  axis_name: str,
) -> jax.Array:
  """`with_all_frames` where heads lie in n groups, outermost in memory.

  What a device sends to another is then one stretch of memory, and so is what
  it receives: nothing is put in order before or after the exchange.

  Args:
    attend: Takes and returns arrays [n * F, ...] of all frames of a group.
    query: This device's frames of the queries, [n, F, ...], by groups.
    key: Same shape and dtype as query.
    value: Same shape and dtype as query.
    axis_name: Mesh axis of n devices along which the frames lie, in order.

  Returns:
    This device's frames of what `attend` returns, [n, F, ...].

  Raises:
    ValueError: The groups are not as many as the devices.
  """
  num_groups, num_frames = query.shape[:2]
  if num_groups != lax.axis_size(axis_name):
    raise errors.RequestError(
      f"{num_groups} groups of heads for the {lax.axis_size(axis_name)} devices"
      f" of axis {axis_name!r}: there must be one for each."
    )

  # Part i goes to device i, and part i of the result came from it.
  def exchange(x: jax.Array) -> jax.Array:
    return lax.all_to_all(x, axis_name, 0, 0)

  # One axis of all frames, in the order of the devices.
  merge = lambda x: x.reshape(num_groups * num_frames, *x.shape[2:])
  out = attend(*(merge(exchange(x)) for x in (query, key, value)))
  return exchange(out.reshape(num_groups, num_frames, *out.shape[1:]))


def _check_divides(name: str, size: int, axis_name: str) -> None:
  num_devices = lax.axis_size(axis_name)
  if size % num_devices:
    raise errors.RequestError(
      f"{size} {name} cannot be divided among the {num_devices} devices of"
      f" axis {axis_name!r}; choose a size of that axis that divides heads"
      " and frames."
    )
