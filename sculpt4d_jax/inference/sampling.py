"""Settings of the sampler, and named presets of them."""

from collections.abc import Collection, Mapping
import dataclasses
import math
from typing import Any

import ml_collections

from sculpt4d_jax.diffusion import guidance
from sculpt4d_jax.diffusion import samplers
from sculpt4d_jax.diffusion.solvers import calls as calls_lib
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import attention

NOISES = ("independent", "shared")
KNOWN = ("path", "clean")
WEIGHTS = ("stored", "int8")
MEMORY = ("as_set", "auto")

# Settings by name, for `launch.sample --preset`; docs/sampling.md has the
# scores by which they were chosen.
PRESETS: Mapping[str, Mapping[str, Any]] = {
  "draft": dict(solver="ab2", num_steps=9),
  "fast": dict(solver="ab2", num_steps=16, guidance_interval=(0.2, 0.8)),
  "quality": dict(solver="euler", num_steps=50),
}


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """Settings of the sampler; see `configs/base.py`.

  Attributes:
    num_frames: Frames that a longer clip is resampled to.
    num_steps: Times of the sampler, both ends included, which is how Hunyuan3D
      2.1 counts its steps: the sampler has one interval less.
    guidance_scale: Scale of classifier-free guidance; 1 turns it off.
    timestep_shift: Above 1, steps are long near the noise and short near the
      data; below 1 the reverse. See `samplers.euler_times`.
    noise: "independent" for every frame, or "shared" by all of them.
    temperature: Factor of the noise, from 0 on. 1 draws from the model's
      distribution; less gives shapes nearer to its mean; 0 starts from no noise,
      so that all seeds give one result.
    mirror: Samples the clip mirrored, too, and takes the mean of both shapes:
      twice the work, and fewer errors; see `mirror.py`. For models whose camera
      looks along x = 0, as all here do.
    temporal_mode: "sparse", "full", "token" or "none".
    seed: Seed of the noise; the same seed gives the same result on the same
      machine.
    guidance_in_turns: Calls the DiT with and without context one after the
      other instead of together: less memory, the same result up to rounding.
    cache_context: Keeps the context's keys and values of all blocks instead of
      computing them in every step.
    offload: Keeps the image encoder and the autoencoder on the host while they
      are not used.
    solver: One of `samplers.SAMPLERS`.
    guidance_interval: First guided time and first later time without guidance,
      0 noise and 1 data.
    keep_difference: Calls that the difference between both branches of guidance
      serves.
    known: Treatment of known frames: "path", noised like the others, for any
      weights; "clean", at time 1, for weights trained with times of single
      frames.
    frames_at_a_time: Frames that layers within a frame work on at a time; 0
      takes all. Less memory, the same result up to rounding.
    weights: "stored", or "int8": the transformer's kernels with one byte per
      number, which changes the velocity by about 1 %.
    stream_layers: Keeps the weights of the transformer's blocks in the host's
      memory; each is copied one block before it runs. One device.
    skips_on_host: Keeps the outputs that later blocks take there, too. One
      device.
    memory: "as_set", or "auto": the exact savings that fit the device and lose
      the least time; see `memory_choice.choose`.
    outline_steps: Gradient steps after each call that fit the shapes to the
      object's outlines, for weights with a view head; 0 makes none. See
      `outlines.py`.
    outline_rate: Size of these steps, in units of the latents.
    outline_from: First time, 0 noise and 1 data, at which they are made.
  """

  num_frames: int
  num_steps: int
  guidance_scale: float
  timestep_shift: float
  noise: str
  temporal_mode: str
  seed: int
  temperature: float = 1.0
  mirror: bool = False
  guidance_in_turns: bool = False
  cache_context: bool = True
  offload: bool = False
  solver: str = "euler"
  guidance_interval: tuple[float, float] = guidance.EVERYWHERE
  keep_difference: int = 1
  known: str = "path"
  frames_at_a_time: int = 0
  weights: str = "stored"
  stream_layers: bool = False
  skips_on_host: bool = False
  memory: str = "as_set"
  outline_steps: int = 0
  outline_rate: float = 0.03
  outline_from: float = 0.2

  def __post_init__(self):
    if self.num_frames < 1:
      raise UserError(f"num_frames={self.num_frames} must be at least 1.")
    if self.num_steps < 2:
      raise UserError(f"num_steps={self.num_steps} must be at least 2.")
    _check_choice("noise", self.noise, NOISES)
    _check_choice("solver", self.solver, samplers.SAMPLERS)
    _check_choice("known", self.known, KNOWN)
    _check_choice("weights", self.weights, WEIGHTS)
    _check_choice("memory", self.memory, MEMORY)
    for name in _SWITCHES:
      if not isinstance(value := getattr(self, name), bool):
        raise UserError(f"{name}={value!r} must be true or false.")
    if not 0 <= self.temperature < math.inf:
      raise UserError(
        f"temperature={self.temperature} must be 0 or more, and finite."
      )
    if self.frames_at_a_time < 0:
      raise UserError(
        f"frames_at_a_time={self.frames_at_a_time} must be at least 1, or 0 for"
        " all."
      )
    if self.outline_steps < 0:
      raise UserError(
        f"outline_steps={self.outline_steps} must not be negative."
      )
    if not self.outline_rate > 0:
      raise UserError(f"outline_rate={self.outline_rate} must be positive.")
    _check_choice("temporal_mode", self.temporal_mode, attention.TEMPORAL_MODES)
    # Lists, as configuration files may have them, would not be hashable.
    interval = tuple(float(end) for end in self.guidance_interval)
    object.__setattr__(self, "guidance_interval", interval)
    guidance.check(interval, self.keep_difference)

  @property
  def calls(self) -> calls_lib.Calls:
    """The velocity calls that these settings require."""
    times = samplers.euler_times(self.num_steps, shift=self.timestep_shift)
    return samplers.calls_of(self.solver, times)

  @property
  def num_evaluations(self) -> int:
    """Number of passes of the DiT over a clip; a guided call counts as two."""
    return self.num_clips * guidance.num_evaluations(
      self.calls.times,
      self.guidance_scale,
      self.guidance_interval,
      self.keep_difference,
    )

  @property
  def num_clips(self) -> int:
    """Clips that are sampled for one: with `mirror` its mirror image too."""
    return 2 if self.mirror else 1

  @property
  def needs_one_device(self) -> bool:
    """Whether a clip cannot be shared by several devices."""
    return self.weights == "int8" or self.stream_layers or self.skips_on_host

  @property
  def takes_shortcuts(self) -> bool:
    """Whether all steps have one length and each is one velocity call."""
    return self.solver == "euler" and self.timestep_shift == 1.0

  @property
  def guides_always(self) -> bool:
    """Whether every call evaluates both branches of guidance."""
    everywhere = self.guidance_interval == guidance.EVERYWHERE
    return everywhere and self.keep_difference == 1


_SWITCHES = (
  "mirror",
  "guidance_in_turns",
  "cache_context",
  "offload",
  "stream_layers",
  "skips_on_host",
)


def _check_choice(name: str, value: str, choices: Collection[str]) -> None:
  if value not in choices:
    raise UserError(f"{name}={value!r}: choose one of {tuple(choices)}.")


def preset(name: str) -> Mapping[str, Any]:
  """The fields of `SamplingConfig` that a named preset sets.

  Raises:
    ValueError: Unknown name.
  """
  if name not in PRESETS:
    raise UserError(
      f"Unknown sampling preset {name!r}: choose one of {tuple(PRESETS)}."
    )
  return PRESETS[name]


def apply_preset(
  section: ml_collections.ConfigDict, name: str, given: Collection[str]
) -> None:
  """Sets a named preset's fields in a configuration's section `sampling`.

  Args:
    section: The section, which is changed.
    name: The preset's name.
    given: Fields that keep their values, such as "sampling.num_steps".

  Raises:
    ValueError: Unknown name.
  """
  for field, value in preset(name).items():
    if f"sampling.{field}" not in given:
      section[field] = value
