"""Training of the diffusion transformer on latents and pictures of clips."""

from collections.abc import Mapping
import dataclasses
import functools
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.data import batches as batches_lib
from sculpt4d_jax.diffusion import frame_times as frame_times_lib
from sculpt4d_jax.diffusion import losses
from sculpt4d_jax.diffusion import paths
from sculpt4d_jax.diffusion import time_sampling
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import lora as lora_lib
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import parameter_groups
from sculpt4d_jax.training.ahead_of_time import step_flops
from sculpt4d_jax.training.tasks import conditional_dit
from sculpt4d_jax.training.tasks import fields
from sculpt4d_jax.training.tasks import flow_errors

Array = array_types.Array

_WINDOWS = 1  # Tells this draw from others of the same seed and step.


@dataclasses.dataclass(frozen=True)
class DiTTaskConfig:
  """Configuration of the diffusion transformer's training.

  Attributes:
    batch_size: Number of clips in a step.
    num_frames: Number of consecutive frames of a clip in a step, whose start is
      drawn anew for each step and clip; 0 takes all frames.
    context_dropout: Fraction of clips whose context is zeroed.
    temporal_dropout: Fraction of clips whose frames are denoised independently,
      without temporal attention, so that the weights also serve single frames.
    time_sampling: One of `time_sampling.NAMES`.
    train_image_encoder: Whether the image encoder is trained too.
    context_field_weight: Weight of an auxiliary loss for an image encoder that
      is trained from scratch: a small decoder predicts the field at points from
      its tokens alone. It teaches the encoder spatial layout before the DiT's
      loss gives a useful signal. 0 for a pretrained encoder.
    context_field_points: Number of points a frame of that loss and the next.
    shape_weight: Weight of an auxiliary loss on shapes: the fixed autoencoder
      decodes the estimate of the clean latents, and its field is compared at
      points. The flow loss weighs all channels of latents equally, whatever
      they do to the surface.
    shape_frames: Largest number of frames of a clip that this loss decodes,
      evenly spaced; 0 takes all. Frames of a clip are alike.
    shape_quantile: Quantile of the field that this loss teaches, see
      `losses.pinball`. At 0.5 a place is filled if that is likelier than not.
      The best expected IoU fills places of lower probability: down to half of
      the IoU that can be reached, which 1 minus this should be.
    min_temperature: Noise of a clip is scaled by a factor drawn uniformly from
      [this, max_temperature], for sampling with less noise
      (`sampling.temperature`).
    max_temperature: See min_temperature.
    own_estimates: Fraction of clips whose state at a time holds, instead of the
      data, the model's own estimate of them from the noise, as the sampler's
      does. What is learned there is to mend an estimate: with little noise a
      state made of the data would give them away.
    field_band: Distance at which the field saturates: it is the signed distance
      over this, clipped to +-1.
    frame_times: Separate times of frames, for a model that accepts known
      frames.
    lora: Adapters that are trained instead of the DiT's own parameters.
    seed: Seed of parameters, batches and noise.
    eval_clips: Number of held-out clips that are evaluated; 0 evaluates
      nothing.
  """

  batch_size: int
  context_dropout: float
  time_sampling: str
  train_image_encoder: bool
  num_frames: int = 0
  temporal_dropout: float = 0.0
  context_field_weight: float = 0.0
  context_field_points: int = 64
  shape_weight: float = 0.0
  shape_frames: int = 0
  shape_quantile: float = 0.5
  min_temperature: float = 1.0
  max_temperature: float = 1.0
  own_estimates: float = 0.0
  field_band: float = 0.3
  frame_times: frame_times_lib.FrameTimesConfig = (
    frame_times_lib.FrameTimesConfig()
  )
  lora: lora_lib.LoRAConfig = lora_lib.LoRAConfig()
  seed: int = 0
  eval_clips: int = 32

  def __post_init__(self):
    for name in ("context_dropout", "temporal_dropout"):
      if not 0 <= getattr(self, name) < 1:
        raise UserError(f"{name}={getattr(self, name)} must lie in [0, 1).")
    if not 0 <= self.own_estimates <= 1:
      raise UserError(f"own_estimates={self.own_estimates} must lie in [0, 1].")
    if self.own_estimates and self.frame_times.is_on:
      raise UserError(
        "own_estimates needs one time for a clip: turn frame_times off."
      )
    if self.shape_frames < 0:
      raise UserError(
        f"shape_frames={self.shape_frames} must lie above 0, or be 0 for all."
      )
    if not 0 < self.shape_quantile < 1:
      raise UserError(
        f"shape_quantile={self.shape_quantile} must lie between 0 and 1."
      )
    if not 0 <= self.min_temperature <= self.max_temperature <= 1:
      raise UserError(
        f"min_temperature={self.min_temperature} and"
        f" max_temperature={self.max_temperature} must lie in [0, 1], in this"
        " order."
      )
    if self.lora.rank and (
      self.train_image_encoder or self.context_field_weight
    ):
      raise UserError(
        "LoRA trains adapters of the DiT alone: set"
        " dit_training.train_image_encoder=False and"
        " dit_training.context_field_weight=0, which are"
        f" {self.train_image_encoder} and {self.context_field_weight}."
      )

  @property
  def num_points(self) -> int:
    """Number of field samples of a frame that the losses need."""
    if self.context_field_weight or self.shape_weight:
      return self.context_field_points
    return 0

  def frames_of(self, clip_frames: int) -> int:
    """Number of frames in a step of a clip that has `clip_frames`."""
    return self.num_frames or clip_frames


def _latent_noise(key: Array, shape: tuple[int, ...]) -> Array:
  """ONE noise for all frames of a clip, [B, 1, N, C]."""
  clips, _, *token = shape
  return jax.random.normal(key, (clips, 1, *token))


class DiTTask:
  """Loss, batches and evaluation of the diffusion transformer."""

  def __init__(
    self,
    config: DiTTaskConfig,
    dit_config: dit_lib.DiTConfig,
    encoder_config: image_encoder_lib.ImageEncoderConfig,
    batches: batches_lib.Batches,
    scale: float,
    init_from: Mapping[str, nnx.State] | None = None,
    vae_config: shape_vae.ShapeVAEConfig | None = None,
  ):
    """Sets up.

    Args:
      config: Configuration of the training.
      dit_config: The transformer.
      encoder_config: The image encoder.
      batches: Clips with their latents.
      scale: Factor of the latents, so that their variance is 1.
      init_from: Parameters to start from, by network. With `shape_weight`
        those of "vae" are needed, which are not trained.
      vae_config: The autoencoder; needed with `shape_weight`.
    """
    self.config = config
    self.vae_config = vae_config if config.shape_weight else None
    self.dit_config = dit_config
    self.encoder_config = encoder_config
    self.batches = batches
    if not 0 <= config.num_frames <= batches.num_frames:
      raise UserError(
        f"dit_training.num_frames={config.num_frames} must lie between 0, which"
        f" takes all frames, and the {batches.num_frames} frames of a clip."
      )
    self.num_frames = config.frames_of(batches.num_frames)
    self.scale = scale  # Makes the variance of latents 1.
    self.warm_start = init_from or {}
    self.graphdef = nnx.split(nnx.eval_shape(self._create))[0]
    has_fixed = config.lora.rank or config.shape_weight
    self.is_trained = self._is_trained if has_fixed else None
    self._evaluate = jax.jit(self._evaluate_batch)

  def _create(self) -> conditional_dit.ConditionalDiT:
    model = conditional_dit.ConditionalDiT(
      self.dit_config,
      self.encoder_config,
      use_field_head=self.config.context_field_weight > 0,
      vae_config=self.vae_config,
      rngs=nnx.Rngs(self.config.seed),
    )
    if self.config.lora.rank:
      rngs = nnx.Rngs(self.config.seed + 1)
      lora_lib.attach(model.dit, self.config.lora, rngs=rngs)
    return model

  def _is_trained(self, path: tuple[Any, ...], unused_parameter: Any) -> bool:
    if path[0] == "vae":
      return False
    if not self.config.lora.rank:
      return True
    if lora_lib.ADAPTER in path:
      return True
    group = parameter_groups.group_named("/".join(map(str, path)))
    return group in self.config.lora.also_train

  def exported(self, params: nnx.State) -> nnx.State:
    """Parameters of the networks with adapters folded in."""
    if not self.config.lora.rank:
      return params
    model = nnx.merge(self.graphdef, jax.tree.map(jnp.asarray, params))
    lora_lib.fold(model.dit)
    return nnx.split(model)[1]

  def trained(self, params: nnx.State) -> nnx.State:
    """The trained parameters."""
    if self.is_trained is None:
      return params
    return nnx.split_state(params, self.is_trained, ...)[0]

  def init_params(self) -> nnx.State:
    """Fresh parameters; may be traced."""
    return nnx.split(self._create())[1]

  def check_mesh(
    self, mesh: partitioning.Mesh, accumulation_steps: int
  ) -> None:
    """Raises ValueError if the mesh does not divide a step."""
    c = self.dit_config
    partitioning.check_training(
      mesh,
      batch_size=self.config.batch_size,
      num_frames=self.num_frames,
      num_heads=c.num_heads,
      hidden_width=c.mlp_ratio * c.width,
      num_experts=c.num_experts if c.num_moe_blocks else 0,
      accumulation_steps=accumulation_steps,
    )

  def flops(self, batch: Mapping[str, Any]) -> int:
    """Model FLOPs of a step on a batch; see `step_flops`."""
    clips, frames, tokens, _ = batch["mean"].shape
    shapes = 0
    if self.vae_config:
      shapes = step_flops.shape_loss(
        self.vae_config,
        num_shapes=clips * frames,
        num_queries=self.config.num_points,
      )
    return shapes + step_flops.dit_step(
      self.dit_config,
      self.encoder_config,
      batch_size=clips,
      num_frames=frames,
      num_tokens=tokens,
      has_pictures="images" in batch,
      encoder_learns=self.config.train_image_encoder,
      is_adapted=bool(self.config.lora.rank),
    )

  def batch(
    self, step: int, rows: np.ndarray | None = None
  ) -> dict[str, np.ndarray]:
    """The batch of a step, or some rows of it."""
    batch = self.batches.batch(step, rows)
    spare = self.batches.num_frames - self.num_frames
    if not spare:
      return batch
    # Drawn for the whole batch, so that any share of its rows is the same.
    rng = np.random.default_rng((self.config.seed, step, _WINDOWS))
    starts = rng.integers(spare + 1, size=self.config.batch_size)
    if rows is not None:
      starts = starts[rows]
    return {name: self._windows(x, starts) for name, x in batch.items()}

  def _windows(self, array: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Frames from `starts` [B] on, of an array [B, F, ...]."""
    return np.stack(
      [x[i : i + self.num_frames] for x, i in zip(array, starts, strict=True)]
    )

  def describe_batch(self, step: int) -> str:
    """Describes the clips of a step."""
    return self.batches.describe(step)

  def draw(self, batch: dict[str, Array], key: Array) -> dict[str, Array]:
    """Random numbers of a step's loss.

    Args:
      batch: Clips; only the shape of their latents matters.
      key: Randomness.

    Returns:
      `latent_noise` [B, 1, N, C]; `noise` [B, F, N, C]; `time` [B], or [B, F]
      if frames have separate times; `weight` in the loss, 0 or 1, like `time`;
      `keep` [B, 1, 1, 1], false where the context is dropped; with temporal
      dropout `temporal_weight` [B], 0 where temporal attention is dropped; and
      with own estimates `mends` [B], true where the state holds one.
    """
    c = self.config
    sample_key, noise_key, time_key, drop_key = jax.random.split(key, 4)
    shape = batch["mean"].shape
    sampler = time_sampling.get(c.time_sampling)
    time = sampler(time_key, shape[0])
    noise = jax.random.normal(noise_key, shape)
    # A derived key, so that the other draws are those of a run without.
    noise = paths.cool(
      jax.random.fold_in(noise_key, 1),
      noise,
      c.min_temperature,
      c.max_temperature,
    )
    weight = jnp.ones_like(time)
    if c.frame_times.is_on:
      time, is_learned = frame_times_lib.draw(
        jax.random.fold_in(time_key, 1), time, shape[1], c.frame_times, sampler
      )
      weight = is_learned.astype(jnp.float32)
    draws = {
      "latent_noise": _latent_noise(sample_key, shape),
      "noise": noise,
      "time": time,
      "weight": weight,
      "keep": jax.random.bernoulli(
        drop_key, 1.0 - c.context_dropout, (shape[0], 1, 1, 1)
      ),
    }
    if c.temporal_dropout:
      kept = jax.random.bernoulli(
        jax.random.fold_in(drop_key, 1), 1.0 - c.temporal_dropout, shape[:1]
      )
      draws["temporal_weight"] = kept.astype(jnp.float32)
    if c.own_estimates:
      draws["mends"] = jax.random.bernoulli(
        jax.random.fold_in(drop_key, 2), c.own_estimates, shape[:1]
      )
    return draws

  def loss(
    self, params: Any, batch: dict[str, Array], draws: dict[str, Array]
  ) -> tuple[Array, dict[str, Array]]:
    """Flow matching loss and the routers' balancing loss."""
    time, weight = draws["time"], draws["weight"]
    model = nnx.merge(self.graphdef, params)
    context = self._context(model, batch)
    # Zeros as context are what guidance calls the unconditional branch with.
    latents = self._latents(batch, draws["latent_noise"])
    call = functools.partial(
      model.dit,
      context=context * draws["keep"],
      temporal_weight=draws.get("temporal_weight"),
    )
    noise, shown = draws["noise"], latents
    if "mends" in draws:
      first = jax.lax.stop_gradient(call(noise, jnp.zeros_like(time)).velocity)
      mends = draws["mends"][:, None, None, None]
      shown = jnp.where(mends, noise + first, latents)
    x = paths.interpolate(noise, shown, time)
    output = call(x, time)
    velocity = paths.velocity(noise, latents)
    errors = flow_errors.squared_errors(output.velocity, velocity, time)
    if "mends" in draws:
      # Of the data, as a velocity to them grows beyond bounds near time 1.
      estimate = paths.data_at(x, output.velocity, time)
      errors = jnp.where(
        draws["mends"],
        flow_errors.squared_errors(estimate, latents, time),
        errors,
      )
    matching = errors.mean()
    if time.ndim == 2:  # Known frames have weight 0.
      matching = ((errors * weight).sum(1) / weight.sum(1)).mean()
    balance = output.aux_losses.sum()
    # The balancing loss already has its weight (`router_aux_loss_weight`).
    loss = matching + balance
    metrics = {
      "flow_loss": matching,
      "router_aux_loss": balance,
      "router_max_load": output.router_load.max(initial=0.0),
      "router_min_load": output.router_load.min(initial=1.0),
    } | flow_errors.by_time(errors.ravel(), time.ravel(), weight.ravel())
    if len(output.router_load):
      mean_load = output.router_load.mean(0)
      metrics |= {f"router_load/{e}": x for e, x in enumerate(mean_load)}
    if model.field_head is not None:
      metrics["context_field_error"] = self._context_field_error(
        model, context, batch["samples"]
      )
      loss += self.config.context_field_weight * metrics["context_field_error"]
    if model.vae is not None:
      estimate = paths.data_at(x, output.velocity, time)
      metrics["shape_error"] = self._shape_error(
        model.vae, estimate, batch["samples"], draws["keep"]
      )
      loss += self.config.shape_weight * metrics["shape_error"]
    return loss, metrics

  def _context(
    self, model: conditional_dit.ConditionalDiT, batch: dict[str, Array]
  ) -> Array:
    """Context tokens [B, F, I, D], encoded from pictures unless given."""
    if "context" in batch:
      context = batch["context"].astype(self.encoder_config.dtype)
      return partitioning.constrain(context, "batch", "frames")
    images = batch["images"].astype(jnp.float32) / 127.5 - 1.0
    context = model.image_encoder(images)
    context = partitioning.constrain(context, "batch", "frames")
    # No gradient, so that the backward pass of the encoder is not computed.
    if not self.config.train_image_encoder:
      context = jax.lax.stop_gradient(context)
    return context

  def _context_field_error(
    self, model: conditional_dit.ConditionalDiT, context: Array, samples: Array
  ) -> Array:
    """Absolute error of the field predicted from the context alone."""
    head = model.field_head
    field = head(head.encode_tokens(context), samples[..., :3])
    return jnp.abs(field - self._field(samples)).mean()

  def _field(self, samples: Array) -> Array:
    """The true field at samples."""
    return fields.true_field(samples, self.config.field_band)

  def _shape_error(
    self,
    vae: shape_vae.ShapeVAE,
    latents: Array,
    samples: Array,
    keep: Array,
  ) -> Array:
    """Pinball loss of the field of estimated latents, of clips with pictures."""
    if self.config.shape_frames:
      step = -(-latents.shape[1] // self.config.shape_frames)
      latents, samples = latents[:, ::step], samples[:, ::step]
    # Without its picture a clip may have any shape, the mean of which is none.
    field = vae.query_field(vae.decode(latents / self.scale), samples[..., :3])
    error = losses.pinball(
      field, self._field(samples), self.config.shape_quantile
    )
    weight = keep.astype(jnp.float32).ravel()
    return error.mean((1, 2)) @ weight / jnp.maximum(weight.sum(), 1.0)

  def _latents(self, batch: dict[str, Array], noise: Array) -> Array:
    """Latents [B, F, N, C] of unit variance; `noise` [B, 1, N, C] is normal."""
    mean = batch["mean"].astype(jnp.float32)
    std = jnp.exp(0.5 * batch["log_variance"].astype(jnp.float32))
    return self.scale * (mean + std * noise)

  def _evaluate_batch(
    self, params: nnx.State, batch: dict[str, Array], key: Array
  ) -> Array:
    """Errors of one clip at fixed times."""
    sample_key, noise_key = jax.random.split(key)
    shape = batch["mean"].shape
    latents = self._latents(batch, _latent_noise(sample_key, shape))
    # Fixed times and a fixed key: the same error for the same parameters, so
    # that curves of runs can be compared.
    times = (
      jnp.arange(flow_errors.TIME_BUCKETS) + 0.5
    ) / flow_errors.TIME_BUCKETS
    repeat = lambda x: jnp.repeat(x, flow_errors.TIME_BUCKETS, 0)
    model = nnx.merge(self.graphdef, params)
    context = self._context(model, batch)
    noise = jax.random.normal(noise_key, (len(times), *shape[1:]))
    latents = repeat(latents)
    output = model.dit(
      paths.interpolate(noise, latents, times), times, repeat(context)
    )
    errors = flow_errors.squared_errors(
      output.velocity, paths.velocity(noise, latents), times
    )
    return partitioning.constrain(errors)

  def evaluate(self, params: Any) -> dict[str, float]:
    """Flow loss on held-out clips at the centres of equal time buckets."""
    results = []
    for clip in range(min(self.config.eval_clips, self.batches.num_held_out)):
      batch = self.batches.held_out(clip)
      results.append(self._evaluate(params, batch, jax.random.key(clip)))
    if not results:
      return {}
    errors = np.mean(results, 0)
    named = {flow_errors.bucket_name(i): float(e) for i, e in enumerate(errors)}
    return named | {"flow_loss": float(errors.mean())}
