"""The three networks of a model: their classes, configurations and shapes."""

import dataclasses
from typing import Any

from flax import nnx

from sculpt4d_jax.models import dit
from sculpt4d_jax.models import image_encoder
from sculpt4d_jax.models import layers
from sculpt4d_jax.models import shape_vae

# Module and configuration of each network.
KINDS = {
  "vae": (shape_vae.ShapeVAE, shape_vae.ShapeVAEConfig),
  "image_encoder": (
    image_encoder.ImageEncoder,
    image_encoder.ImageEncoderConfig,
  ),
  "dit": (dit.DiT, dit.DiTConfig),
}


@dataclasses.dataclass(frozen=True)
class NetworkConfigs:
  """Configurations of the three networks; the `model` section of a preset.

  Attributes:
    vae: Shape autoencoder.
    image_encoder: Encoder of the clip's frames.
    dit: Diffusion transformer.
  """

  vae: shape_vae.ShapeVAEConfig
  image_encoder: image_encoder.ImageEncoderConfig
  dit: dit.DiTConfig

  def parts(self) -> dict[str, tuple[type[nnx.Module], Any]]:
    """Module class and configuration of every network, by name."""
    return {name: (KINDS[name][0], getattr(self, name)) for name in KINDS}


def abstract(
  kind: type[nnx.Module], config: Any
) -> tuple[nnx.GraphDef, nnx.State]:
  """Structure and parameter shapes of a network, without allocating it.

  Args:
    kind: Class of the module, called as `kind(config, rngs=...)`.
    config: Configuration of the module.

  Returns:
    The graph definition, and a state of `jax.ShapeDtypeStruct` leaves.
  """
  module = nnx.eval_shape(lambda: kind(config, rngs=layers.NoRngs()))
  return nnx.split(module)
