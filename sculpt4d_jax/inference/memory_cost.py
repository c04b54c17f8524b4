"""Estimates the time that savings of memory cost, for devices on paper.

Four things cost time, at rates of data sheets:

    copies    bytes between host and device over the link's rate. Those of
              layers and skips can run while the block before works. What takes
              longer than that block counts, the first block's copy, and of the
              rest the share that compilers do not overlap with work
    reads     weights that are read from the device's memory once more, because
              fewer frames, or one branch of guidance, use them at a time
    products  keys and values of the context that are computed in every call
    int8      kernels that are made whole in every run

Work is estimated from the operations of the DiT and a share of the device's
peak. Nothing here has been measured.
"""

from collections.abc import Mapping
import dataclasses

from sculpt4d_jax.inference import memory_plan
from sculpt4d_jax.models import dit_config
from sculpt4d_jax.models import flops

# Share of a device's peak at which it is taken to work.
UTILISATION = 0.4
# Share of the copied bytes that cost nothing: of the released size's blocks, as
# the compiler for an H100 schedules the copies and the products between them.
HIDDEN = 0.08


@dataclasses.dataclass(frozen=True)
class Device:
  """Data sheet values.

  Attributes:
    memory: Bytes.
    flops: Peak of dense products in bfloat16 with float32 sums, a second.
    memory_rate: Bytes a second from its memory.
    link_rate: Bytes a second from and to the host, 0.8 of the value on paper.
  """

  memory: float
  flops: float
  memory_rate: float
  link_rate: float


_GIB = memory_plan.GIB
# A card of each size: GeForce RTX 4060 (whose link has 8 lanes of PCIe 4.0),
# 4070, 4080 and 4090, A100 and H100. The links of TPUs are not published; 16
# lanes of PCIe 4.0 are assumed.
DEVICES: Mapping[str, Device] = {
  "8 GB GPU": Device(8 * _GIB, 30e12, 272e9, 12.5e9),
  "12 GB GPU": Device(12 * _GIB, 58e12, 504e9, 25e9),
  "16 GB GPU": Device(16 * _GIB, 97e12, 717e9, 25e9),
  "24 GB GPU": Device(24 * _GIB, 165e12, 1008e9, 25e9),
  "40 GB GPU": Device(40 * _GIB, 312e12, 1555e9, 25e9),
  "80 GB GPU": Device(80 * _GIB, 989e12, 3350e9, 50e9),
  "TPU v5e": Device(16 * _GIB, 197e12, 819e9, 25e9),
  "TPU v5p": Device(95 * _GIB, 459e12, 2765e9, 25e9),
  "TPU v6e": Device(32 * _GIB, 918e12, 1640e9, 25e9),
}


def device_of(num_bytes: int) -> Device:
  """The listed GPU that a device of so many bytes is taken for.

  Args:
    num_bytes: Memory that the device's driver reports, which is less than its
      name says; the smallest GPU with as much stands for it.
  """
  gpus = [device for name, device in DEVICES.items() if "GPU" in name]
  fitting = [device for device in gpus if device.memory >= num_bytes]
  nearest = fitting[0] if fitting else gpus[-1]
  return dataclasses.replace(nearest, memory=num_bytes)


@dataclasses.dataclass(frozen=True)
class Cost:
  """What a clip's sampling costs more than with the same settings unsaved.

  Attributes:
    link_bytes: Bytes between host and device, both ways, without the clip.
    seconds: Time lost.
  """

  link_bytes: int
  seconds: float


def cost(
  planner: memory_plan.Planner,
  settings: memory_plan.Settings,
  device: Device,
) -> Cost:
  """Estimates what savings cost a clip.

  Args:
    planner: Sizes of the networks.
    settings: Settings with savings.
    device: Device that samples.
  """
  copied, seconds = 0, 0.0
  if settings.offload:
    copied += planner.params["image_encoder"] + planner.params["vae"]
    seconds += copied / device.link_rate
  num_bytes, waits = _streaming(planner, settings, device)
  copied += num_bytes
  seconds += waits + _reads(planner, settings) / device.memory_rate
  seconds += _products(planner, settings) / (UTILISATION * device.flops)
  return Cost(copied, seconds)


def _streaming(
  planner: memory_plan.Planner,
  settings: memory_plan.Settings,
  device: Device,
) -> tuple[int, float]:
  """Bytes of layers and skips that are copied, and seconds of waiting."""
  runs, kinds = settings.runs, planner.dit.block_kinds
  layers, copied, waits = [0] * len(kinds), 0, 0.0
  if settings.stream_layers:
    numbers = [_kernels(planner.dit, kind) for kind in kinds]
    share = planner.stored_kernels(settings) / sum(numbers)
    layers = [round(share * number) for number in numbers]
    copied += runs * sum(layers)
  unit = 0
  if settings.skips_on_host:
    unit = planner.unit(settings) * settings.evaluations / runs
    copied += round(2 * planner.num_skips * unit * runs)
  # Blocks are taken to work equally long.
  work = settings.evaluations / runs * _call(planner, settings)
  work /= len(kinds) * UTILISATION * device.flops
  for number, kind in enumerate(kinds):
    # The block before writes its skip meanwhile.
    writes = number > 0 and kinds[number - 1].pushes
    bytes_now = layers[number] + unit * (kind.has_skip + writes)
    takes = bytes_now / device.link_rate
    waits += takes - HIDDEN * min(takes, work if number else 0.0)
  return copied, runs * waits


def _reads(
  planner: memory_plan.Planner, settings: memory_plan.Settings
) -> float:
  """Bytes of kernels that are read, or made whole, more often."""
  stored = planner.stored_kernels(settings)
  groups = 1
  if settings.frames_at_a_time:
    groups = -(-settings.num_frames // settings.frames_at_a_time)
  reads = (settings.runs * groups - settings.calls) * stored
  if settings.weights == "int8":  # Written whole and read again.
    reads += settings.runs * groups * 2 * planner.bytes * planner.kernels
  return reads


def _products(
  planner: memory_plan.Planner, settings: memory_plan.Settings
) -> float:
  """Operations of the context's keys and values, but for the first time."""
  if settings.cache_context:
    return 0.0
  once = sum(
    flops.dit_context(
      planner.dit, settings.num_frames, planner.encoder.num_tokens
    ).values()
  )
  # In turns, one token stands for "no image".
  turns = settings.guidance_in_turns
  times = settings.calls if turns else settings.evaluations
  return max(times - 1, 0) * once


def _call(
  planner: memory_plan.Planner, settings: memory_plan.Settings
) -> float:
  """Operations of one pass over a clip."""
  mode = settings.temporal_mode
  if planner.dit.temporal_mode == "none":
    mode = None
  counts = flops.dit_call(
    planner.dit,
    settings.num_frames,
    planner.vae.num_latents,
    planner.encoder.num_tokens,
    mode,
  )
  return sum(counts.values())


def _kernels(config: dit_config.DiTConfig, kind: dit_config.BlockKind) -> int:
  """Numbers in the kernels of a block, up to those of the context's width."""
  square = config.width**2
  experts = 1 + config.num_experts * kind.is_moe
  attentions = 3 if config.temporal_mode != "none" else 2
  mlps = 2 * config.mlp_ratio * experts
  return (4 * attentions + 2 * kind.has_skip + mlps) * square
