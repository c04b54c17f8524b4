r"""Parts of the check that no other program has; each prints its results.

python -m benchmarks.check_gpu.parts versions
python -m benchmarks.check_gpu.parts kernels
python -m benchmarks.check_gpu.parts sample --config=configs/sculpt4d.py
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import importlib.metadata
import os
import platform
import shutil
import subprocess
import time
from typing import Any

from absl import flags
from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections
from ml_collections import config_flags
import numpy as np

from launch import program
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import memory_choice
from sculpt4d_jax.inference import memory_plan
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.models import networks
from sculpt4d_jax.training import preset as preset_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/tiny.py", "Preset whose sizes are taken."
)
_STEPS = flags.DEFINE_integer("steps", None, "Times of the sampler.")
_FOR_GB = flags.DEFINE_integer(
  "for_gb", None, "Size of a card whose savings of memory are taken."
)
_SMALL = flags.DEFINE_bool("small", False, "Sizes for a CPU.")

_PACKAGES = (
  "jax",
  "jaxlib",
  "jax-cuda12-plugin",
  "jax-cuda13-plugin",
  "flax",
  "optax",
  "numpy",
  "torch",
)


def main(argv: Sequence[str]) -> int:
  """Runs the program."""
  if len(argv) != 2 or argv[1] not in PARTS:
    raise UserError(f"Name one part: {', '.join(PARTS)}.")
  return PARTS[argv[1]]() or 0


def versions() -> None:
  """Prints the machine and its software."""
  print(f"- Python {platform.python_version()} on {platform.platform()}")
  for name in _PACKAGES:
    try:
      print(f"- {name} {importlib.metadata.version(name)}")
    except importlib.metadata.PackageNotFoundError:
      continue
  for device in jax.devices():
    limit = memory_choice.device_bytes(device)
    memory = "memory unknown" if limit is None else f"{limit / 2**30:.1f} GiB"
    capability = getattr(device, "compute_capability", "none")
    print(
      f"- {device.device_kind} ({device.platform}), {memory}, compute"
      f" capability {capability}"
    )
  print(f"- {os.cpu_count()} processors")
  if shutil.which("nvidia-smi"):
    query = "name,driver_version,memory.total,power.limit"
    command = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
    result = subprocess.run(
      command, capture_output=True, text=True, check=False
    )
    print(f"- nvidia-smi: {(result.stdout or result.stderr).strip()}")


def kernels() -> int:
  """Compares the kernels with the reference; returns 1 if one differs."""
  from benchmarks.check_gpu import kernel_check

  rows = kernel_check.compare(small=_SMALL.value)
  print("| kernel | case | tiles | largest error | |")
  print("|---|---|---|---|---|")
  for row in rows:
    error = "" if row.error is None else f"{row.error:.1e}"
    print(
      f"| {row.kernel} | {row.case} | {row.tiles} | {error} | {row.verdict} |"
    )
  wrong = [row for row in rows if row.verdict not in ("ok", "does not apply")]
  print(f"\n{len(rows) - len(wrong)} of {len(rows)} are as they should be.")
  return 1 if wrong else 0


def guided_step() -> None:
  """Times guided calls of the DiT and prints their memory."""
  preset = _preset()
  if _FOR_GB.value:
    auto = dataclasses.replace(preset.sampling, memory="auto")
    size = _FOR_GB.value * memory_plan.GIB
    chosen = memory_choice.choose(preset.model, auto, preset.surface, size)
    preset = dataclasses.replace(preset, sampling=chosen)
  sampling = dataclasses.replace(preset.sampling, num_steps=3)
  settings = memory_plan.settings_of(sampling, preset.surface)
  print(f"- savings of memory: {settings.describe()}")
  model = _random_model(preset)
  seconds = _sample_seconds(model, preset, sampling)
  longer = dataclasses.replace(sampling, num_steps=5)
  more = _sample_seconds(model, preset, longer)
  print(f"- a guided call: {(more - seconds) / 2:.3f} s")
  _print_memory(preset, sampling)


def sample() -> None:
  """Times a full sample of a preset, from pictures to latents."""
  preset = _preset()
  sampling = preset.sampling
  if _STEPS.value:
    sampling = dataclasses.replace(sampling, num_steps=_STEPS.value)
  model = _random_model(preset)
  seconds = _sample_seconds(model, preset, sampling)
  print(
    f"- {sampling.num_frames} frames, {len(sampling.calls)} calls,"
    f" {sampling.num_evaluations} passes: {seconds:.1f} s without compiling"
  )
  _print_memory(preset, sampling)


def decode() -> None:
  """Times decoding a frame and its mesh."""
  preset = _preset()
  model = _random_model(preset)
  vae = preset.model.vae
  latents = np.random.default_rng(0).normal(
    size=(vae.num_latents, vae.latent_channels)
  )
  field = model.field(latents.astype(np.float32))
  points = np.random.default_rng(1).uniform(
    -1, 1, (preset.surface.chunk_size, 3)
  )
  seconds = _timed(lambda: np.asarray(field(points.astype(np.float32))), 5)
  print(
    f"- {len(points):,} points of the field: {seconds:.4f} s,"
    f" {len(points) / seconds:,.0f} points a second"
  )
  # The field of random weights has no surface of an object's size, so a ball at
  # the cost of the field replaces it.
  ball = _ball_at_the_price_of(field)
  for grid in ("exact", "lean"):
    surface = dataclasses.replace(
      preset.surface, grid=grid, level=0.0, min_component_area=0.0
    )
    start = time.monotonic()
    result = pipeline.evaluate_grid(ball, surface)
    took = time.monotonic() - start
    start = time.monotonic()
    pipeline.isosurface.extract_surface(result.values, bounds=surface.bounds)
    print(
      f"- grid {grid!r}, {surface.resolution}³: {result.num_evaluations:,}"
      f" points in {took:.2f} s, marching cubes {time.monotonic() - start:.2f} s"
    )


def _ball_at_the_price_of(
  field: Callable[[np.ndarray], np.ndarray],
) -> Callable[[np.ndarray], np.ndarray]:
  """The field of a ball that also computes the given field."""

  def evaluate(points: np.ndarray) -> np.ndarray:
    field(points)
    return np.clip((0.6 - np.linalg.norm(points, axis=-1)) / 0.02, -1, 1)

  return evaluate


def lora_step() -> None:
  """Times a training step of a preset under LoRA."""
  config = _CONFIG.value
  config.dit_training.batch_size = 1
  config.dit_training.train_image_encoder = False
  config.dit_training.context_field_weight = 0.0
  config.dit_training.lora.rank = 16
  config.model.dit.param_dtype = "bfloat16"
  _train(config, rounds=3)


def train_step() -> None:
  """Times a training step of a preset."""
  _train(_CONFIG.value, rounds=10)


def _train(config: ml_collections.ConfigDict, rounds: int) -> None:
  from benchmarks.training import step_time

  preset = preset_lib.from_config(config)
  step = step_time.our_step(preset)
  losses = [step.take(0), step.take(1)]  # Compiles.
  start = time.monotonic()
  losses += [step.take(index) for index in range(rounds)]
  seconds = (time.monotonic() - start) / rounds
  print(
    f"- a step of {preset.dit_training.task.batch_size} clips of"
    f" {preset.data.num_frames} frames: {seconds:.3f} s,"
    f" {step.flops / seconds / 1e12:.2f} TFLOP/s, loss {losses[0]:.3f} to"
    f" {losses[-1]:.3f}"
  )
  print(f"- peak memory: {_peak_gib()}")
  if not np.isfinite(losses).all():
    raise UserError(f"A loss is not finite: {losses}.")


def _preset() -> preset_lib.Preset:
  return preset_lib.from_config(_CONFIG.value)


def _random_model(preset: preset_lib.Preset) -> model_lib.Sculpt4D:
  """A model with random weights in the compute dtype, made on the device."""
  sampling = preset.sampling
  # Else the weights' first copies would count among the peak of memory.
  leaves_device = sampling.offload or sampling.stream_layers
  place = jax.device_get if leaves_device else lambda leaf: leaf
  modules = {}
  for name, (kind, part) in preset.model.parts().items():
    graphdef, shapes = networks.abstract(kind, part)
    dtype = jnp.dtype(part.dtype)
    leaves, tree = jax.tree.flatten(shapes)
    values = [
      place(_random_leaf(number, leaf.shape, dtype))
      for number, leaf in enumerate(leaves)
    ]
    modules[name] = nnx.merge(graphdef, tree.unflatten(values))
  return model_lib.Sculpt4D(
    **modules,
    offload=sampling.offload,
    stream_layers=sampling.stream_layers,
  )


def _random_leaf(
  number: int, shape: tuple[int, ...], dtype: jax.typing.DTypeLike
) -> jax.Array:
  draw = lambda key: 0.02 * jax.random.normal(key, shape, dtype)
  return jax.jit(draw)(jax.random.key(number))


def _sample_seconds(
  model: model_lib.Sculpt4D,
  preset: preset_lib.Preset,
  sampling: model_lib.SamplingConfig,
) -> float:
  side = preset.model.image_encoder.image_size
  images = np.random.default_rng(0).integers(
    0, 255, (sampling.num_frames, side, side, 3), np.uint8
  )
  latents = model.sample(images, sampling)  # Compiles.
  if not np.isfinite(latents).all():
    raise UserError("The latents are not finite.")
  return _timed(lambda: model.sample(images, sampling), 1)


def _timed(run: Callable[[], Any], rounds: int) -> float:
  run()
  start = time.monotonic()
  for _ in range(rounds):
    run()
  return (time.monotonic() - start) / rounds


def _print_memory(
  preset: preset_lib.Preset, sampling: model_lib.SamplingConfig
) -> None:
  planner = memory_plan.Planner(preset.model)
  plan = planner.plan(memory_plan.settings_of(sampling, preset.surface))
  denoise = sum(plan.stages["denoise"].values()) / 2**30
  print(f"- peak memory: {_peak_gib()}; planned {denoise:.2f} GiB")


def _peak_gib() -> str:
  stats = jax.devices()[0].memory_stats() or {}
  peak = stats.get("peak_bytes_in_use")
  return (
    "not told by this device" if peak is None else f"{peak / 2**30:.2f} GiB"
  )


PARTS: Mapping[str, Callable[[], int | None]] = {
  "versions": versions,
  "kernels": kernels,
  "guided_step": guided_step,
  "sample": sample,
  "decode": decode,
  "lora_step": lora_step,
  "train_step": train_step,
}


if __name__ == "__main__":
  program.run(main, positional=True)
