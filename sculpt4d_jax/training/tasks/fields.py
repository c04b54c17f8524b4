"""The field that the tasks' losses compare with."""

import jax.numpy as jnp

from sculpt4d_jax import array_types

Array = array_types.Array
Float = array_types.Float


def true_field(
  samples: Float[Array, "... Q 4"], band: float
) -> Float[Array, "... Q"]:
  """The field at samples: signed distance over `band`, clipped to [-1, 1].

  Args:
    samples: Positions and signed distances, positive inside.
    band: Distance at which the field saturates.
  """
  return jnp.clip(samples[..., 3] / band, -1.0, 1.0)
