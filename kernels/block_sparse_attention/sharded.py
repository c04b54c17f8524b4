"""Attention of clips whose frames lie on several devices: frames <-> heads.

Distance makes the mask sparse, not the communication: of a whole frame of
queries, every key block of every frame is seen by some. A device that holds
some frames would need the keys and values of all others. Instead, each of n
devices hands out its frames by heads and receives all frames of H / n heads
(one all-to-all an array), attends without communication, and hands the output
back. The mask is the same on all devices, and so is the work.

Volume. A device receives (n - 1) / n^2 * B * S * H * K numbers for each array
that is exchanged. Forward exchanges four: query, key and value there, the output
back. Backward exchanges four: the output's cotangent there, three gradients
back; with the call inside `jax.checkpoint`, the forward's once more. At 64
frames x 4096 tokens, 16 heads of 128 in bfloat16 on 16 devices an array is
63 MB a device, forward 252 MB; to gather keys and values is 2.0 GB.

Source: Jacobs et al., DeepSpeed Ulysses, 2023.
"""

from typing import Any

import jax
from jax import lax

from . import api
from . import mask as mask_lib

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
    key: As query.
    value: As query.
    mask: Of the whole clip.
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
    raise ValueError(
        "return_log_sum_exp is not served with sharded frames; call"
        " block_sparse_attention on whole clips for it."
    )
  num_devices = lax.axis_size(axis_name)
  for name, size in (
      ("heads", query.shape[_HEADS]), ("frames", mask.num_frames)
  ):  # fmt: skip
    if size % num_devices:
      raise ValueError(
          f"{size} {name} cannot be divided among the {num_devices} devices of"
          f" axis {axis_name!r}; choose an axis whose size divides heads and"
          " frames."
      )

  def exchange(x, split, join):
    return lax.all_to_all(x, axis_name, split, join, tiled=True)

  arrays = (exchange(x, _HEADS, _TOKENS) for x in (query, key, value))
  output = api.block_sparse_attention(*arrays, mask, **kwargs)
  return exchange(output, _TOKENS, _HEADS)
