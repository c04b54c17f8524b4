"""Attention within a frame, to the frame's context, and through time.

Every projection keeps its heads apart: query, key and value kernels are [D, H,
K] and the output kernel is [H, K, D]. Checkpoints with another order of heads
are reordered by their importer, not here. Queries and keys are normalised over
the head's width with one scale shared by all heads.

`TemporalAttention` uses the block-sparse kernels; on TPUs the others use their
dense mode where it is the fastest (`tpu_attention.py`).
"""

from collections.abc import Callable, Sequence
import functools
from typing import Any, Literal, NamedTuple

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.kernels import block_sparse_attention as bsa
from sculpt4d_jax.models import dense_attention
from sculpt4d_jax.models import frame_tokens
from sculpt4d_jax.models import head_layout
from sculpt4d_jax.models import layers
from sculpt4d_jax.models import over_frames
from sculpt4d_jax.models import remat
from sculpt4d_jax.models import rope

AnyArray = array_types.AnyArray
Array = array_types.Array
Float = array_types.Float
Tokens = frame_tokens.Tokens

QKNorm = Literal["rms", "layer"] | None

TEMPORAL_MODES = ("sparse", "full", "token", "none")


class KeyValues(NamedTuple):
  """Keys and values of a context, each [..., I, H, K], or of tokens."""

  key: Tokens
  value: Tokens


def _head_norm(kind: QKNorm, head_dim: int, **kwargs: Any) -> nnx.Module | None:
  if kind is None:
    return None
  if kind == "rms":
    return layers.RMSNorm(head_dim, **kwargs)
  if kind == "layer":
    # The width of a head is never sharded.
    return layers.LayerNorm(head_dim, axis=None, **kwargs)
  raise UserError(f"Unknown qk_norm={kind!r}: choose 'rms', 'layer' or None.")


class _Attention(nnx.Module):
  """Base class: projections, query and key norms, output projection."""

  def __init__(
    self,
    width: int,
    num_heads: int,
    *,
    rngs: nnx.Rngs,
    context_width: int | None = None,
    qk_norm: QKNorm = "rms",
    use_qkv_bias: bool = False,
    zero_init_out: bool = False,
    implementation: str | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    if width % num_heads:
      raise UserError(
        f"width={width} is not a multiple of num_heads={num_heads}; choose"
        " a number of heads that divides it."
      )
    # Heads have their own axis in every kernel, so that sharding by heads needs
    # no knowledge of how a flat axis would be divided.
    heads = (num_heads, width // num_heads)
    dtypes = dict(dtype=dtype, param_dtype=param_dtype)
    kwargs = dict(rngs=rngs, use_bias=use_qkv_bias, **dtypes)
    kv_width, kv_axis = width, "embed"
    if context_width is not None:
      kv_width, kv_axis = context_width, "context"
    axes = ("embed", "heads", "kv")
    kv_axes = (kv_axis, "heads", "kv")
    self.query = layers.Linear(width, heads, kernel_axes=axes, **kwargs)
    self.key = layers.Linear(kv_width, heads, kernel_axes=kv_axes, **kwargs)
    self.value = layers.Linear(kv_width, heads, kernel_axes=kv_axes, **kwargs)
    self.query_norm = _head_norm(qk_norm, heads[1], **dtypes)
    self.key_norm = _head_norm(qk_norm, heads[1], **dtypes)
    self.out = layers.Linear(
      heads,
      width,
      kernel_axes=("heads", "kv", "embed"),
      # Zero output: the layer changes nothing until it is trained.
      kernel_init=layers.zeros if zero_init_out else None,
      rngs=rngs,
      **dtypes,
    )
    self.implementation = implementation

  def project_query(self, x: Tokens) -> Tokens:
    """Normalised queries [..., H, K]."""
    return _normalise(self.query_norm, _project(self.query, x))

  def project_key_value(self, x: Tokens) -> KeyValues:
    """Normalised keys, and values, each [..., H, K]."""
    key = _normalise(self.key_norm, _project(self.key, x))
    return KeyValues(key, _project(self.value, x))

  def _leave(self, x: Tokens) -> Tokens:
    """Projects what heads [..., H, K] attended to back to the tokens' width."""
    return self.out(jax.tree.map(head_layout.heads_outside, x))


def _project(linear: layers.Linear, x: Tokens) -> Tokens:
  """A projection to heads, [..., S, H, K]."""
  store = lambda y: remat.product(head_layout.heads_outside(y))
  return jax.tree.map(store, linear(x))


def _normalise(norm: nnx.Module | None, x: Tokens) -> Tokens:
  return x if norm is None else jax.tree.map(norm, x)


class SelfAttention(_Attention):
  """Attention among a set of tokens: no positions, no mask.

  Args:
    width: D.
    num_heads: H, a divisor of D.
    rngs: Randomness of the initial parameters.
    qk_norm: "rms" (the DiT), "layer" (the VAE) or None (DINOv2).
    use_qkv_bias: Biases on query, key and value (DINOv2).
    implementation: See `dense_attention.dot_product_attention`.
    dtype: Dtype of the computation.
    param_dtype: Dtype of the parameters.
  """

  def __call__(
    self,
    x: Float[AnyArray, "*B S D"] | frame_tokens.Apart,
    num_tokens: int | None = None,
  ) -> Float[Array, "*B S D"] | frame_tokens.Apart:
    """Attends from every token to all tokens of its set.

    Of tokens in one array, the first `num_tokens` count; None is all.
    """
    query, context = self.project_query(x), self.project_key_value(x)
    if isinstance(x, frame_tokens.Apart):
      return self._leave(_attend_apart(query, context, self))
    return self._leave(_attend_set(query, context, self, num_tokens))


class CrossAttention(_Attention):
  """Attention of tokens to a context `context_width` wide.

  `context_width` is a keyword argument; the others are `SelfAttention`'s.
  """

  def encode_context(self, context: Float[AnyArray, "*B I W"]) -> KeyValues:
    """Keys and values of a context, computed once for many calls."""
    return self.project_key_value(context)

  def __call__(
    self,
    x: Float[AnyArray, "*B S D"] | frame_tokens.Apart,
    context: Float[AnyArray, "*B I W"] | KeyValues,
  ) -> Float[Array, "*B S D"] | frame_tokens.Apart:
    """Attends from tokens to a context, or to its `encode_context`."""
    num_keys = None
    if not isinstance(context, KeyValues):
      num_keys = context.shape[-2]
      most_queries = max(y.shape[-2] for y in jax.tree.leaves(x))
      context = self.encode_context(_fill_context(context, most_queries))
    attend = lambda query: _attend_set(query, context, self, num_keys)
    return self._leave(jax.tree.map(attend, self.project_query(x)))


def fill_set(x: Float[Array, "*B S D"]) -> Float[Array, "*B _ D"]:
  """On TPUs, the padding that attention among tokens would otherwise add.

  Layers that treat every token alike may then follow each other without padding
  and cutting arrays for each of them.
  """
  return _fill_on_tpu(x, lambda tpu: tpu.padded_set(x.shape[-2], x.dtype))


def _fill_context(context: Array, num_queries: int) -> Array:
  """On TPUs, the padding that keys and values would otherwise get each."""
  num_keys = context.shape[-2]
  return _fill_on_tpu(
    context, lambda tpu: tpu.padded_keys(num_keys, num_queries)
  )


def _fill_on_tpu(x: Array, num_tokens: Callable[[Any], int]) -> Array:
  """Pads tokens to a number that the module of TPU kernels gives."""
  if partitioning.platform()[0] != "tpu":
    return x
  # Late, as it imports Pallas, which CPUs can spare.
  from sculpt4d_jax.models import tpu_attention

  fill = num_tokens(tpu_attention) - x.shape[-2]
  return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, fill), (0, 0)])


def _attend_set(
  query: Array,
  context: KeyValues,
  module: _Attention,
  num_keys: int | None = None,
) -> Array:
  """Dense attention of a set to one, over any number of leading axes.

  Of the keys the first `num_keys` count; None is all.
  """
  return _map_batches(
    lambda *arrays: dense_attention.dot_product_attention(
      *arrays, implementation=module.implementation, num_keys=num_keys
    ),
    (query, *context),
    like=query,
  )


def _attend_apart(
  query: frame_tokens.Apart, context: KeyValues, module: _Attention
) -> frame_tokens.Apart:
  """Attention among a frame's tokens, the time token apart."""

  def attend(*arrays: Array) -> tuple[Array, Array]:
    pairs = [arrays[i : i + 2] for i in (0, 2, 4)]
    return dense_attention.attend_in_two_parts(
      *pairs, implementation=module.implementation
    )

  arrays = (*query, *context.key, *context.value)
  return frame_tokens.Apart(*_map_batches(attend, arrays, like=tuple(query)))


def _map_batches(
  attend: Callable[..., Any], arrays: Sequence[Array], like: Any
) -> Any:
  """Calls `attend` on arrays with one leading axis instead of several.

  On a mesh every device attends for its own clips, frames and heads.

  Args:
    attend: Takes arrays [B, S, H, K] and returns a tree of such.
    arrays: Arrays [..., S, H, K].
    like: The tree of arrays that have the shapes of its results.
  """

  def attend_flat(*arrays: Array) -> Any:
    # Clips and frames are one batch axis: frames do not see each other here.
    leading = arrays[0].shape[:-3]
    out = attend(*(y.reshape(-1, *y.shape[-3:]) for y in arrays))
    return jax.tree.map(lambda y: y.reshape(*leading, *y.shape[1:]), out)

  if partitioning.current_mesh() is None:
    return attend_flat(*arrays)
  num_leading = arrays[0].ndim - 3
  axes = ("batch", "frames")[:num_leading] + (None,) * (num_leading - 2)
  axes += (None, "heads", None)
  # By hand, because the compiler cannot split a fused kernel.
  spec = lambda y: partitioning.activation_spec(y.shape, axes)
  specs = [spec(y) for y in arrays]
  return partitioning.map_local(
    attend_flat, arrays, specs, jax.tree.map(spec, like)
  )


class TemporalAttention(_Attention):
  """Attention among all frames of a clip, block-sparse.

  Query block (frame i, block u) sees key block (frame j, block v) where j is an
  anchor frame, or u and v agree modulo schedule[min(|i - j|, last)]. The output
  projection starts at zero, so that an untrained layer adds nothing to the
  pretrained per-frame model.

  Args:
    width: D.
    num_heads: H.
    block_size: Number of tokens of a block.
    schedule: Strides by distance in frames.
    anchor_frames: Frames that every query sees.
    rope_theta: See `rope.frame_rotation`.
    rngs: Randomness of the initial parameters.
    implementation: Backend of the sparse kernel: None takes the best that runs.
    dtype: Dtype of the computation.
    param_dtype: Dtype of the parameters.

  Source: Sculpt4D, section "Block-sparse attention" and Table A1.
  """

  def __init__(
    self,
    width: int,
    num_heads: int,
    *,
    rngs: nnx.Rngs,
    block_size: int = 128,
    schedule: tuple[int, ...] = (1, 1, 2, 4, 8, 16),
    anchor_frames: tuple[int, ...] = (0,),
    rope_theta: float = 10000.0,
    implementation: str | None = None,
    dtype: Any = jnp.float32,
    param_dtype: Any = jnp.float32,
  ):
    super().__init__(
      width,
      num_heads,
      rngs=rngs,
      zero_init_out=True,
      implementation=implementation,
      dtype=dtype,
      param_dtype=param_dtype,
    )
    self.num_heads = num_heads
    self.head_dim = width // num_heads
    self.block_size = block_size
    self.schedule = tuple(schedule)
    self.anchor_frames = tuple(anchor_frames)
    self.rope_theta = rope_theta

  def mask(self, num_frames: int, num_tokens: int, mode: str) -> bsa.BlockMask:
    """Mask of blocks in mode "sparse" or "full"."""
    # Keys of a query of frame i by the default schedule, besides those of the
    # anchor frame, which it sees in full:
    #
    #   |i - j|           0     1     2     3     4     5 and more
    #   stride            1     1     2     4     8     16
    #   blocks of j       all   all   1/2   1/4   1/8   1/16
    #
    # Full attention is the mask of stride 1: the same kernel serves it.
    sparse = mode == "sparse"
    return temporal_mask(
      num_frames,
      num_tokens,
      self.block_size,
      self.schedule if sparse else (1,),
      self.anchor_frames if sparse else (),
    )

  def __call__(
    self,
    x: Float[Array, "B F N D"],
    *,
    mode: str = "sparse",
    token_order: str = "natural",
  ) -> Float[Array, "B F N D"]:
    """Applies the layer.

    Args:
      x: The latent tokens of every frame.
      mode: "sparse"; "full" attention; "token", where a token sees itself in
        all frames and nothing else.
      token_order: "natural", or "bit_reversed" if the blocks of every frame are
        in bit-reversed order.
    """
    num_frames, num_tokens = x.shape[1:3]
    if mode not in ("sparse", "full", "token"):
      raise UserError(
        f"Unknown temporal mode {mode!r}: choose 'sparse', 'full' or 'token'."
      )
    rotation = rope.frame_rotation(
      jnp.arange(num_frames), self.head_dim, self.rope_theta
    )
    # After the norms, whose scales would not commute with a rotation.
    query, key = (
      head_layout.groups_outside(rope.rotate(norm(y), rotation))
      for y, norm in (
        (self._project(self.query, x), self.query_norm),
        (self._project(self.key, x), self.key_norm),
      )
    )
    value = self._project(self.value, x)
    attend = over_frames.attend_per_token
    if mode != "token":
      attend = functools.partial(
        over_frames.attend_frames,
        mask=self.mask(num_frames, num_tokens, mode),
        token_order=token_order,
        implementation=self.implementation,
      )
    out = over_frames.over_all_frames(attend, query, key, value)
    out = head_layout.groups_outside(out.astype(x.dtype))
    return self.out(out, ins=out.shape[3:])

  def _project(
    self, linear: layers.Linear, x: Float[Array, "B F N D"]
  ) -> Float[Array, "B F N C G K"]:
    """A projection to heads, in as many groups as devices that exchange them."""
    num_groups = over_frames.num_head_groups(x.shape, self.num_heads)
    heads = num_groups, self.num_heads // num_groups, self.head_dim
    return remat.product(head_layout.groups_outside(linear(x, outs=heads)))


def temporal_mask(
  num_frames: int,
  num_tokens: int,
  block_size: int,
  schedule: tuple[int, ...],
  anchor_frames: tuple[int, ...],
) -> bsa.BlockMask:
  """The mask of a clip with `num_tokens` latent tokens a frame.

  Raises:
    ValueError: The blocks do not divide the tokens.
  """
  if num_tokens % block_size:
    raise UserError(
      f"{num_tokens} latent tokens a frame are not a multiple of"
      f" temporal_block_size={block_size}; choose a block size that divides"
      " them, or temporal_mode='token' or 'none', which have no blocks."
    )
  return bsa.BlockMask(
    num_frames=num_frames,
    blocks_per_frame=num_tokens // block_size,
    schedule=schedule,
    anchor_frames=anchor_frames,
  )


def contiguous_order(mask: bsa.BlockMask) -> np.ndarray | None:
  """Order of a frame's blocks that makes visible blocks contiguous.

  It is the bit-reversed order and its own inverse; None where strides or
  blocks a frame are not powers of two and there is no such order.
  """
  if not mask.is_power_of_two:
    return None
  return bsa.bit_reversal(mask.blocks_per_frame)
