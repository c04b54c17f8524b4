"""Arithmetic on pieces that the forward and the backward kernel share."""

import jax
from jax import lax
import jax.numpy as jnp

from ..pallas_types import Index

LN_2 = 0.6931471805599453
LOG2_E = 1.4426950408889634

# Axes of the two operands that `dot_general` contracts.
ROWS = (((1,), (1,)), ((), ()))
COLUMNS = (((0,), (0,)), ((), ()))
LAST_WITH_FIRST = (((1,), (0,)), ((), ()))
FIRST_WITH_LAST = (((0,), (1,)), ((), ()))

# Score of a padding token; finite, so that exp2 gives 0 and never NaN.
_UNSEEN = -1e30


def product(
  a: jax.Array, b: jax.Array, axes: lax.DotDimensionNumbers
) -> jax.Array:
  """Product with float32 accumulation; float32 operands stay float32."""
  # The matrix units multiply bfloat16. By default they would round float32
  # factors to that; HIGHEST splits each into several and adds the products.
  precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
  return lax.dot_general(
    a, b, axes, precision=precision, preferred_element_type=jnp.float32
  )


def masked_fill(scores: jax.Array, valid: int) -> jax.Array:
  """Masks the padding keys of a piece; scores are [keys, queries]."""
  if valid == scores.shape[0]:
    return scores
  token = lax.broadcasted_iota(jnp.int32, scores.shape, 0)
  return jnp.where(token < valid, scores, _UNSEEN)


def divide(row: Index, segments: int) -> tuple[Index, Index]:
  """Index of a piece in a tile of frames by segments."""
  # A row known at trace time gives a static address.
  if isinstance(row, int):
    return divmod(row, segments)
  if segments == 1:
    return row, 0
  # Rows are not negative, so `lax.div` is right; `//` would also emit code that
  # rounds negative quotients down.
  return lax.div(row, segments), lax.rem(row, segments)
