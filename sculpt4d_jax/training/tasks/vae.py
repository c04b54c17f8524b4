"""Training of the shape autoencoder on surfaces and signed distances."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.data import batches as batches_lib
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.geometry import farthest_points
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training.ahead_of_time import step_flops
from sculpt4d_jax.training.tasks import fields

Array = array_types.Array


@dataclasses.dataclass(frozen=True)
class VAETaskConfig:
  """Configuration of the autoencoder's training.

  Attributes:
    batch_size: Number of clips in a step.
    num_frames: Number of frames of each clip.
    num_queries: Number of distance samples of each frame.
    field_band: Distance at which the field saturates: it is the signed distance
      over this, clipped to +-1.
    kl_weight: Weight of the divergence from the standard normal.
    initial_log_variance: Log-variance of the posterior before training. Latents
      that start as mostly noise keep the decoder from learning to read them.
    decoder_only: Whether the encoder is kept, so that latents that were
      computed with it, and models of them, stay valid.
    latent_noise: Largest standard deviation of noise added to the latents,
      relative to their root mean square in the clip; drawn uniformly for each
      frame. Sampled latents have errors, which a decoder that saw exact ones
      alone magnifies.
    seed: Seed of parameters, batches and noise.
    eval_clips: Number of held-out clips that are evaluated; 0 evaluates
      nothing.
  """

  batch_size: int
  num_frames: int
  num_queries: int
  field_band: float
  kl_weight: float
  initial_log_variance: float = -4.0
  decoder_only: bool = False
  latent_noise: float = 0.0
  seed: int = 0
  eval_clips: int = 32

  def __post_init__(self) -> None:
    if not 0 <= self.latent_noise <= 4:
      raise UserError(
        f"latent_noise={self.latent_noise} must lie in [0, 4], in standard"
        " deviations of the latents."
      )


class VAETask:
  """Loss, batches and evaluation of the autoencoder.

  Attributes:
    config: Configuration of the training.
    is_trained: Chooses the parameters that learn; None: all.
  """

  def __init__(
    self,
    config: VAETaskConfig,
    model_config: shape_vae.ShapeVAEConfig,
    num_uniform: int,
    batches: batches_lib.Batches,
    init_from: Mapping[str, nnx.State] | None = None,
  ):
    self.config = config
    self.model_config = model_config
    self.num_uniform = num_uniform
    self.batches = batches
    self.warm_start = init_from or {}
    self.is_trained: Callable[[tuple[Any, ...], Any], bool] | None = (
      _is_of_decoder if config.decoder_only else None
    )
    abstract = nnx.eval_shape(self._create)
    self.graphdef = nnx.split(abstract)[0]
    self._evaluate = jax.jit(self._evaluate_batch)

  def _create(self) -> shape_vae.ShapeVAE:
    rngs = nnx.Rngs(self.config.seed)
    return shape_vae.ShapeVAE(self.model_config, rngs=rngs)

  def init_params(self) -> nnx.State:
    """Fresh parameters; may be traced."""

    def init():
      vae = self._create()
      bias = vae.moments_proj.bias
      channels = self.model_config.latent_channels
      bias[...] = bias[...].at[channels:].set(self.config.initial_log_variance)
      return nnx.split(vae)[1]

    return init()

  def check_mesh(
    self, mesh: partitioning.Mesh, accumulation_steps: int
  ) -> None:
    """Raises ValueError if the mesh does not divide a step."""
    partitioning.check_training(
      mesh,
      batch_size=self.config.batch_size,
      num_frames=self.config.num_frames,
      accumulation_steps=accumulation_steps,
    )

  def exported(self, params: nnx.State) -> nnx.State:
    """The parameters, which are exported unchanged."""
    return params

  def flops(self, batch: Mapping[str, Any]) -> int:
    """Model FLOPs of a step on a batch; see `step_flops`."""
    clips, frames, queries, _ = batch["samples"].shape
    return step_flops.vae_step(
      self.model_config,
      batch_size=clips,
      num_frames=frames,
      num_queries=queries,
    )

  def batch(
    self, step: int, rows: np.ndarray | None = None
  ) -> dict[str, np.ndarray]:
    """The batch of a step, or some rows of it."""
    return self.batches.batch(step, rows)

  def describe_batch(self, step: int) -> str:
    """Describes the clips of a step."""
    return self.batches.describe(step)

  def draw(self, batch: dict[str, Array], key: Array) -> dict[str, Array]:
    """Random numbers of a step's loss.

    Returns:
      `rows` [B], keys of the rows of the surface; `noise` [B, 1, N, C], of the
      posterior; with `latent_noise` also `errors` [B, F, N, C], the noise that
      is added, relative to the latents' root mean square.
    """
    rows_key, noise_key = jax.random.split(key)
    num_clips = len(batch["surface"])
    noise = shape_vae.sequence_noise(
      noise_key,
      num_clips,
      self.model_config.num_latents,
      self.model_config.latent_channels,
    )
    draws = {"rows": jax.random.split(rows_key, num_clips), "noise": noise}
    if self.config.latent_noise:
      # A derived key, so that the other draws are those of a run without.
      errors_key, size_key = jax.random.split(jax.random.fold_in(key, 1))
      frames = batch["surface"].shape[:2]
      size = jax.random.uniform(size_key, (*frames, 1, 1))
      errors = jax.random.normal(errors_key, (*frames, *noise.shape[2:]))
      draws["errors"] = self.config.latent_noise * size * errors
    return draws

  def loss(
    self, params: Any, batch: dict[str, Array], draws: dict[str, Array]
  ) -> tuple[Array, dict[str, Array]]:
    """Absolute error of the field, and the divergence."""
    vae = nnx.merge(self.graphdef, params)
    posterior = self._encode(vae, batch["surface"], draws["rows"])
    latents = posterior.sample(draws["noise"])
    if "errors" in draws:
      size = jnp.sqrt(jnp.mean(latents**2, axis=(1, 2, 3), keepdims=True))
      latents += jax.lax.stop_gradient(size) * draws["errors"]
    field, target = self._field(vae, latents, batch["samples"])
    error = jnp.abs(field - target).mean()
    divergence = posterior.kl().mean()
    loss = error + self.config.kl_weight * divergence
    metrics = {
      "field_error": error,
      "kl": divergence,
      "sample_iou": _iou(field, target),
    }
    return loss, metrics

  def _encode(
    self, vae: shape_vae.ShapeVAE, surface: Array, keys: Array
  ) -> shape_vae.Posterior:
    inputs, queries = _clip_rows(
      keys, surface, self.model_config, self.num_uniform
    )
    return vae.encode(inputs, queries)

  def _field(
    self, vae: shape_vae.ShapeVAE, latents: Array, samples: Array
  ) -> tuple[Array, Array]:
    """Predicted and true field at samples [B, F, Q]."""
    field = vae.query_field(vae.decode(latents), samples[..., :3])
    return field, fields.true_field(samples, self.config.field_band)

  def _evaluate_batch(
    self, params: nnx.State, batch: dict[str, Array], key: Array
  ) -> dict[str, Array]:
    vae = nnx.merge(self.graphdef, params)
    keys = jax.random.split(key, len(batch["surface"]))
    posterior = self._encode(vae, batch["surface"], keys)
    field, target = self._field(vae, posterior.mode(), batch["samples"])
    metrics = {
      "field_error": jnp.abs(field - target).mean(),
      "sample_iou": _iou(field, target),
      "kl": posterior.kl().mean(),
      "latent_std": jnp.sqrt(jnp.mean(posterior.mean**2 + posterior.std**2)),
    }
    return jax.tree.map(partitioning.constrain, metrics)

  def evaluate(self, params: Any) -> dict[str, float]:
    """Metrics on held-out clips, all frames and samples of them."""
    results = []
    for clip in range(min(self.config.eval_clips, self.batches.num_held_out)):
      batch = self.batches.held_out(clip)
      # A fixed key, so that curves of runs can be compared.
      results.append(self._evaluate(params, batch, jax.random.key(clip)))
    if not results:
      return {}
    return jax.tree.map(lambda *x: float(np.mean(x)), *results)


def _is_of_decoder(path: tuple[Any, ...], unused_parameter: Any) -> bool:
  """Whether a parameter belongs to the decoder."""
  return path[0] not in ("encoder", "moments_proj")


def _iou(field: Array, target: Array) -> Array:
  """Intersection over union of the samples inside."""
  inside, truth = field > 0, target > 0
  return (inside & truth).sum() / jnp.maximum((inside | truth).sum(), 1)


def select_clip_rows(
  key: Array,
  surface: Array,
  config: shape_vae.ShapeVAEConfig,
  num_uniform: int,
) -> tuple[Array, Array]:
  """Selects input rows and query rows on frame 0.

  Args:
    key: Randomness of the choice.
    surface: [B, F, P, 7], uniform rows first.
    config: Configuration of the autoencoder.
    num_uniform: Number of uniform rows among the P.

  Returns:
    Inputs [B, F, R, 7] and queries [B, F, N, 7]: the same rows in all frames.
  """
  keys = jax.random.split(key, len(surface))
  return _clip_rows(keys, surface, config, num_uniform)


def _clip_rows(
  keys: Array,
  surface: Array,
  config: shape_vae.ShapeVAEConfig,
  num_uniform: int,
) -> tuple[Array, Array]:
  """The rows of `select_clip_rows`, with a key for each clip [B]."""

  def of_clip(key: Array, surface: Array) -> tuple[Array, Array]:
    inputs, queries = farthest_points.select_rows(
      key,
      surface[0],
      num_latents=config.num_latents,
      num_uniform=num_uniform,
      num_sharp=surface.shape[1] - num_uniform,
      downsample_ratio=config.downsample_ratio,
    )
    queries = surface[:, queries]
    if config.token_order == "spatial":
      # One order for all frames: a token follows its place on the surface.
      order = farthest_points.spatial_order(queries[..., :3].mean(0))
      queries = queries[:, order]
    return surface[:, inputs], queries

  return jax.vmap(of_clip)(keys, surface)
