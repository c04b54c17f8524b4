"""The networks that the transformer's training holds, trained or fixed."""

from flax import nnx

from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.models import vae_blocks

# Frequencies of the field head's points.
HEAD_FREQS = 5


class ConditionalDiT(nnx.Module):
  """The image encoder and the DiT that it conditions.

  `field_head` predicts the field from the context, and `vae` decodes estimates
  of latents; they exist in training only.
  """

  def __init__(
    self,
    dit_config: dit_lib.DiTConfig,
    encoder_config: image_encoder_lib.ImageEncoderConfig,
    *,
    use_field_head: bool,
    vae_config: shape_vae.ShapeVAEConfig | None = None,
    rngs: nnx.Rngs,
  ):
    self.image_encoder = image_encoder_lib.ImageEncoder(
      encoder_config, rngs=rngs
    )
    self.dit = dit_lib.DiT(dit_config, rngs=rngs)
    self.field_head = (
      _field_head(encoder_config, rngs) if use_field_head else None
    )
    self.vae = vae_config and shape_vae.ShapeVAE(vae_config, rngs=rngs)


def _field_head(
  encoder_config: image_encoder_lib.ImageEncoderConfig, rngs: nnx.Rngs
) -> vae_blocks.FieldDecoder:
  return vae_blocks.FieldDecoder(
    encoder_config.width,
    encoder_config.num_heads,
    num_freqs=HEAD_FREQS,
    include_pi=False,
    mlp_ratio=2,
    use_norm_post=True,
    rngs=rngs,
  )
