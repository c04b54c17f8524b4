"""Counts operations of a training step, for the model FLOPs utilisation.

Model operations are those needed for the result. The backward pass of a product
has two products, one per factor; recomputation to save memory is not counted.
Their share of the devices' peak is the model FLOPs utilisation (MFU).

Peaks are the data sheets' figures for bfloat16 with float32 accumulation,
without sparsity. A CPU's peak is measured by a large float32 product, because
data sheets do not state it.
"""

import time

from absl import logging
import jax
import jax.numpy as jnp

from sculpt4d_jax.models import dit_config
from sculpt4d_jax.models import flops
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import shape_vae

# By prefixes of JAX's `device_kind`, the longest first. From Google Cloud's
# pages of each TPU (a device of v2 and v3 is one of two cores) and NVIDIA's
# data sheets.
_PEAKS = (
  ("TPU v6 lite", 918e12),
  ("TPU v6e", 918e12),
  ("TPU v5 lite", 197e12),
  ("TPU v5e", 197e12),
  ("TPU v5p", 459e12),
  ("TPU v5", 459e12),
  ("TPU v4", 275e12),
  ("NVIDIA B200", 2250e12),
  ("NVIDIA H200", 989e12),
  ("NVIDIA H100 PCIe", 756e12),
  ("NVIDIA H100 NVL", 835e12),
  ("NVIDIA H100", 989e12),
  ("NVIDIA A100", 312e12),
  ("NVIDIA L40S", 362e12),
  ("NVIDIA L4", 121e12),
  ("NVIDIA RTX A6000", 155e12),
  ("NVIDIA GeForce RTX 4090", 165e12),
  ("NVIDIA GeForce RTX 3090", 71e12),
)
_FORWARD_AND_BACKWARD = 3
_SIDE, _TRIALS = 1536, 3


def peak(device: jax.Device) -> float | None:
  """Operations per second of one device; None if unknown."""
  for kind, value in _PEAKS:
    if device.device_kind.startswith(kind):
      return value
  if device.platform == "cpu":
    # Virtual devices share the processor.
    shared = len(jax.local_devices(backend="cpu"))
    return measured_peak() / shared
  logging.info(
    "The peak of %r is not known here: the model FLOPs utilisation is left"
    " out.",
    device.device_kind,
  )
  return None


def measured_peak() -> float:
  """Operations per second of this machine's processor, by a float32 product."""
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    a = jnp.ones((_SIDE, _SIDE), jnp.float32)
    multiply = jax.jit(lambda x: x @ x)
    multiply(a).block_until_ready()
    times = []
    for _ in range(_TRIALS):
      start = time.perf_counter()
      multiply(a).block_until_ready()
      times.append(time.perf_counter() - start)
  return flops.linear(_SIDE, _SIDE, _SIDE) / min(times)


def dit_step(
  dit: dit_config.DiTConfig,
  encoder: image_encoder_lib.ImageEncoderConfig,
  *,
  batch_size: int,
  num_frames: int,
  num_tokens: int,
  encoder_learns: bool,
  has_pictures: bool = True,
  is_adapted: bool = False,
) -> int:
  """Operations of a step of the transformer, including the image encoder.

  Without pictures the batch contains the encoder's tokens, and the encoder does
  not run. If only adapters are trained, gradients of the transformer's matrices
  are not computed; products of the adapters are not counted.
  """
  context = encoder.num_tokens
  learned = [
    flops.dit_call(dit, num_frames, num_tokens, context),
    flops.dit_context(dit, num_frames, context),
  ]
  pictures = flops.image_encoder(encoder, num_frames * has_pictures)
  fixed = []
  (learned if encoder_learns else fixed).append(pictures)
  passes = _FORWARD_AND_BACKWARD - is_adapted
  total = passes * sum(flops.add(*learned).values())
  return batch_size * (total + sum(flops.add(*fixed).values()))


def shape_loss(
  vae: shape_vae.ShapeVAEConfig, *, num_shapes: int, num_queries: int
) -> int:
  """Operations of decoding shapes at points with an autoencoder that is fixed.

  The gradient passes through the decoder, but is not computed for its matrices.
  """
  shape = flops.add(
    flops.vae_decoder(vae), flops.field_queries(vae, num_queries)
  )
  return (_FORWARD_AND_BACKWARD - 1) * num_shapes * sum(shape.values())


def vae_step(
  vae: shape_vae.ShapeVAEConfig,
  *,
  batch_size: int,
  num_frames: int,
  num_queries: int,
) -> int:
  """Operations of a step of the autoencoder."""
  shape = flops.add(
    flops.vae_encoder(vae),
    flops.vae_decoder(vae),
    flops.field_queries(vae, num_queries),
  )
  shapes = batch_size * num_frames
  return _FORWARD_AND_BACKWARD * shapes * sum(shape.values())
