"""8-bit weights: one byte per number, and one scale per group of numbers.

The kernels of the transformer's blocks are stored as int8. For each output, a
group of consecutive inputs shares a scale: its largest absolute value over 127.
A kernel is dequantised to the compute dtype where it is used, one layer at a
time. Norms, biases, routers and embeddings are not quantised.

Source: Dettmers et al., LLM.int8(), 2022, for block-wise scales by absolute
maximum; here activations are not quantised.
"""

import math
from typing import Any

from flax import nnx
import numpy as np

from sculpt4d_jax.models import layers
from sculpt4d_jax.models.moe import experts

GROUP_SIZE = 64
_LARGEST = 127


def quantize(module: nnx.Module) -> None:
  """Replaces the kernels of all linear maps and experts in a module.

  Kernels are quantised layer by layer, on the host. Call it on the blocks of a
  network for inference, not for training.
  """
  for _, part in list(nnx.iter_modules(module)):
    if isinstance(part, layers.Linear):
      _quantize_kernel(part, part.num_in_axes)
    elif isinstance(part, experts.ExpertLinear):
      _quantize_kernel(part, 1)


def _quantize_kernel(part: Any, num_in_axes: int) -> None:
  axes = part.kernel.get_metadata()["logical_axes"]
  if isinstance(part, experts.ExpertLinear):
    axes = axes[1:]  # Experts are stacked like layers.
  kernel = np.asarray(part.kernel[...])
  shape = kernel.shape
  num_stacked = kernel.ndim - len(axes)
  num_inputs = math.prod(shape[num_stacked : num_stacked + num_in_axes])
  flat = kernel.reshape(math.prod(shape[:num_stacked]), num_inputs, -1)
  group = GROUP_SIZE if num_inputs % GROUP_SIZE == 0 else num_inputs
  codes = np.empty(flat.shape, np.int8)
  scales = np.empty(
    (len(flat), num_inputs // group, flat.shape[-1]), np.float32
  )
  for layer in range(len(flat)):
    groups = flat[layer].astype(np.float32).reshape(-1, group, flat.shape[-1])
    scale = np.abs(groups).max(1) / _LARGEST
    # The scale of a group of zeros is arbitrary.
    ratio = groups / np.where(scale > 0, scale, 1)[:, None]
    codes[layer] = np.rint(ratio).astype(np.int8).reshape(num_inputs, -1)
    scales[layer] = scale
  metadata = part.kernel.get_metadata()
  part.kernel = nnx.Param(codes.reshape(shape), **metadata)
  part.kernel_scale = nnx.Param(
    scales.reshape(*shape[:num_stacked], *scales.shape[1:]),
    logical_axes=(None, None),
  )
