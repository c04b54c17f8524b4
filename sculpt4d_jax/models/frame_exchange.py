"""Attention through time on a mesh: frames are exchanged for heads.

Frames of a clip lie on different devices along the mesh's `context` axis. What
attends through time needs all frames, but heads know nothing of each other: one
all-to-all gives every device all frames of a part of the heads, another one
gives the result back. A device receives (C - 1) / C of its share of queries,
keys, values and outputs, whatever the mask; to gather keys and values would
take C / 2 times as much.

Source: Jacobs et al., DeepSpeed Ulysses, 2023.
"""

from collections.abc import Callable

import jax

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning

Array = array_types.Array

_CONTEXT = "context"
_FRAMES, _HEADS = 1, 3


def over_all_frames(
    attend: Callable[[Array, Array, Array], Array],
    query: Array,
    key: Array,
    value: Array,
) -> Array:
  """Calls `attend` on arrays [B, F, N, H, K] that hold all frames.

  Args:
    attend: Attention whose heads know nothing of each other.
    query: [B, F, N, H, K], as are key and value.
    key: Keys.
    value: Values.

  Raises:
    ValueError: Frames are split, but the heads cannot be.
  """
  if partitioning.current_mesh() is None:
    return attend(query, key, value)
  axes = ("batch", "frames", None, "heads", None)
  spec = partitioning.activation_spec(query.shape, axes)
  is_split = spec[_FRAMES] is not None
  _check_heads(query.shape[_HEADS], is_split)

  def local(*arrays):
    if not is_split:
      return attend(*arrays)
    return _to_frames(attend(*map(_to_heads, arrays)))

  return partitioning.map_local(local, (query, key, value), (spec,) * 3, spec)


def _check_heads(num_heads: int, is_split: bool) -> None:
  shards = partitioning.axis_size(_CONTEXT, "tensor")
  if is_split and num_heads % shards:
    raise ValueError(
        f"{num_heads} heads cannot be exchanged for frames over"
        f" context * tensor = {shards} devices; choose sizes in config.mesh"
        " whose product divides the heads."
    )


def _to_heads(x: Array) -> Array:
  """[B, F / C, N, H, K] to [B, F, N, H / C, K]."""
  return jax.lax.all_to_all(x, _CONTEXT, _HEADS, _FRAMES, tiled=True)


def _to_frames(x: Array) -> Array:
  """[B, F, N, H / C, K] to [B, F / C, N, H, K]."""
  return jax.lax.all_to_all(x, _CONTEXT, _FRAMES, _HEADS, tiled=True)
