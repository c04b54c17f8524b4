"""Training losses."""

import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError

Array = array_types.Array
Float = array_types.Float


def squared_error_per_clip(
  prediction: Float[Array, " B *shape"], target: Float[Array, " B *shape"]
) -> Float[Array, " B"]:
  """Mean squared error of each clip, over frames, tokens and channels."""
  if prediction.shape != target.shape:
    raise UserError(
      f"prediction is {prediction.shape} but target is {target.shape}; their"
      " shapes must be equal."
    )
  # A sum of many small squares, so float32 for any compute dtype.
  error = prediction.astype(jnp.float32) - target.astype(jnp.float32)
  return jnp.square(error).mean(axis=tuple(range(1, error.ndim)))


def squared_error_per_frame(
  prediction: Float[Array, "B F *shape"], target: Float[Array, "B F *shape"]
) -> Float[Array, "B F"]:
  """Mean squared error of each frame, over tokens and channels."""
  flat = [x.reshape(-1, *x.shape[2:]) for x in (prediction, target)]
  return squared_error_per_clip(*flat).reshape(prediction.shape[:2])


def squared_error(
  prediction: Float[Array, " B *shape"], target: Float[Array, " B *shape"]
) -> Float[Array, ""]:
  """Flow matching loss: mean squared error, equally weighted over time."""
  return squared_error_per_clip(prediction, target).mean()


def pinball(
  prediction: Float[Array, "*shape"],
  target: Float[Array, "*shape"],
  quantile: float,
) -> Float[Array, "*shape"]:
  """Loss that a quantile of the target minimises; the absolute error at 0.5.

  Args:
    prediction: Predictions.
    target: True values.
    quantile: In (0, 1). Predictions that are too low cost 2 * quantile times
      their error, those that are too high 2 * (1 - quantile) times.

  Source: Koenker and Bassett, Regression Quantiles, 1978.
  """
  error = target - prediction
  return 2 * jnp.maximum(quantile * error, (quantile - 1) * error)
