"""Errors of the flow by clip, and by time for curves."""

from typing import Any

import jax
import jax.numpy as jnp

from sculpt4d_jax import array_types
from sculpt4d_jax.diffusion import losses
from sculpt4d_jax.training import metrics as metrics_lib

Array = array_types.Array

TIME_BUCKETS = 4


def by_time(errors: Array, time: Array, weight: Array) -> dict[str, Any]:
  """The loss in equal buckets of time, named by their centres.

  Args:
    errors: Errors, [E].
    time: Their times.
    weight: Their weights.
  """
  # Sums and weights: a micro-batch may have few clips in a bucket or none, and
  # a mean of means would count those as much as many.
  bucket = jnp.minimum((time * TIME_BUCKETS).astype(int), TIME_BUCKETS - 1)
  is_in = jax.nn.one_hot(bucket, TIME_BUCKETS)  # [B, buckets]
  is_in = is_in * weight[:, None]
  totals, weights = errors @ is_in, is_in.sum(0)
  return {
    bucket_name(i): metrics_lib.WeightedMean(totals[i], weights[i])
    for i in range(TIME_BUCKETS)
  }


def bucket_name(index: int) -> str:
  """The metric of a bucket, such as "flow_loss_t0.125"."""
  return f"flow_loss_t{(index + 0.5) / TIME_BUCKETS:.3f}"


def squared_errors(prediction: Array, target: Array, time: Array) -> Array:
  """Mean squared errors of clips [B], or of frames [B, F], like the time."""
  if time.ndim == 2:
    return losses.squared_error_per_frame(prediction, target)
  return losses.squared_error_per_clip(prediction, target)
