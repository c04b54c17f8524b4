"""Alternatives to the kernels, for the benchmark.

  CPU  PyTorch's scaled_dot_product_attention, dense, and FlexAttention with the
       same mask, in bit-reversed order, in blocks as long as a segment but at
       most 128 tokens. Its backward pass does not run on CPU. Needs torch, and
       FlexAttention a C++ compiler.
  TPU  jax's splash attention with the same mask and its dense flash attention.
       Splash evaluates the mask for each of its tiles on the host, which takes
  minutes at 32 frames and more.
  GPU  cuDNN's dense attention through jax.

A peer is a function of shape, dtype and direction that returns a function to
time, or None if it does not support the case. Peers use the same inputs in the
same order of blocks. Those that are not installed are left out.
"""

from collections.abc import Callable, Sequence
import functools
import types
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .. import mask as mask_lib
from .. import shapes

Peer = Callable[[shapes.AttentionShape, str, bool], Callable[[], object] | None]

_MAX_TORCH_BLOCK = 128


def peers() -> dict[str, Peer]:
  """The peers for the current platform, by name."""
  platform = jax.default_backend()
  if platform == "tpu":
    return {"splash": _splash, "flash_dense": _flash}
  if platform in ("gpu", "cuda", "rocm"):
    return {"cudnn_dense": _cudnn}
  torch = import_torch()
  if torch is None:
    return {}
  return {
    "torch_sdpa": functools.partial(_sdpa, torch),
    "torch_flex": functools.partial(_flex, torch),
  }


def import_torch() -> types.ModuleType | None:
  """PyTorch, or None."""
  try:
    import torch
  except ImportError:
    return None
  return torch


def compiled(
  attend: Callable[..., jax.Array],
  inputs: Sequence[jax.Array],
  is_backward: bool,
) -> jax.stages.Compiled:
  """A compiled jax function, forward or with gradients."""
  # The output as the cotangent: cheap and not constant.
  loss = lambda *xs: 0.5 * (attend(*xs).astype(jnp.float32) ** 2).sum()
  function = jax.grad(loss, (0, 1, 2)) if is_backward else attend
  return jax.jit(function).lower(*inputs).compile()


def timed(
  attend: Callable[..., jax.Array],
  inputs: Sequence[jax.Array],
  is_backward: bool,
) -> Callable[[], object]:
  """A compiled jax function on its inputs, forward or with gradients."""
  run = compiled(attend, inputs, is_backward)
  return lambda: jax.block_until_ready(run(*inputs))


def _torch_inputs(
  torch: types.ModuleType, shape: shapes.AttentionShape, dtype: str
) -> list[Any]:
  inputs = shapes.random_inputs(shape.array_shape)
  return [
    torch.from_numpy(np.array(x)).to(getattr(torch, dtype)) for x in inputs
  ]


def _sdpa(
  torch: types.ModuleType,
  shape: shapes.AttentionShape,
  dtype: str,
  is_backward: bool,
) -> Callable[[], None]:
  inputs = _torch_inputs(torch, shape, dtype)
  attend = torch.nn.functional.scaled_dot_product_attention

  def forward() -> None:
    with torch.no_grad():
      attend(*inputs)

  def forward_and_backward() -> None:
    leaves = [x.detach().requires_grad_() for x in inputs]
    output = attend(*leaves)
    output.backward(output.detach())

  return forward_and_backward if is_backward else forward


def _flex(
  torch: types.ModuleType,
  shape: shapes.AttentionShape,
  dtype: str,
  is_backward: bool,
) -> Callable[[], None] | None:
  if is_backward:
    return None
  from torch.nn.attention import flex_attention as flex

  inputs = _torch_inputs(torch, shape, dtype)
  block_mask = _flex_mask(torch, flex, shape)
  attend = torch.compile(flex.flex_attention)

  def forward() -> None:
    with torch.no_grad():
      attend(*inputs, block_mask=block_mask)

  return forward


def _flex_mask(
  torch: types.ModuleType, flex: types.ModuleType, shape: shapes.AttentionShape
) -> Any:
  """The mask as lists of whole blocks: no table of all pairs of tokens."""
  mask = shape.mask()
  # In bit-reversed order, a frame may be divided into any power of two of
  # blocks that is at least the largest stride; visibility of tokens is the
  # same.
  blocks = max(mask.max_stride, shape.tokens_per_frame // _MAX_TORCH_BLOCK)
  coarse = mask_lib.BlockMask(
    mask.num_frames, blocks, mask.schedule, mask.anchor_frames
  )
  offsets, indices = coarse.block_lists("bit_reversed")
  counts = np.diff(offsets)
  lists = np.zeros((len(counts), len(counts)), np.int32)
  lists[np.arange(len(counts)) < counts[:, None]] = indices
  as_tensor = lambda x: torch.from_numpy(x.astype(np.int32))[None, None]
  nothing = np.zeros_like(counts), np.zeros_like(lists)
  return flex.BlockMask.from_kv_blocks(
    *map(as_tensor, nothing),
    *map(as_tensor, (counts, lists)),
    BLOCK_SIZE=shape.tokens_per_frame // blocks,
  )


def _splash(
  shape: shapes.AttentionShape, dtype: str, is_backward: bool
) -> Callable[[], object]:
  from jax.experimental.pallas.ops.tpu import splash_attention as splash

  inputs = _scaled_inputs(shape, dtype)
  head_mask = splash_mask(splash.splash_attention_mask, shape)
  attend = splash.make_splash_mha_single_device(
    splash.splash_attention_mask.MultiHeadMask([head_mask] * shape.heads)
  )
  return timed(jax.vmap(attend), inputs, is_backward)


def splash_mask(
  splash_mask: types.ModuleType, shape: shapes.AttentionShape
) -> Any:
  """The token mask, evaluated tile by tile."""
  blocks = shape.mask().dense_blocks("bit_reversed")
  size = shape.tokens_per_frame // shape.blocks_per_frame

  class TokenMask(splash_mask.Mask):
    """Block pairs by token."""

    @property
    def shape(self) -> tuple[int, int]:
      """Numbers of queries and keys."""
      return (shape.num_tokens, shape.num_tokens)

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
      rows, columns = (
        np.arange(*i.indices(shape.num_tokens)) // size for i in index
      )
      return blocks[rows][:, columns]

    def __hash__(self) -> int:
      return hash(shape)

    def __eq__(self, other: object) -> bool:
      return type(self) is type(other) and self.shape == other.shape

  return TokenMask()


def _flash(
  shape: shapes.AttentionShape, dtype: str, is_backward: bool
) -> Callable[[], object]:
  from jax.experimental.pallas.ops.tpu import flash_attention

  inputs = _scaled_inputs(shape, dtype)
  return timed(flash_attention.flash_attention, inputs, is_backward)


def _scaled_inputs(
  shape: shapes.AttentionShape, dtype: str
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Queries times the scale: JAX's TPU kernels have no default scale."""
  query, key, value = shapes.random_inputs(shape.array_shape, jnp.dtype(dtype))
  return query * shape.head_dim**-0.5, key, value


def _cudnn(
  shape: shapes.AttentionShape, dtype: str, is_backward: bool
) -> Callable[[], object]:
  inputs = shapes.random_inputs(shape.array_shape, jnp.dtype(dtype))
  inputs = [x.swapaxes(1, 2) for x in inputs]  # [B, S, H, K]
  attend = functools.partial(
    jax.nn.dot_product_attention, implementation="cudnn"
  )
  return timed(attend, inputs, is_backward)
