"""Operations of a training step, and what share of the hardware's peak they are.

Model operations are those that the result needs: a product's backward pass takes
two of its kind, one for each factor; what is computed again to save memory does
not count. Their share of the devices' peak is the model FLOPs utilisation, MFU.

Peaks are data sheets' figures for bfloat16 with float32 sums, without sparsity.
A CPU's is measured, with a large product in float32, as no data sheet tells it.
"""

import time

from absl import logging
import jax
import jax.numpy as jnp

from sculpt4d_jax.models import dit_config
from sculpt4d_jax.models import flops
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import shape_vae

# By the start of jax's `device_kind`, the longest first. Google Cloud's pages
# of each TPU (a device of v2 and v3 is one core of two); NVIDIA's data sheets.
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
  """Operations a second of one device; None where they are not known."""
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
  """Of this machine's processor, by a product of matrices in float32."""
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
  """Of a step of the transformer, its image encoder included.

  Without pictures the batch has the encoder's tokens, and it does not run. Where
  only adapters learn, no gradients of the transformer's own matrices are
  taken; the adapters' own products are not counted.
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


def vae_step(
  vae: shape_vae.ShapeVAEConfig,
  *,
  batch_size: int,
  num_frames: int,
  num_queries: int,
) -> int:
  """Of a step of the autoencoder."""
  shape = flops.add(
    flops.vae_encoder(vae),
    flops.vae_decoder(vae),
    flops.field_queries(vae, num_queries),
  )
  shapes = batch_size * num_frames
  return _FORWARD_AND_BACKWARD * shapes * sum(shape.values())
