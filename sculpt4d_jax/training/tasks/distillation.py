"""Distils a few-step student: guidance distillation, then shortcuts.

A student starts as a copy of its teacher, with a step embedding that adds
nothing. On most clips of a batch it learns the teacher's guided velocity, so
that one call replaces two. On the others, once this works, it learns to take
long steps: one step must reach the point that two half steps of the student's
moving average reach (`diffusion/shortcuts.py`). The student is then sampled
with guidance 1 and a few Euler steps.

Besides the training step only forward passes are needed: no second network is
trained, and no trajectory is stored. If adapters are trained, the teacher is
the student without them.

Sources: Meng et al., On Distillation of Guided Diffusion Models, 2023; Frans et
al., One Step Diffusion via Shortcut Models, 2024.
"""

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
from sculpt4d_jax.diffusion import guidance
from sculpt4d_jax.diffusion import losses
from sculpt4d_jax.diffusion import paths
from sculpt4d_jax.diffusion import shortcuts
from sculpt4d_jax.diffusion import time_sampling
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import lora as lora_lib
from sculpt4d_jax.training import step as step_lib
from sculpt4d_jax.training.ahead_of_time import step_flops

Array = array_types.Array

_TIMES = (0.125, 0.375, 0.625, 0.875)  # Times of the evaluation.
_STEP_EMBEDDING = "step_embedding"


@dataclasses.dataclass(frozen=True)
class DistillationConfig:
  """Configuration of a student's training.

  Attributes:
    batch_size: Number of clips in a step.
    guidance_scale: Guidance of the teacher that the student learns.
    shortcut_share: Fraction of the clips on which long steps are learned; 0
      distils the guidance alone.
    shortcut_start: Fraction of the training steps before these clips count.
    time_sampling: One of `time_sampling.NAMES`, for the other clips.
    min_temperature: Noise of a clip is scaled by a factor drawn uniformly from
      [this, 1], for sampling with less noise (`sampling.temperature`).
    lora: Adapters that are trained instead of the student's own parameters.
    num_steps: Number of training steps.
    seed: Seed of parameters, batches and noise.
    eval_clips: Number of held-out clips that are evaluated; 0 evaluates
      nothing.
  """

  batch_size: int
  guidance_scale: float
  shortcut_share: float
  shortcut_start: float
  num_steps: int
  time_sampling: str = "uniform"
  min_temperature: float = 1.0
  lora: lora_lib.LoRAConfig = lora_lib.LoRAConfig()
  seed: int = 0
  eval_clips: int = 32
  # Batches read this field: none of the losses needs samples of the field.
  num_points: int = 0

  def __post_init__(self):
    for name in ("shortcut_share", "shortcut_start"):
      if not 0 <= getattr(self, name) < 1:
        raise UserError(
          f"distillation.{name}={getattr(self, name)} must lie in [0, 1)."
        )
    if not 0 <= self.min_temperature <= 1:
      raise UserError(
        f"distillation.min_temperature={self.min_temperature} must lie in"
        " [0, 1]."
      )
    if self.lora.also_train:
      raise UserError(
        "distillation.lora.also_train must be empty: the teacher is the student"
        " without its adapters, and may not change."
      )
    if self.shortcut_share and self.batch_size < 2:
      raise UserError(
        f"distillation.batch_size={self.batch_size} must be at least 2, or"
        " shortcut_share 0: a batch has clips of both kinds."
      )

  @property
  def num_shortcuts(self) -> int:
    """Number of clips of a batch on which long steps are learned."""
    if not self.shortcut_share:
      return 0
    share = round(self.shortcut_share * self.batch_size)
    return min(max(share, 1), self.batch_size - 1)


class Distilled(nnx.Module):
  """Student, image encoder, and a teacher unless the student contains it."""

  def __init__(
    self,
    dit_config: dit_lib.DiTConfig,
    encoder_config: image_encoder_lib.ImageEncoderConfig,
    *,
    has_teacher: bool,
    rngs: nnx.Rngs,
  ):
    self.image_encoder = image_encoder_lib.ImageEncoder(
      encoder_config, rngs=rngs
    )
    self.dit = dit_lib.DiT(dit_config, rngs=rngs)
    if has_teacher:
      self.teacher = dit_lib.DiT(_plain(dit_config), rngs=rngs)


def _plain(config: dit_lib.DiTConfig) -> dit_lib.DiTConfig:
  return dataclasses.replace(config, step_embedding=False)


class DistillationTask:
  """Loss, batches and evaluation of a student."""

  sees_progress = True

  def __init__(
    self,
    config: DistillationConfig,
    dit_config: dit_lib.DiTConfig,
    encoder_config: image_encoder_lib.ImageEncoderConfig,
    batches: batches_lib.Batches,
    scale: float,
    teacher: Mapping[str, nnx.State] | None = None,
  ):
    """Sets up.

    Args:
      config: Configuration of the student's training.
      dit_config: The student; it has a step embedding.
      encoder_config: The image encoder.
      batches: Clips with their latents.
      scale: Factor of the latents, so that their variance is 1.
      teacher: Parameters of "dit" and "image_encoder"; None for shapes alone.
    """
    if not dit_config.step_embedding:
      raise UserError(
        "Distillation trains a model with model.dit.step_embedding=True."
      )
    self.config = config
    self.dit_config = dit_config
    self.encoder_config = encoder_config
    self.batches = batches
    self.scale = scale
    self.warm_start = dict(teacher or {})
    if teacher and not config.lora.rank:
      self.warm_start["teacher"] = teacher["dit"]
    self.graphdef = nnx.split(nnx.eval_shape(self._create))[0]
    teacher_dit = nnx.eval_shape(
      lambda: dit_lib.DiT(_plain(dit_config), rngs=nnx.Rngs(0))
    )
    self._teacher_def = nnx.split(teacher_dit)[0]
    self._evaluate = jax.jit(self._evaluate_batch)

  def _create(self) -> Distilled:
    model = Distilled(
      self.dit_config,
      self.encoder_config,
      has_teacher=not self.config.lora.rank,
      rngs=nnx.Rngs(self.config.seed),
    )
    if self.config.lora.rank:
      rngs = nnx.Rngs(self.config.seed + 1)
      lora_lib.attach(model.dit, self.config.lora, rngs=rngs)
    return model

  def is_trained(self, path: tuple[Any, ...], unused_parameter: Any) -> bool:
    """Whether a parameter is trained: of the student, or its adapters."""
    if path[0] != "dit":
      return False
    if not self.config.lora.rank or _STEP_EMBEDDING in path:
      return True
    return lora_lib.ADAPTER in path

  def init_params(self) -> nnx.State:
    """Fresh parameters; may be traced."""
    return nnx.split(self._create())[1]

  def exported(self, params: nnx.State) -> nnx.State:
    """Parameters with adapters folded in."""
    if not self.config.lora.rank:
      return params
    model = nnx.merge(self.graphdef, jax.tree.map(jnp.asarray, params))
    lora_lib.fold(model.dit)
    return nnx.split(model)[1]

  def trained(self, params: nnx.State) -> nnx.State:
    """The trained parameters."""
    return nnx.split_state(params, self.is_trained, ...)[0]

  def check_mesh(
    self, mesh: partitioning.Mesh, accumulation_steps: int
  ) -> None:
    """Raises ValueError if the mesh does not divide a step."""
    c = self.dit_config
    if accumulation_steps > 1:
      raise UserError(
        "distillation.optimizer.accumulation_steps must be 1: the clips of a"
        " batch are of two kinds."
      )
    for clips in (
      self.config.batch_size - self.config.num_shortcuts,
      self.config.num_shortcuts or self.config.batch_size,
    ):
      partitioning.check_training(
        mesh,
        batch_size=clips,
        num_frames=self.batches.num_frames,
        num_heads=c.num_heads,
        hidden_width=c.mlp_ratio * c.width,
        num_experts=c.num_experts if c.num_moe_blocks else 0,
      )

  def flops(self, batch: Mapping[str, Any]) -> int:
    """Model FLOPs of a step: training plus two forward passes."""
    clips, frames, tokens, _ = batch["mean"].shape
    step = step_flops.dit_step(
      self.dit_config,
      self.encoder_config,
      batch_size=clips,
      num_frames=frames,
      num_tokens=tokens,
      has_pictures="images" in batch,
      encoder_learns=False,
      is_adapted=bool(self.config.lora.rank),
    )
    passes = 2 if self.config.lora.rank else 3
    return step * (passes + 2) // passes

  def batch(
    self, step: int, rows: np.ndarray | None = None
  ) -> dict[str, np.ndarray]:
    """The batch of a step, or some rows of it."""
    return self.batches.batch(step, rows)

  def describe_batch(self, step: int) -> str:
    """Describes the clips of a step."""
    return self.batches.describe(step)

  def loss(
    self,
    params: Any,
    batch: dict[str, Array],
    key: Array,
    progress: step_lib.Progress,
  ) -> tuple[Array, dict[str, Array]]:
    """Distance to the teacher's guided velocity and to two half steps."""
    latent_key, noise_key, time_key, step_key = jax.random.split(key, 4)
    num_clips = self.config.batch_size
    num_guided = num_clips - self.config.num_shortcuts
    latents = self._sample_latents(batch, latent_key)
    # A derived key, so that the other draws are those of a run without.
    noise = paths.cool(
      jax.random.fold_in(noise_key, 1),
      jax.random.normal(noise_key, latents.shape),
      self.config.min_temperature,
    )
    time = time_sampling.get(self.config.time_sampling)(time_key, num_clips)
    drawn = shortcuts.draw(step_key, num_clips)
    is_guided = jnp.arange(num_clips) < num_guided
    time = jnp.where(is_guided, time, drawn.time)
    step = jnp.where(is_guided, 0.0, drawn.step)
    x = paths.interpolate(noise, latents, time)
    context = self._context(params, batch)
    some = lambda *arrays: [a[:num_guided] for a in arrays]
    targets = [self._guided(params, *some(x, time, context))]
    if num_guided < num_clips:
      rest = [a[num_guided:] for a in (x, time, step, context)]
      targets.append(self._two_steps(progress.average, *rest))
    output = self._student(params, x, time, step, context)
    errors = losses.squared_error_per_clip(
      output.velocity, jnp.concatenate(targets)
    )
    guided = errors[:num_guided].mean()
    balance = output.aux_losses.sum()
    loss = (num_guided / num_clips) * guided + balance
    metrics = {"guidance_loss": guided, "router_aux_loss": balance}
    if num_guided < num_clips:
      shortcut = errors[num_guided:].mean()
      start = self.config.shortcut_start * self.config.num_steps
      is_on = (progress.step >= start).astype(jnp.float32)
      loss += is_on * (1 - num_guided / num_clips) * shortcut
      metrics["shortcut_loss"] = shortcut
    return loss, metrics

  def _sample_latents(self, batch: dict[str, Array], key: Array) -> Array:
    """Latents [B, F, N, C] of unit variance, with ONE noise for a clip."""
    mean = batch["mean"].astype(jnp.float32)
    std = jnp.exp(0.5 * batch["log_variance"].astype(jnp.float32))
    noise = jax.random.normal(key, mean[:, :1].shape)
    return self.scale * (mean + std * noise)

  def _context(self, params: nnx.State, batch: dict[str, Array]) -> Array:
    """Context tokens [B, F, I, W], encoded from pictures unless given."""
    if "context" in batch:
      context = batch["context"].astype(self.encoder_config.dtype)
    else:
      images = batch["images"].astype(jnp.float32) / 127.5 - 1.0
      context = nnx.merge(self.graphdef, params).image_encoder(images)
    return jax.lax.stop_gradient(
      partitioning.constrain(context, "batch", "frames")
    )

  def _student(
    self, params: nnx.State, x: Array, time: Array, step: Array, context: Array
  ) -> dit_lib.DiTOutput:
    model = nnx.merge(self.graphdef, params)
    return model.dit(x, time, context, step=step)

  def _guided(
    self, params: nnx.State, x: Array, time: Array, context: Array
  ) -> Array:
    """The teacher's guided velocity."""
    # Without trained parameters: adapters and the step embedding.
    weights = params["dit"] if self.config.lora.rank else params["teacher"]
    own = {
      path: value
      for path, value in nnx.to_flat_state(weights)
      if lora_lib.ADAPTER not in path and _STEP_EMBEDDING not in path
    }
    teacher = nnx.merge(self._teacher_def, nnx.from_flat_state(own))
    pair = guidance.pair_in_one_batch(
      lambda x, time: (
        teacher(
          x, time, jnp.concatenate((context, jnp.zeros_like(context)))
        ).velocity
      )
    )
    velocity = guidance.guided(pair, self.config.guidance_scale)(x, time)
    return jax.lax.stop_gradient(velocity)

  def _two_steps(
    self, average: nnx.State, x: Array, time: Array, step: Array, context: Array
  ) -> Array:
    """Target velocity: that of two half steps of the averaged student."""
    velocity = lambda x, time, step: (
      self._student(average, x, time, step, context).velocity
    )
    return shortcuts.target(velocity, x, shortcuts.Steps(time, step))

  def _evaluate_batch(
    self, params: nnx.State, batch: dict[str, Array], key: Array
  ) -> Array:
    """Errors of one clip: against the teacher, and against half steps."""
    latent_key, noise_key = jax.random.split(key)
    latents = self._sample_latents(batch, latent_key)
    context = self._context(params, batch)

    def errors(
      times: Array,
      steps: Array,
      targets: Callable[[Array, Array, Array, Array], Array],
    ) -> Array:
      count = len(times)
      repeat = lambda a: jnp.repeat(a, count, 0)
      noise = jax.random.normal(noise_key, repeat(latents).shape)
      x = paths.interpolate(noise, repeat(latents), times)
      velocity = self._student(params, x, times, steps, repeat(context))
      target = targets(x, times, steps, repeat(context))
      return losses.squared_error_per_clip(velocity.velocity, target).mean()

    times = jnp.array(_TIMES)
    guided = errors(
      times,
      jnp.zeros(len(_TIMES)),
      lambda x, time, step, context: self._guided(params, x, time, context),
    )
    lengths = 2.0 ** -jnp.arange(shortcuts.MAX_HALVINGS + 1)
    shortcut = errors(
      jnp.zeros(len(lengths)),
      lengths,
      lambda *args: self._two_steps(params, *args),
    )
    return partitioning.constrain(jnp.stack([guided, shortcut]))

  def evaluate(self, params: Any) -> dict[str, float]:
    """Errors on held-out clips: against the teacher, and against half steps."""
    results = []
    for clip in range(min(self.config.eval_clips, self.batches.num_held_out)):
      batch = self.batches.held_out(clip)
      results.append(self._evaluate(params, batch, jax.random.key(clip)))
    if not results:
      return {}
    guided, shortcut = np.mean(results, 0)
    return {"guidance_loss": float(guided), "shortcut_loss": float(shortcut)}
