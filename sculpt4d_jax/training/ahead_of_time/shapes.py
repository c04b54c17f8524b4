"""Steps of training and sampling for a preset, without data or weights.

Only shapes with shardings are used, for ahead-of-time compilation.
"""

from collections.abc import Callable
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp

from sculpt4d_jax import partitioning
from sculpt4d_jax.inference import denoising
from sculpt4d_jax.models import networks
from sculpt4d_jax.training import loop
from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.tasks import presets

Mesh = partitioning.Mesh


def dit_training_step(
  preset: preset_lib.Preset, mesh: Mesh
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """The jitted step of the DiT's training, and its input shapes.

  Call and lower it inside `partitioning.use_mesh(mesh)`.

  Raises:
    ValueError: The mesh does not divide the step.
  """
  optimizer = preset.dit_training.optimizer
  task = presets.dit(preset)
  batch = _dit_batch(preset, mesh, task.config, task.num_frames)
  return _training_step(task, optimizer, mesh, batch)


def distillation_step(
  preset: preset_lib.Preset, mesh: Mesh
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """The jitted step of a distillation, and its input shapes.

  Call and lower it inside `partitioning.use_mesh(mesh)`.

  Raises:
    ValueError: The mesh does not divide the step.
  """
  training = preset.distillation
  batch = _dit_batch(preset, mesh, training.task, preset.data.num_frames)
  task = presets.distillation(preset)
  return _training_step(task, training.optimizer, mesh, batch)


def vae_training_step(
  preset: preset_lib.Preset, mesh: Mesh
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """The jitted step of the autoencoder's training, and its input shapes.

  Call and lower it inside `partitioning.use_mesh(mesh)`.

  Raises:
    ValueError: The mesh does not divide the step.
  """
  training = preset.vae_training
  options, sizes = training.task, preset.data.sizes
  lead = (options.batch_size, options.num_frames)
  num_points = sizes.num_uniform + sizes.num_sharp
  batch = {
    "surface": _clips((*lead, num_points, 7), jnp.float32, mesh),
    "samples": _clips((*lead, options.num_queries, 4), jnp.float32, mesh),
  }
  return _training_step(presets.vae(preset), training.optimizer, mesh, batch)


def _training_step(
  task: loop.Task,
  optimizer: optimizer_lib.OptimizerConfig,
  mesh: Mesh,
  batch: dict[str, jax.ShapeDtypeStruct],
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  task.check_mesh(mesh, optimizer.accumulation_steps)
  shardings = loop.state_shardings(task, optimizer, mesh)
  step, tx = loop.make_step(task, optimizer, shardings)
  state = _placed(loop.abstract_state(task, tx), shardings)
  return step, (state, batch, _key(mesh))


def _dit_batch(
  preset: preset_lib.Preset, mesh: Mesh, task: Any, num_frames: int
) -> dict[str, Any]:
  lead = (task.batch_size, num_frames)
  vae = preset.model.vae
  latents = (*lead, vae.num_latents, vae.latent_channels)
  side = preset.data.sizes.image_size
  batch = {
    "mean": _clips(latents, jnp.float16, mesh),
    "log_variance": _clips(latents, jnp.float16, mesh),
    "images": _clips((*lead, side, side, 3), jnp.uint8, mesh),
  }
  if task.num_points:
    batch["samples"] = _clips((*lead, task.num_points, 4), jnp.float32, mesh)
  return batch


def sampler(
  preset: preset_lib.Preset, mesh: Mesh
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """The jitted sampler of `num_sampled_clips`, and its input shapes.

  Call and lower it inside `partitioning.use_mesh(mesh)`.
  """
  sampling, model = preset.sampling, preset.model
  graphdefs, params = {}, {}
  for name in ("image_encoder", "dit"):
    kind, part = model.parts()[name]
    graphdefs[name], shapes = networks.abstract(kind, part)
    # Weights for inference need only the compute precision.
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(part.dtype)), shapes
    )
    params[name] = _placed(shapes, partitioning.shardings(shapes, mesh))
  lead = (num_sampled_clips(preset, mesh), sampling.num_frames)
  vae, side = model.vae, model.image_encoder.image_size

  def sample(
    params: dict[str, nnx.State], images: jax.Array, noise: jax.Array
  ) -> jax.Array:
    modules = {n: nnx.merge(graphdefs[n], params[n]) for n in graphdefs}
    context = modules["image_encoder"](images.astype(jnp.float32) / 127.5 - 1.0)
    return denoising.Denoiser(modules["dit"], noise, sampling).run(context)

  noise = (*lead, vae.num_latents, vae.latent_channels)
  args = (
    params,
    _clips((*lead, side, side, 3), jnp.uint8, mesh),
    _clips(noise, jnp.float32, mesh),
  )
  return jax.jit(sample, donate_argnums=2), args


def num_sampled_clips(preset: preset_lib.Preset, mesh: Mesh) -> int:
  """Number of clips that use the complete mesh.

  Guided sampling evaluates a clip with and without its context as two rows of a
  batch, so there are half as many clips as rows.
  """
  rows = math.prod(mesh.shape[name] for name in partitioning.BATCH_AXES)
  sampling = preset.sampling
  two_rows = sampling.guidance_scale != 1.0 and not sampling.guidance_in_turns
  return max(rows // 2, 1) if two_rows else rows


def _clips(
  shape: tuple[int, ...], dtype: Any, mesh: Mesh
) -> jax.ShapeDtypeStruct:
  sharding = partitioning.batch_sharding(shape, mesh)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _key(mesh: Mesh) -> jax.ShapeDtypeStruct:
  key = jax.eval_shape(lambda: jax.random.key(0))
  whole = partitioning.NamedSharding(mesh, partitioning.Spec())
  return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)


def _placed(shapes: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    shapes,
    shardings,
  )
