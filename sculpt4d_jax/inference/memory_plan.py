"""Predicts the device memory that sampling needs, without allocating any.

A clip is processed in three stages: encoding, denoising and decoding of its
frames. Each stage holds parameters, whose bytes are counted on abstract
networks, and activations, which are estimated from the sizes. U is one tensor
of all tokens, F (N + 1) D numbers. A step of the DiT holds the skip
connections, the residual stream and the tensors of the current layer: queries,
keys, values and output of temporal attention, the hidden layer of an MLP, or
the rows of the routed experts. With `frames_at_a_time` the last two cover only
some frames. A block's weights are copied out of the stack of all blocks while
it runs; with `stream_layers` that stack is on the host, and the device holds
the current block and the next one. Attention scores and unaccounted allocations
are constants.

The estimates were compared with `memory_analysis` of the compiled programs at
the released size, on a CPU; a test repeats the comparison. The compiler for
GPUs agrees, the one for TPUs reserves more, see docs/sampling.md. Nothing was
measured on a device, so `memory_choice.py` leaves a share of it free.
"""

from collections.abc import Iterable, Mapping
import dataclasses
import functools
import math
from typing import Any

from flax import nnx
import jax

from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.models import dense_attention
from sculpt4d_jax.models import networks
from sculpt4d_jax.models import quantization
from sculpt4d_jax.models import streaming

GIB = 2**30
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
    stream_layers: See `SamplingConfig`.
    skips_on_host: See `SamplingConfig`.
    calls: Velocity calls of a sample.
    evaluations: Passes of the DiT over a clip; a guided call has two.
    temporal_mode: See `SamplingConfig`; None is the model's.
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
  stream_layers: bool = False
  skips_on_host: bool = False
  calls: int = 1
  evaluations: int = 1
  temporal_mode: str | None = None

  @property
  def runs(self) -> int:
    """Runs of the DiT: one of both branches, or one of each in turns."""
    return self.evaluations if self.guidance_in_turns else self.calls

  def describe(self) -> str:
    """The settings that save memory, as flags."""
    flags = []
    if self.offload:
      flags.append("offload")
    if self.guidance_in_turns:
      flags.append("guidance_in_turns")
    if not self.cache_context:
      flags.append("no cache_context")
    if self.stream_layers:
      flags.append("stream_layers")
    if self.skips_on_host:
      flags.append("skips_on_host")
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
    stream_layers=sampling.stream_layers,
    skips_on_host=sampling.skips_on_host,
    calls=sampling.num_clips * len(sampling.calls),
    evaluations=sampling.num_evaluations,
    temporal_mode=sampling.temporal_mode,
  )


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
    # Numbers in the blocks' kernels, which are packed and streamed.
    self.kernels = _num_kernels(self.dit)

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

  def _params(
    self, settings: Settings, idle: Iterable[str], *needed: str
  ) -> dict[str, int]:
    names = [name for name in self.params if name in (*idle, *needed)]
    resident = self.params["dit"] - self.bytes * self.kernels
    if not settings.stream_layers:
      resident += self.stored_kernels(settings)
    sizes = self.params | {"dit": resident}
    return {f"{_TITLES[name]} weights": sizes[name] for name in names}

  def stored_kernels(self, settings: Settings) -> int:
    """Bytes of all blocks' kernels as they are stored."""
    if settings.weights != "int8":
      return self.bytes * self.kernels
    # One byte per number, and one float32 scale per group.
    return round(self.kernels * (1 + 4 / quantization.GROUP_SIZE))

  def _block(self, settings: Settings) -> int:
    """Bytes of the largest block's weights on their way; at most two blocks.

    One block is copied at a time, or the next one ahead of the current one. In
    eight bits both the packed and the unpacked ones are in memory.
    """
    d = self.dit
    mlp = 2 * d.mlp_ratio * d.width**2
    attention = 3 * 4 * d.width**2
    has_experts = d.num_moe_blocks > 0
    numbers = attention + mlp * (1 + d.num_experts * has_experts)
    copies = 1 + (settings.stream_layers or settings.skips_on_host)
    if settings.weights == "int8":
      return copies * numbers + _bytes(numbers, d.dtype)
    return copies * self.bytes * numbers

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
    unit = (2 if both else 1) * self.unit(settings)
    # From the host, the current block's skip and the next one's.
    pushed = 2 if settings.skips_on_host else self.num_skips
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

  def unit(self, settings: Settings) -> int:
    """Bytes of all tokens of one branch."""
    tokens = settings.num_frames * (self.vae.num_latents + 1)
    return _bytes(tokens * self.dit.width, self.dit.dtype)

  @property
  def num_skips(self) -> int:
    """Outputs of blocks that later blocks take."""
    return sum(kind.pushes for kind in self.dit.block_kinds)

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


_TITLES = {"dit": "DiT", "vae": "VAE", "image_encoder": "image encoder"}


def _num_params(kind: Any, config: Any) -> int:
  graphdef, params = networks.abstract(kind, config)
  module = nnx.merge(graphdef, params)
  leaves = jax.tree.leaves(nnx.state(module, nnx.Param))
  return sum(math.prod(leaf.shape) for leaf in leaves)


def _num_kernels(config: Any) -> int:
  """Numbers in the kernels of linear maps and experts of the DiT's blocks."""
  _, params = networks.abstract(networks.KINDS["dit"][0], config)
  leaves = jax.tree_util.tree_leaves_with_path(params)
  return sum(
    math.prod(leaf.shape)
    for path, leaf in leaves
    if streaming.is_streamed(path)
  )


def _bytes(numbers: int, dtype: Any) -> int:
  return numbers * _DTYPE_BYTES[jax.numpy.dtype(dtype).name]
