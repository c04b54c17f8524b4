"""What a preset would train and sample, without data, weights or devices.

Everything is shapes with shardings, for compiling ahead of time.
"""

from collections.abc import Callable
import math
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import ml_collections

from sculpt4d_jax import partitioning
from sculpt4d_jax.inference import denoising
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.training import loop
from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import step as step_lib
from sculpt4d_jax.training.tasks import presets

Mesh = partitioning.Mesh


def dit_training_step(
  config: ml_collections.ConfigDict, mesh: Mesh
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """The jitted step of the DiT's training, and the shapes it takes.

  Call and lower it inside `partitioning.use_mesh(mesh)`.

  Raises:
    ValueError: The mesh does not divide the step.
  """
  _, optimizer = presets.dit_options(config)
  batch = _dit_batch(config, mesh)
  return _training_step(presets.dit(config), optimizer, mesh, batch)


def vae_training_step(
  config: ml_collections.ConfigDict, mesh: Mesh
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """The jitted step of the autoencoder's training, and the shapes it takes.

  Call and lower it inside `partitioning.use_mesh(mesh)`.

  Raises:
    ValueError: The mesh does not divide the step.
  """
  options, optimizer = presets.vae_options(config)
  lead = (options.batch_size, options.num_frames)
  num_points = config.data.num_uniform + config.data.num_sharp
  batch = {
    "surface": _clips((*lead, num_points, 7), jnp.float32, mesh),
    "samples": _clips((*lead, options.num_queries, 4), jnp.float32, mesh),
  }
  return _training_step(presets.vae(config), optimizer, mesh, batch)


def _training_step(task, optimizer, mesh, batch):
  task.check_mesh(mesh, optimizer.accumulation_steps)
  tx = optimizer_lib.make_optimizer(optimizer)
  shardings = loop.state_shardings(task, optimizer, mesh)
  step, _ = step_lib.make_step(task.loss, optimizer, shardings)
  state = _placed(loop.abstract_state(task, tx), shardings)
  return step, (state, batch, _key(mesh))


def _dit_batch(config, mesh):
  lead = (config.dit_training.batch_size, config.data.num_frames)
  vae = config.model.vae
  latents = (*lead, vae.num_latents, vae.latent_channels)
  side = config.data.image_size
  batch = {
    "mean": _clips(latents, jnp.float16, mesh),
    "log_variance": _clips(latents, jnp.float16, mesh),
    "images": _clips((*lead, side, side, 3), jnp.uint8, mesh),
  }
  if config.dit_training.context_field_weight:
    points = config.dit_training.context_field_points
    batch["samples"] = _clips((*lead, points, 4), jnp.float32, mesh)
  return batch


def sampler(
  config: ml_collections.ConfigDict, mesh: Mesh
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
  """The jitted sampler of `num_sampled_clips`, and the shapes it takes.

  Call and lower it inside `partitioning.use_mesh(mesh)`.
  """
  sampling = model_lib.SamplingConfig(**config.sampling)
  parts = model_lib.parts(config.model)
  graphdefs, params = {}, {}
  for name in ("image_encoder", "dit"):
    kind, part = parts[name]
    module = nnx.eval_shape(lambda: kind(part, rngs=nnx.Rngs(0)))
    graphdefs[name], shapes = nnx.split(module)
    # Weights that are only read take no more precision than is computed in.
    shapes = jax.tree.map(
      lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(part.dtype)), shapes
    )
    params[name] = _placed(shapes, partitioning.shardings(shapes, mesh))
  lead = (num_sampled_clips(config, mesh), sampling.num_frames)
  vae, side = config.model.vae, config.model.image_encoder.image_size

  def sample(params, images, noise):
    modules = {n: nnx.merge(graphdefs[n], params[n]) for n in graphdefs}
    context = modules["image_encoder"](images.astype(jnp.float32) / 127.5 - 1.0)
    return denoising.denoise_clips(modules["dit"], context, noise, sampling)

  noise = (*lead, vae.num_latents, vae.latent_channels)
  args = (
    params,
    _clips((*lead, side, side, 3), jnp.uint8, mesh),
    _clips(noise, jnp.float32, mesh),
  )
  return jax.jit(sample, donate_argnums=2), args


def num_sampled_clips(config: ml_collections.ConfigDict, mesh: Mesh) -> int:
  """Clips that keep the mesh busy.

  Guided sampling evaluates a clip with and without its context, which are two
  rows of a batch: there are half as many clips as rows.
  """
  rows = math.prod(mesh.shape[name] for name in partitioning.BATCH_AXES)
  sampling = config.sampling
  two_rows = sampling.guidance_scale != 1.0 and not sampling.guidance_in_turns
  return max(rows // 2, 1) if two_rows else rows


def _clips(shape, dtype, mesh):
  sharding = partitioning.batch_sharding(shape, mesh)
  return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)


def _key(mesh):
  key = jax.eval_shape(lambda: jax.random.key(0))
  whole = partitioning.NamedSharding(mesh, partitioning.Spec())
  return jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=whole)


def _placed(shapes, shardings):
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    shapes,
    shardings,
  )
