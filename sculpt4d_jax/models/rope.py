"""Rotary position embedding along time: one angle a frame.

All tokens of a frame share the frame's angles, so a score depends on the
distance in time between two frames and not on which of a frame's tokens are
compared: a frame's tokens stay a set. Frequency i of K/2 is theta^(-2i/K); it
rotates the channel pair (2i, 2i + 1), so each frequency appears twice,
interleaved, among the K channels of a head.

Source: Su et al., RoFormer, 2021; Sculpt4D, supplement, "Temporal RoPE".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError

Array = array_types.Array
Real = array_types.Real
AnyArray = array_types.AnyArray
Float = array_types.Float


class Rotation(NamedTuple):
  """Cosines and sines of every frame's angles, each [F, K], float32."""

  cos: Array
  sin: Array


def frame_rotation(
  positions: Real[AnyArray, " F"], head_dim: int, theta: float = 10000.0
) -> Rotation:
  """Angles of frames at `positions` for heads `head_dim` wide.

  Args:
    positions: Frame indices; any numbers, so that a clip may start anywhere.
    head_dim: K, even.
    theta: Base of the geometric series of wavelengths.

  Raises:
    ValueError: `head_dim` is odd.
  """
  if head_dim % 2:
    raise UserError(
      f"head_dim={head_dim} is odd: rotary embedding turns channels in"
      " pairs; choose width / num_heads even."
    )
  exponents = jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim
  angles = positions.astype(jnp.float32)[:, None] * theta**-exponents
  angles = jnp.repeat(angles, 2, axis=-1)  # [F, K]: a0 a0 a1 a1 ...
  return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(
  x: Float[Array, "B F N H K"], rotation: Rotation
) -> Float[Array, "B F N H K"]:
  """Rotates the channel pairs of queries or keys by their frame's angles."""
  return _rotate(x, *rotation)


@jax.custom_vjp
def _rotate(x: Array, cos: Array, sin: Array) -> Array:
  # By a product, as TPUs would spend more time on taking pairs of neighbouring
  # channels apart than on all else: 2.1 ms for 4.7, forward and backward, of 8
  # frames of the released size, by the compiler for v5p.
  turned = jnp.einsum(
    "...k,kl->...l",
    x,
    jnp.asarray(_quarter_turn(x.shape[-1]), x.dtype),
    preferred_element_type=jnp.float32,
    # Exact: every result is one number or its negative.
    precision=jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None,
  )
  cos, sin = cos[:, None, None], sin[:, None, None]  # [F, 1, 1, K]
  # float32: in bfloat16 the difference of two similar products loses its
  # digits.
  return (x.astype(jnp.float32) * cos + turned * sin).astype(x.dtype)


def _rotate_forward(
  x: Array, cos: Array, sin: Array
) -> tuple[Array, tuple[Array, Array]]:
  return _rotate(x, cos, sin), (cos, sin)


def _rotate_backward(
  angles: tuple[Array, Array], bar: Array
) -> tuple[Array, None, None]:
  """Rotates back; frames' angles have no gradients."""
  cos, sin = angles
  return _rotate(bar, cos, -sin), None, None


_rotate.defvjp(_rotate_forward, _rotate_backward)


def _quarter_turn(head_dim: int) -> np.ndarray:
  """The matrix [K, K] that maps pairs (a, b) of a row to (-b, a)."""
  return np.kron(np.eye(head_dim // 2), [[0.0, 1.0], [-1.0, 0.0]])
