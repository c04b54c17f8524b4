"""Pretrains the image encoder to predict the field from single pictures.

An image encoder that is trained from scratch learns slowly from the DiT's loss,
most of which is noise. Here a decoder predicts the signed distance at points
from the encoder's tokens alone, frame by frame: position, size and pose. The
decoder is then dropped; the encoder starts the DiT's training.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax import array_types
from sculpt4d_jax import partitioning
from sculpt4d_jax.data import batches as batches_lib
from sculpt4d_jax.models import flops
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import layers
from sculpt4d_jax.models import vae_blocks
from sculpt4d_jax.training.tasks import fields

Array = array_types.Array

_NUM_FREQS = 6
_FORWARD_AND_BACKWARD = 3


@dataclasses.dataclass(frozen=True)
class PictureTaskConfig:
  """Configuration of the image encoder's pretraining.

  Attributes:
    batch_size: Number of clips in a step.
    num_frames: Number of frames of each clip.
    num_queries: Number of distance samples of each frame.
    field_band: Distance at which the field saturates: it is the signed distance
      over this, clipped to +-1.
    num_head_layers: Number of self-attention blocks of the decoder.
    seed: Seed of parameters and batches.
    eval_clips: Number of held-out clips that are evaluated; 0 evaluates
      nothing.
  """

  batch_size: int
  num_frames: int
  num_queries: int
  field_band: float = 0.3
  num_head_layers: int = 1
  seed: int = 0
  eval_clips: int = 32


class PictureReader(nnx.Module):
  """The image encoder, and the decoder of its pretraining."""

  def __init__(
    self,
    config: image_encoder_lib.ImageEncoderConfig,
    num_head_layers: int,
    *,
    rngs: nnx.Rngs,
  ):
    self.image_encoder = image_encoder_lib.ImageEncoder(config, rngs=rngs)
    width, heads = config.width, config.num_heads
    self.num_head_layers = num_head_layers
    if not num_head_layers:
      self.blocks = None
    else:
      self.blocks = layers.stack_layers(
        lambda r: vae_blocks.SelfBlock(width, heads, rngs=r),
        num_head_layers,
        rngs,
      )
    self.head = vae_blocks.FieldDecoder(
      width,
      heads,
      num_freqs=_NUM_FREQS,
      include_pi=False,
      mlp_ratio=4,
      use_norm_post=True,
      rngs=rngs,
    )

  def __call__(self, images: Array, points: Array) -> Array:
    """The field [*B, Q] at points [*B, Q, 3], of images [*B, S, S, 3]."""
    tokens = self.image_encoder(images)
    tokens = partitioning.constrain(tokens, "batch", "frames")
    if self.blocks is not None:
      tokens = vae_blocks.run_blocks(
        self.blocks, tokens, self.num_head_layers, None
      )
    return self.head(self.head.encode_tokens(tokens), points)


class PictureTask:
  """Loss, batches and evaluation of the pretraining."""

  is_trained = None  # Everything.

  def __init__(
    self,
    config: PictureTaskConfig,
    encoder_config: image_encoder_lib.ImageEncoderConfig,
    batches: batches_lib.Batches,
    init_from: Mapping[str, nnx.State] | None = None,
  ):
    self.config = config
    self.encoder_config = encoder_config
    self.batches = batches
    self.warm_start = init_from or {}
    self.graphdef = nnx.split(nnx.eval_shape(self._create))[0]
    self._evaluate = jax.jit(self._metrics)

  def _create(self) -> PictureReader:
    return PictureReader(
      self.encoder_config,
      self.config.num_head_layers,
      rngs=nnx.Rngs(self.config.seed),
    )

  def init_params(self) -> nnx.State:
    """Fresh parameters; may be traced."""
    return nnx.split(self._create())[1]

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
    """Model FLOPs of the encoder in a step, without the decoder's."""
    clips, frames = batch["images"].shape[:2]
    one = flops.image_encoder(self.encoder_config, clips * frames)
    return _FORWARD_AND_BACKWARD * sum(one.values())

  def batch(
    self, step: int, rows: np.ndarray | None = None
  ) -> dict[str, np.ndarray]:
    """The batch of a step, or some rows of it."""
    return self.batches.batch(step, rows)

  def describe_batch(self, step: int) -> str:
    """Describes the clips of a step."""
    return self.batches.describe(step)

  def draw(self, batch: dict[str, Array], key: Array) -> dict[str, Array]:
    """The loss has no randomness."""
    del batch, key
    return {}

  def loss(
    self, params: Any, batch: dict[str, Array], draws: dict[str, Array]
  ) -> tuple[Array, dict[str, Array]]:
    """Absolute error of the field that is predicted from pictures."""
    del draws
    metrics = self._metrics(params, batch)
    return metrics["field_error"], metrics

  def _metrics(self, params: Any, batch: dict[str, Array]) -> dict[str, Array]:
    model = nnx.merge(self.graphdef, params)
    images = batch["images"].astype(jnp.float32) / 127.5 - 1.0
    samples = batch["samples"]
    field = model(images, samples[..., :3])
    target = fields.true_field(samples, self.config.field_band)
    inside, truth = field > 0, target > 0
    either = jnp.maximum((inside | truth).sum(), 1)
    return {
      "field_error": jnp.abs(field - target).mean(),
      "sample_iou": (inside & truth).sum() / either,
    }

  def evaluate(self, params: Any) -> dict[str, float]:
    """Metrics on held-out clips, all frames and samples of them."""
    results = [
      self._evaluate(params, self.batches.held_out(clip))
      for clip in range(min(self.config.eval_clips, self.batches.num_held_out))
    ]
    if not results:
      return {}
    return jax.tree.map(lambda *x: float(np.mean(x)), *results)
