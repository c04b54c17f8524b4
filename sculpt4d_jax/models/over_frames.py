"""Attention of tokens to all frames of a clip, whose frames may be split.

On a mesh that splits frames, devices exchange frames for groups of heads; then
the kernel for the devices, or plain JAX, attends. Queries, keys and values are
[B, F, N, C, G, K] outside, with C groups of G heads, and [F, B, G, N, K] for
what attends, of one group.
"""

from collections.abc import Callable
import functools
from typing import Any

import einops

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.kernels import block_sparse_attention as bsa
from sculpt4d_jax.kernels.block_sparse_attention.xla import attention as xla
from sculpt4d_jax.models import dense_attention

Array = array_types.Array
Float = array_types.Float


def num_head_groups(shape: tuple[int, ...], num_heads: int) -> int:
  """Devices that exchange frames of x [B, F, N, D] for groups of heads."""
  mesh = partitioning.current_mesh()
  if mesh is None:
    return 1
  axes = ("batch", "frames", None, None)
  frame_axis = partitioning.activation_spec(shape, axes)[1]
  # Heads that are split already are exchanged as they lie on the devices.
  if frame_axis is None or mesh.shape["tensor"] > 1:
    return 1
  size = mesh.shape[frame_axis]
  return size if num_heads % size == 0 else 1


def over_all_frames(
  attend: Callable[[Array, Array, Array], Array],
  *arrays: Float[Array, "B F N C G K"],
) -> Float[Array, "B F N C G K"]:
  """Calls `attend` on arrays [F, B, G, N, K] that hold all frames.

  On a mesh every device attends for its own clips and heads, and exchanges
  frames for heads where frames are split.
  """

  def attend_local(*arrays: Array) -> Array:
    return attend(*(y[0] for y in arrays))[None]

  # The order in memory that both the exchange and the kernels take.
  arrays = [einops.rearrange(y, "b f n c g k -> c f b g n k") for y in arrays]
  if partitioning.current_mesh() is None:
    out = attend_local(*arrays)
  else:
    axes = (None, "frames", "batch", "heads", None, None)
    spec = partitioning.activation_spec(arrays[0].shape, axes)
    # Frames on several devices: each gets all frames of some heads.
    #
    #   device     0                       1
    #   holds      frames 0-7, all heads   frames 8-15, all heads
    #   attends    all frames, heads 0-7   all frames, heads 8-15
    if spec[1] is not None and len(arrays[0]) > 1:
      attend_local = functools.partial(
        bsa.with_all_frames_of_groups, attend, axis_name=spec[1]
      )
    elif spec[1] is not None:
      attend_local = functools.partial(
        bsa.with_all_frames,
        attend_local,
        axis_name=spec[1],
        frame_axis=1,
        head_axis=3,
      )
    out = partitioning.map_local(attend_local, arrays, (spec,) * 3, spec)
  return einops.rearrange(out, "c f b g n k -> b f n c g k")


def attend_frames(
  query: Float[Array, "F B G N K"],
  key: Float[Array, "F B G N K"],
  value: Float[Array, "F B G N K"],
  *,
  mask: bsa.BlockMask,
  token_order: str,
  implementation: str | None,
) -> Float[Array, "F B G N K"]:
  """Block-sparse attention, by the kernel for the mesh's devices.

  They need not be attached: a program may be compiled ahead of time for devices
  that this machine lacks.
  """
  arrays = query, key, value
  platform, kind = partitioning.platform()
  if implementation in (None, "pallas_tpu") and platform == "tpu":
    from sculpt4d_jax.kernels.block_sparse_attention.tpu import (
      attention as pallas_tpu,
    )
    from sculpt4d_jax.kernels.block_sparse_attention.tpu import (
      tiles as tpu_tiles,
    )

    return pallas_tpu.attention_of_frames(
      *arrays,
      mask,
      scale=query.shape[-1] ** -0.5,
      token_order=token_order,
      # The chip is passed on, as the default backend may be another one.
      chip=tpu_tiles.chip_of(kind),
    )[0]
  if implementation is None and platform == "cpu":
    implementation = "xla"  # The one that serves; the others are not imported.
  elif implementation in (None, "pallas_gpu") and platform in ("gpu", "cuda"):
    implementation = functools.partial(
      _on_gpu, implementation, partitioning.compute_capability()
    )
  flat = (einops.rearrange(y, "f b g n k -> b g (f n) k") for y in arrays)
  out = bsa.block_sparse_attention(
    *flat, mask, token_order=token_order, implementation=implementation
  )
  return einops.rearrange(out, "b g (f n) k -> f b g n k", f=len(query))


def _on_gpu(
  name: str | None, compute_capability: str, *args: Any, **kwargs: Any
) -> Any:
  """The GPU kernels; plain JAX if they decline and no backend was named."""
  from sculpt4d_jax.kernels.block_sparse_attention.gpu import (
    attention as pallas_gpu,
  )

  try:
    return pallas_gpu.attention(
      *args, compute_capability=compute_capability, **kwargs
    )
  except NotImplementedError:
    if name is not None:
      raise
    return xla.attention(*args, **kwargs)


def attend_per_token(
  query: Float[Array, "F B G N K"],
  key: Float[Array, "F B G N K"],
  value: Float[Array, "F B G N K"],
) -> Float[Array, "F B G N K"]:
  """Each token attends to itself in every frame."""
  flat = [
    einops.rearrange(y, "f b g n k -> (b n) f g k") for y in (query, key, value)
  ]
  # Frames are few: flash attention would have nothing to tile.
  out = dense_attention.attend_at_once(*flat)
  return einops.rearrange(out, "(b n) f g k -> f b g n k", b=query.shape[1])
