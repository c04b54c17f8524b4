"""Latents of all clips of a store, encoded once before the DiT is trained.

Mean and log-variance are stored, so that every use draws a new sample, with ONE
noise for all frames of a clip.
"""

import dataclasses
import hashlib
import io

from absl import logging
from flax import nnx
import jax
import numpy as np
import tqdm

from sculpt4d_jax import array_types
from sculpt4d_jax.data.procedural import batches as store_batches
from sculpt4d_jax.data.procedural import drawing
from sculpt4d_jax.data.procedural import store as record_store
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training.tasks import vae as vae_task

Array = array_types.Array

# Surface rows of a clip by which another clip is noticed.
_COMPARED_ROWS = 8


def encode_store(
  path: paths.PathLike,
  store: record_store.RecordStore,
  vae: shape_vae.ShapeVAE,
  *,
  num_uniform: int,
  num_choices: int,
  seed: int = 0,
) -> store_batches.LatentStore:
  """Encodes a store, or reads what an earlier call wrote to `path`.

  A file of other clips, of another autoencoder or with other arguments is
  written anew.

  Args:
    path: An .npz file.
    store: Records.
    vae: The trained autoencoder.
    num_uniform: Number of uniform rows of a surface.
    num_choices: Number of draws of the query rows for each clip.
    seed: Seed of the draws.
  """
  path = paths.of(path)
  graphdef, params = nnx.split(vae)
  origin = _origin(store, vae.config, params, (num_uniform, num_choices, seed))
  if path.exists():
    with path.open("rb") as stream, np.load(stream) as file:
      if "origin" in file and str(file["origin"]) == origin:
        return store_batches.LatentStore(
          file["mean"], file["log_variance"], float(file["scale"])
        )
    logging.info(
      "%s has latents of other clips, or of another autoencoder: encoding anew.",
      path,
    )

  @jax.jit
  def encode(surface: Array, key: Array) -> shape_vae.Posterior:
    inputs, queries = vae_task.select_clip_rows(
      key, surface, vae.config, num_uniform
    )
    return nnx.merge(graphdef, params).encode(inputs, queries)

  both = np.array([False, True])
  means, log_variances = [], []
  for clip in tqdm.tqdm(range(store.num_clips), desc="latents"):
    surface = np.stack([store.surface[clip]] * 2).astype(np.float32)
    surface = drawing.mirror_rows(surface, both)
    surface = np.repeat(surface, num_choices, 0)
    key = jax.random.fold_in(jax.random.key(seed), clip)
    posterior = jax.tree.map(np.asarray, encode(surface, key))
    shape = (2, num_choices, *posterior.mean.shape[1:])
    means.append(posterior.mean.reshape(shape).astype(np.float16))
    log_variances.append(
      posterior.log_variance.reshape(shape).astype(np.float16)
    )
  mean, log_variance = np.stack(means), np.stack(log_variances)
  second_moment = np.mean(
    mean.astype(np.float32) ** 2 + np.exp(log_variance.astype(np.float32))
  )
  result = store_batches.LatentStore(
    mean, log_variance, float(second_moment**-0.5)
  )
  content = io.BytesIO()
  np.savez(content, **dataclasses.asdict(result), origin=origin)
  atomic.write_bytes(path, content.getvalue())
  return result


def _origin(
  store: record_store.RecordStore,
  config: shape_vae.ShapeVAEConfig,
  params: nnx.State,
  arguments: tuple[int, ...],
) -> str:
  """A hash of everything that latents depend on."""
  digest = hashlib.sha256(repr((config, arguments)).encode())
  for value in jax.tree.leaves(params):
    digest.update(np.asarray(value).tobytes())
  digest.update(np.asarray(store.surface[:, 0, :_COMPARED_ROWS]).tobytes())
  return digest.hexdigest()
