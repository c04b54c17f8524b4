"""Predicts the device memory that sampling needs, without allocating any.

A clip is processed in three stages: encoding, denoising and decoding of its
frames. Each stage holds parameters, whose bytes are counted on abstract
networks, and activations, which are estimated from the sizes. U is one tensor
of all tokens, F (N + 1) D numbers. A step of the DiT holds the skip
connections, the residual stream and the tensors of the current layer: queries,
keys, values and output of temporal attention, the hidden layer of an MLP, or
the rows of the routed experts. With `frames_at_a_time` the last two cover only
some frames. A block's weights are copied out of the stack of all blocks while
it runs. Attention scores and unaccounted allocations are constants.

The estimates were compared with `memory_analysis` of the compiled programs at
the released size, on a CPU; a test repeats the comparison. They are not
measurements on a device, so a share of its memory is left free.
"""

from collections.abc import Iterable, Iterator, Mapping
import dataclasses
import functools
import math
from typing import Any

from flax import nnx
import jax

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.models import dense_attention
from sculpt4d_jax.models import networks
from sculpt4d_jax.models import quantization

GIB = 2**30
# Bytes of memory by device name. GPU sizes are decimal gigabytes; TPU sizes are
# the vendor's figures for HBM.
DEVICES: Mapping[str, int] = {
  **{f"{size} GB GPU": size * GIB for size in (8, 12, 16, 24, 40, 80)},
  "TPU v5e": 16 * GIB,
  "TPU v5p": 95 * GIB,
  "TPU v6e": 32 * GIB,
}
# Share of a device that a plan may fill; the driver, XLA's buffers and
# fragmentation need the rest.
USABLE = 0.92

# Bytes a second between host and device: PCIe 4.0 with 16 lanes, of 32e9 on
# paper.
LINK_RATE = 25e9

# `frames_at_a_time` when it is used to save memory.
FRAMES_AT_A_TIME = 2

_SCORES = 4 * dense_attention.MAX_SCORES  # Float32.
_DTYPE_BYTES = {"float32": 4, "bfloat16": 2}


@dataclasses.dataclass(frozen=True)
class Settings:
  """Everything that determines memory, except the networks' sizes.

  Attributes:
    num_frames: F.
    guided: Whether guidance is on.
    guidance_in_turns: See `SamplingConfig`.
    cache_context: See `SamplingConfig`.
    offload: See `SamplingConfig`.
    frames_at_a_time: See `SamplingConfig`.
    weights: See `SamplingConfig`.
    guides_always: Whether every call has both branches of guidance; else the
      branch with context has its own keys and values.
    chunk_size: Points of the field evaluated at a time.
  """

  num_frames: int
  guided: bool
  guidance_in_turns: bool
  cache_context: bool
  offload: bool
  chunk_size: int
  frames_at_a_time: int = 0
  weights: str = "stored"
  guides_always: bool = True

  def describe(self) -> str:
    """The settings that save memory, as flags."""
    flags = []
    if self.offload:
      flags.append("offload")
    if self.guidance_in_turns:
      flags.append("guidance_in_turns")
    if not self.cache_context:
      flags.append("no cache_context")
    if self.frames_at_a_time:
      flags.append(f"frames_at_a_time={self.frames_at_a_time}")
    if self.weights != "stored":
      flags.append(f"weights={self.weights}")
    return ", ".join(flags) or "default"


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
  """Bytes by stage and part.

  Attributes:
    stages: Stage -> part -> bytes.
    settings: They were made for.
  """

  stages: Mapping[str, Mapping[str, int]]
  settings: Settings

  @property
  def peak(self) -> int:
    """Bytes of the stage that needs most."""
    return max(sum(parts.values()) for parts in self.stages.values())

  def fits(self, num_bytes: int) -> bool:
    """Whether a device of so many bytes is large enough."""
    return self.peak <= USABLE * num_bytes


def settings_of(
  sampling: model_lib.SamplingConfig, surface: pipeline.SurfaceConfig
) -> Settings:
  """The settings of a preset."""
  return Settings(
    num_frames=sampling.num_frames,
    guided=sampling.guidance_scale != 1.0,
    guidance_in_turns=sampling.guidance_in_turns,
    cache_context=sampling.cache_context,
    offload=sampling.offload,
    chunk_size=surface.chunk_size,
    frames_at_a_time=sampling.frames_at_a_time,
    weights=sampling.weights,
    guides_always=sampling.guides_always,
  )


def device_bytes(device: jax.Device | None = None) -> int | None:
  """Memory of a device as its driver reports it; None if it does not."""
  device = jax.devices()[0] if device is None else device
  stats = device.memory_stats()
  return (stats or {}).get("bytes_limit")


def choose(
  model: networks.NetworkConfigs,
  sampling: model_lib.SamplingConfig,
  surface: pipeline.SurfaceConfig,
  num_bytes: int | None,
) -> model_lib.SamplingConfig:
  """The settings with as few savings as a device needs.

  Args:
    model: Configurations of the networks.
    sampling: Settings; they are returned unchanged unless `memory` is "auto".
    surface: Settings of mesh extraction.
    num_bytes: Memory of the device; None if unknown: no memory is saved then.

  Raises:
    ValueError: The device is too small even with all savings.
  """
  if sampling.memory != "auto" or num_bytes is None:
    return sampling
  planner = Planner(model)
  settings = settings_of(sampling, surface)
  plan = planner.best(settings, num_bytes)
  if plan is None:
    least = planner.plan(list(_savings(settings))[-1])
    most = planner.most_frames(settings, num_bytes)
    raise UserError(
      f"{settings.num_frames} frames need {least.peak / GIB:.1f} GiB with all"
      f" savings, and the device has {num_bytes / GIB:.1f}: sample at most"
      f" {most} frames, or a long clip in windows of as many."
    )
  names = (
    "guidance_in_turns",
    "cache_context",
    "offload",
    "frames_at_a_time",
    "weights",
  )
  chosen = {name: getattr(plan.settings, name) for name in names}
  return dataclasses.replace(sampling, **chosen)


class Planner:
  """Plans for one preset's networks; their sizes are counted once."""

  def __init__(self, model: networks.NetworkConfigs, param_bytes: int = 2):
    """Counts parameters on abstract networks.

    Args:
      model: Configurations of the networks.
      param_bytes: Bytes of a stored number: 2 for a conversion in bfloat16, 4
        for one in float32.
    """
    parts = model.parts()
    self.vae, self.encoder, self.dit = (
      parts[name][1] for name in ("vae", "image_encoder", "dit")
    )
    self.params = {
      name: param_bytes * _num_params(kind, config)
      for name, (kind, config) in parts.items()
    }
    self.bytes = param_bytes
    self.kernels = _num_kernels(self.dit)  # Numbers that "int8" packs.

  def plan(self, settings: Settings) -> MemoryPlan:
    """Bytes of every stage."""
    idle = {} if settings.offload else self.params
    weights = functools.partial(self._params, settings, idle)
    context = settings.num_frames * _bytes(
      self.encoder.num_tokens * self.encoder.width, self.encoder.dtype
    )
    stages = {
      "encode": weights("image_encoder", "dit")
      | {"frames being encoded": self._encode(settings)}
      | {"context": context},
      "denoise": weights("dit")
      | {"context": context}
      | {"keys and values": self._key_values(settings)}
      | {"a step of the DiT": self._step(settings)}
      | {"weights of a block": self._block(settings)},
      "decode": weights("vae", "dit")
      | {"a frame being decoded": self._decode(settings)},
    }
    return MemoryPlan(stages, settings)

  def link_bytes(self, settings: Settings) -> int:
    """Bytes of weights that a clip's sampling copies from the host."""
    if not settings.offload:
      return 0
    return self.params["image_encoder"] + self.params["vae"]

  def best(self, settings: Settings, num_bytes: int) -> MemoryPlan | None:
    """The plan with the fewest savings that fits a device, if any does."""
    for savings in _savings(settings):
      plan = self.plan(savings)
      if plan.fits(num_bytes):
        return plan
    return None

  def most_frames(self, settings: Settings, num_bytes: int) -> int:
    """The longest clip that fits with all savings; 0 if none does."""
    savings = list(_savings(settings))[-1]

    def fits(frames: int) -> bool:
      changed = dataclasses.replace(savings, num_frames=frames)
      return self.plan(changed).fits(num_bytes)

    low, high = 0, 1
    while fits(high) and high < 2**12:
      low, high = high, 2 * high
    while high - low > 1:
      middle = (low + high) // 2
      low, high = (middle, high) if fits(middle) else (low, middle)
    return low

  def _params(
    self, settings: Settings, idle: Iterable[str], *needed: str
  ) -> dict[str, int]:
    names = [name for name in self.params if name in (*idle, *needed)]
    sizes = self.params
    if settings.weights == "int8":
      # One byte per number, and one float32 scale per group.
      group = quantization.GROUP_SIZE
      eight_bits = self.kernels * (1 + 4 / group) - self.kernels * self.bytes
      sizes = sizes | {"dit": sizes["dit"] + round(eight_bits)}
    return {f"{_TITLES[name]} weights": sizes[name] for name in names}

  def _block(self, settings: Settings) -> int:
    """Bytes of the largest block's weights; one block is copied at a time.

    In eight bits both the packed and the unpacked ones are in memory.
    """
    d = self.dit
    mlp = 2 * d.mlp_ratio * d.width**2
    attention = 3 * 4 * d.width**2
    has_experts = d.num_moe_blocks > 0
    numbers = attention + mlp * (1 + d.num_experts * has_experts)
    if settings.weights == "int8":
      return numbers + _bytes(numbers, d.dtype)
    return self.bytes * numbers

  def _key_values(self, settings: Settings) -> int:
    d = self.dit
    per_token = 2 * d.width * (d.depth if settings.cache_context else 1)
    tokens = settings.num_frames * self.encoder.num_tokens
    # In turns, one token of zeros stands for "no image".
    both = settings.guided and not settings.guidance_in_turns
    branches = 1 + both + (both and not settings.guides_always)
    return _bytes(tokens * per_token * branches, d.dtype)

  def _step(self, settings: Settings) -> int:
    d = self.dit
    both = settings.guided and not settings.guidance_in_turns
    tokens = settings.num_frames * (self.vae.num_latents + 1)
    unit = _bytes((2 if both else 1) * tokens * d.width, d.dtype)
    kinds = d.block_kinds
    pushed = sum(kind.pushes for kind in kinds)
    share = 1.0
    if settings.frames_at_a_time:
      share = min(settings.frames_at_a_time / settings.num_frames, 1.0)
    attention = 7  # Query, key, value, output; norms, rotations, runs of keys.
    layer = max(attention, 1 + d.mlp_ratio * share)
    if d.num_moe_blocks:
      rows = d.num_experts_per_token * (d.mlp_ratio + 1)
      layer = max(layer, 1 + rows * share)
    units = pushed + 1 + layer
    # The state of the sampler and both velocities, in float32.
    state = 4 * 4 * tokens * d.latent_channels
    return round(unit * units) + state + 2 * _SCORES

  def _encode(self, settings: Settings) -> int:
    e = self.encoder
    frames = min(settings.num_frames, model_lib.FRAMES_AT_A_TIME)
    numbers = frames * e.num_tokens * e.width * (2 + e.mlp_ratio)
    pixels = 4 * frames * 3 * e.image_size**2
    return _bytes(numbers, e.dtype) + 3 * pixels + _SCORES

  def _decode(self, settings: Settings) -> int:
    v = self.vae
    tokens = _bytes(v.num_latents * v.width * 8, v.dtype)
    # The hidden layer; its activation takes its place.
    points = _bytes(settings.chunk_size * v.width * v.field_mlp_ratio, v.dtype)
    return max(tokens, points) + 2 * _SCORES


def report(
  model: networks.NetworkConfigs,
  sampling: model_lib.SamplingConfig,
  surface: pipeline.SurfaceConfig,
) -> str:
  """The plan of a preset as text: both tables, and their assumptions."""
  # Nothing is allocated, but abstract networks still need a device. The host is
  # used, so that planning for an accelerator does not require one.
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    settings = settings_of(sampling, surface)
    lines = list(format_plan(Planner(model), settings))
  return "\n".join(
    [
      *lines,
      "",
      f"Weights in bfloat16; a device is filled to {USABLE:.0%}; the link to the"
      f" host carries {LINK_RATE / 1e9:.0f} GB a second. The savings are"
      " fields of the preset's section `sampling`. Estimated, not measured on"
      " these devices; see sculpt4d_jax/inference/memory_plan.py.",
    ]
  )


def format_plan(planner: Planner, settings: Settings) -> Iterator[str]:
  """A table of parts and stages, and one of devices, as lines of Markdown."""
  plan = planner.plan(settings)
  names = list(dict.fromkeys(n for s in plan.stages.values() for n in s))
  title = f"GiB, {settings.num_frames} frames"
  yield f"| {' | '.join([title, *plan.stages])} |"
  yield "|---" * (1 + len(plan.stages)) + "|"
  for name in names:
    cells = [_gib(stage.get(name)) for stage in plan.stages.values()]
    yield f"| {name} | {' | '.join(cells)} |"
  totals = [_gib(sum(stage.values())) for stage in plan.stages.values()]
  yield f"| **all** | {' | '.join(totals)} |"
  yield ""
  yield (
    f"| device | {settings.num_frames} frames | needs GiB | with"
    " | from the host, a clip | most frames, all savings |"
  )
  yield "|---|---|---|---|---|---|"
  for device, num_bytes in DEVICES.items():
    best = planner.best(settings, num_bytes)
    most = planner.most_frames(settings, num_bytes)
    if best is None:
      least = planner.plan(list(_savings(settings))[-1])
      cells = ["no", _gib(least.peak), "all savings"]
    else:
      cells = ["fits", _gib(best.peak), best.settings.describe()]
    copied = planner.link_bytes((best or least).settings)
    seconds = f"{copied / 1e9:.2f} GB, {copied / LINK_RATE:.2f} s"
    cells.append(seconds if copied else "nothing")
    yield f"| {device} | {' | '.join(cells)} | {most or 'none'} |"


_TITLES = {"dit": "DiT", "vae": "VAE", "image_encoder": "image encoder"}


def _savings(settings: Settings) -> Iterator[Settings]:
  """The settings, then with one more saving each, the cheapest first."""
  yield settings
  for changes in (
    {"offload": True},
    {"frames_at_a_time": settings.frames_at_a_time or FRAMES_AT_A_TIME},
    {"guidance_in_turns": settings.guided or settings.guidance_in_turns},
    {"cache_context": False},
    {"weights": "int8"},
  ):
    settings = dataclasses.replace(settings, **changes)
    yield settings


def _num_params(kind: Any, config: Any) -> int:
  graphdef, params = networks.abstract(kind, config)
  module = nnx.merge(graphdef, params)
  leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
  return sum(math.prod(leaf.shape) for leaf in leaves)


def _num_kernels(config: Any) -> int:
  """Numbers in the kernels of linear maps and experts of the DiT's blocks."""
  _, params = networks.abstract(networks.KINDS["dit"][0], config)
  return sum(
    math.prod(leaf.shape)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params)
    if "stages" in (name := jax.tree_util.keystr(path))
    and "kernel" in name
    and "router" not in name
  )


def _bytes(numbers: int, dtype: Any) -> int:
  return numbers * _DTYPE_BYTES[jax.numpy.dtype(dtype).name]


def _gib(num_bytes: int | None) -> str:
  return "" if num_bytes is None else f"{num_bytes / GIB:.2f}"
