"""The public function: checks its arguments and picks a backend.

A backend is a function (query, key, value, mask, *, scale, token_order) ->
(output, log_sum_exp) that is differentiable with respect to the first three.
One that cannot serve the arguments raises NotImplementedError with the reason.
"""

from collections.abc import Callable
import functools
import importlib
import math
from typing import Any, Literal

import jax

from . import errors
from . import mask as mask_lib
from . import reference
from .xla import attention as xla

Implementation = (
  Literal["pallas_tpu", "pallas_gpu", "xla", "reference"] | Callable[..., Any]
)

# Later entries serve what earlier ones decline.
_AUTOMATIC = ("pallas_tpu", "pallas_gpu", "xla")
# Pallas takes a while to import: modules that need it are imported when used.
_BACKENDS: dict[str, Callable[..., Any] | str] = {
  "pallas_tpu": ".tpu.attention",
  "pallas_gpu": ".gpu.attention",
  "xla": xla.attention,
  "reference": reference.attention,
}


def block_sparse_attention(
  query: jax.Array,
  key: jax.Array,
  value: jax.Array,
  mask: mask_lib.Mask,
  *,
  scale: float | None = None,
  token_order: mask_lib.TokenOrder = "natural",
  implementation: Implementation | None = None,
  return_log_sum_exp: bool = False,
) -> jax.Array | tuple[jax.Array, jax.Array]:
  """Softmax attention restricted to the pairs of blocks in a mask.

  Exact: equal to dense attention with the scores outside the mask set to minus
  infinity, forward and backward. Scores and softmax are float32 for any input
  dtype. Works under jit, grad, vmap, remat and scan.

  Args:
    query: Queries [B, H, S, K], S = num_frames * tokens_per_frame, frame by
      frame. The blocks of a frame have tokens_per_frame / blocks_per_frame
      tokens.
    key: Keys [B, H, S, K].
    value: Values [B, H, S, K].
    mask: Visible key blocks of each query block, in natural block indices
      for any `token_order`. Static: known when the function is traced.
    scale: Factor on the scores; K ** -0.5 if None.
    token_order: "natural", or "bit_reversed" if the caller has listed the
      blocks of every frame by `bit_reversal` (`bit_reversed_tokens` gives the
      token indices); the output is in the same order as the input. With strides
      that are powers of two, "bit_reversed" saves a permutation of all four
      arrays.
    implementation: Backend: "pallas_tpu" (Google TPU), "pallas_gpu" (NVIDIA
      Hopper, Ampere, Ada), "xla" (plain JAX, any device) or "reference"
      (quadratic memory). None takes the first one that serves the arguments. A
      function is called as a backend, which allows options:
      `functools.partial(pallas_tpu.attention, tiles=...)`.
    return_log_sum_exp: Whether to return the log-sum-exp too.

  Returns:
    Output [B, H, S, K] in the dtype of query; with `return_log_sum_exp` also
    the log-sum-exp of the scaled scores each query sees, [B, H, S] float32,
    which is differentiable too.

  Raises:
    ValueError: Shapes, mask, order or implementation are invalid.
    NotImplementedError: The named implementation cannot serve the arguments.

  Source: Sculpt4D (arXiv 2604.21592), block-sparse attention.
  """
  _check_arrays(query, key, value)
  _check_mask(query, mask)
  if token_order not in ("natural", "bit_reversed"):
    raise errors.RequestError(
      f'token_order must be "natural" or "bit_reversed", got {token_order!r}.'
    )
  if scale is None:
    scale = query.shape[-1] ** -0.5
  elif not math.isfinite(scale):
    raise errors.RequestError(f"scale must be finite, got {scale}.")
  output, log_sum_exp = _run(
    implementation,
    (query, key, value, mask),
    dict(scale=float(scale), token_order=token_order),
  )
  return (output, log_sum_exp) if return_log_sum_exp else output


def explain(
  query: jax.ShapeDtypeStruct, mask: mask_lib.Mask
) -> dict[str, str | None]:
  """Why backends decline a call, without computing anything.

  Args:
    query: Shape [B, H, S, K] and dtype of queries, keys and values.
    mask: Visible key blocks of each query block.

  Returns:
    The reason why each backend declines, or None, in the order in which they
    are tried. `block_sparse_attention` takes the first None.
  """
  reasons: dict[str, str | None] = {}
  options = dict(scale=query.shape[-1] ** -0.5, token_order="natural")
  for name in _AUTOMATIC:
    try:
      call = functools.partial(backend(name), mask=mask, **options)
      # Traces the call, which runs all checks but no kernel.
      jax.eval_shape(call, query, query, query)
      reasons[name] = None
    except NotImplementedError as reason:
      reasons[name] = str(reason)
  return reasons


def backend(name: str) -> Callable[..., Any]:
  """The function of a backend, imported at its first use."""
  found = _BACKENDS[name]
  if isinstance(found, str):
    found = importlib.import_module(found, __package__).attention
  return found


def _run(
  implementation: Implementation | None,
  args: tuple[Any, ...],
  kwargs: dict[str, Any],
) -> tuple[jax.Array, jax.Array]:
  """Calls the named backend, or the first one that does not decline."""
  if callable(implementation):
    return implementation(*args, **kwargs)
  if implementation is not None:
    if implementation not in _BACKENDS:
      raise errors.RequestError(
        f"implementation={implementation!r} is unknown; choose one of"
        f" {sorted(_BACKENDS)}, or None for the first that serves."
      )
    return backend(implementation)(*args, **kwargs)
  reasons = []
  for name in _AUTOMATIC:
    try:
      return backend(name)(*args, **kwargs)
    except NotImplementedError as reason:
      reasons.append(f"{name}: {reason}")
  reasons = "; ".join(reasons)
  raise errors.NotServedError(f"No backend serves this call. {reasons}")


def _check_arrays(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
  if query.ndim != 4:
    raise errors.RequestError(
      f"query must be [B, H, S, K], got shape {query.shape}; add axes of"
      " length 1, or use jax.vmap for more."
    )
  for name, array in (("key", key), ("value", value)):
    if array.shape != query.shape:
      raise errors.RequestError(
        f"{name} must have the shape of query, {query.shape}, got"
        f" {array.shape}; repeat heads of keys and values that are shared."
      )
    if array.dtype != query.dtype:
      raise errors.RequestError(
        f"{name} must have the dtype of query, {query.dtype}, got"
        f" {array.dtype}; cast it."
      )
  if query.dtype not in ("float32", "bfloat16", "float16"):
    raise errors.RequestError(
      "query must be float32, bfloat16 or float16, got"
      f" {query.dtype}; cast all three arrays."
    )


def _check_mask(query: jax.Array, mask: mask_lib.Mask) -> None:
  if not isinstance(mask, mask_lib.Mask):
    raise errors.RequestError(
      f"mask must be a BlockMask, got {type(mask).__name__}; make one with"
      " BlockMask(num_frames, blocks_per_frame)."
    )
  num_tokens = query.shape[2]
  if num_tokens == 0 or num_tokens % mask.num_frames:
    raise errors.RequestError(
      f"query has S={num_tokens} tokens, not a positive multiple of the"
      f" mask's num_frames={mask.num_frames}; S must be num_frames *"
      " tokens_per_frame."
    )
  mask_lib.require_block_size(
    num_tokens // mask.num_frames, mask.blocks_per_frame
  )
