"""Distributes the sampling of one clip over several devices of a machine.

The two branches of guidance are two clips of one batch, so they use the mesh's
`data` axis; a clip's frames use `context`. Every device holds its shard of the
parameters, see `partitioning.py`.
"""

from collections.abc import Sequence

import jax

from sculpt4d_jax import partitioning
from sculpt4d_jax.inference import sampling as sampling_lib
from sculpt4d_jax.models import dit_config


def sampling_mesh(
  devices: Sequence[jax.Device],
  config: sampling_lib.SamplingConfig,
  dit: dit_config.DiTConfig,
  num_frames: int,
) -> partitioning.Mesh | None:
  """The mesh of as many devices as a clip can use; None for a single device.

  Frames are split over a number of devices that divides both frames and
  attention heads, because temporal attention exchanges the two by an
  all-to-all. Devices that are left over stay idle.

  Args:
    devices: Devices of this process.
    config: Settings of the sampler; branches of guidance that are called in
      turns are not split.
    dit: The transformer.
    num_frames: Frames of the clip, or of a window.
  """
  if config.needs_one_device:
    return None
  is_pair = config.guidance_scale != 1.0 and not config.guidance_in_turns
  # Calls outside the guidance interval have one branch for all devices.
  branches = 2 if is_pair and config.guides_always else 1
  best = (1, 1)
  for data in {1, branches}:
    for context in range(1, len(devices) // data + 1):
      if num_frames % context or dit.num_heads % context:
        continue
      # As many as possible; among equals, branches are split first.
      best = max(best, (data, context), key=lambda x: (x[0] * x[1], x[0]))
  data, context = best
  if data * context == 1:
    return None
  return partitioning.make_mesh(
    partitioning.MeshConfig(data=data, fsdp=1, context=context),
    list(devices)[: data * context],
  )
