"""Samplers for timing: ours, and the same one in PyTorch."""

from collections.abc import Callable
import dataclasses
from typing import Any

import jax
import numpy as np

from benchmarks.sampling import sampling_time
from benchmarks.training import step_time
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.weights import model_files

Sampler = Callable[[], np.ndarray]

# Errors of float32 sums in another order, over the calls of a clip.
_TOLERANCE = 2e-3


@dataclasses.dataclass
class Clip:
  """A clip to sample, and what it is sampled with.

  Attributes:
    network: Our networks, with random weights.
    params: Their parameters by dotted path.
    config: Euler's method, guided at every call if its scale is not 1.
    images: Pictures, uint8 [F, S, S, 3].
    noise: Initial state [F, N, C].
  """

  network: model_lib.Sculpt4D
  params: dict[str, Any]
  config: model_lib.SamplingConfig
  images: np.ndarray
  noise: np.ndarray


def make_clip(preset: preset_lib.Preset) -> Clip:
  """A clip of noise of a preset's length."""
  modules, sizes = sampling_time.random_modules(preset.model)
  network = model_lib.Sculpt4D(**modules)
  config = dataclasses.replace(
    preset.sampling, solver="euler", guidance_interval=(0.0, 1.0)
  )
  frames, side = preset.data.num_frames, sizes.image_encoder.image_size
  rng = np.random.default_rng(0)
  latents = (frames, preset.model.vae.num_latents, sizes.dit.latent_channels)
  return Clip(
    network,
    model_files.flatten(
      {"dit": network._dit, "image_encoder": network._encoder}
    ),
    config,
    rng.integers(0, 256, (frames, side, side, 3), np.uint8),
    rng.normal(size=latents).astype(np.float32),
  )


def ours(clip: Clip) -> Sampler:
  """Samples the clip as `launch.sample` does, from pictures to latents."""

  def run() -> np.ndarray:
    context = clip.network.encode(clip.images)
    return clip.network.denoise(context[None], clip.noise[None], clip.config)[0]

  return run


def torch_sampler(
  clip: Clip, step: step_time.OurStep, compiled: bool
) -> Sampler:
  """The same in PyTorch.

  Args:
    clip: The clip.
    step: A training step of the same preset, for its settings.
    compiled: Whether `torch.compile` compiles the velocity.
  """
  import torch

  from benchmarks.training import torch_step as torch_step_lib

  task = step.task
  module = torch_step_lib.TrainingStep(
    torch_step_lib.convert(jax.device_get(clip.params), task.dit_config),
    task.dit_config,
    task.encoder_config,
    step.optimizer,
    num_frames=len(clip.images),
    num_tokens=clip.noise.shape[1],
    field_weight=0.0,
    field_band=1.0,
    field_heads=1,
    field_freqs=1,
    is_compiled=compiled,
  )
  config = clip.config
  images = torch.from_numpy(clip.images)
  noise = torch.from_numpy(clip.noise) * config.temperature
  return lambda: module.sample(
    images, noise, config.num_steps, config.guidance_scale
  ).numpy()


def check_agreement(own: Sampler, peer: Sampler) -> None:
  """Samples with both and compares the latents.

  Raises:
    AssertionError: They differ by more than rounding.
  """
  first, second = own(), peer()
  error = np.linalg.norm(first - second) / np.linalg.norm(first)
  if not error < _TOLERANCE:
    raise AssertionError(f"the latents differ by {error:.2e}")
