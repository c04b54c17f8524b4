"""The context that the DiT is given, and the check of its inputs' shapes."""

from typing import NamedTuple

from sculpt4d_jax import array_types
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import attention
from sculpt4d_jax.models import dit_config

Array = array_types.Array


class ContextKeyValues(NamedTuple):
  """Keys and values of a clip's context for all blocks, one entry a stage.

  Each entry is `attention.KeyValues` of [L, B, F, I, H, K].
  """

  stages: tuple[attention.KeyValues, ...]


def check(
  config: dit_config.DiTConfig,
  latents: Array,
  time: Array,
  context: Array | ContextKeyValues,
) -> None:
  """Checks the shapes of the DiT's inputs; for these see `DiT.__call__`.

  Raises:
    ValueError: Shapes do not match each other or the configuration.
  """
  channels = config.latent_channels
  if latents.ndim != 4 or latents.shape[-1] != channels:
    raise UserError(
      f"latents must be [B, F, N, {channels}], got {latents.shape}; give"
      " single frames an axis of one frame."
    )
  num_indices = config.num_token_indices
  if num_indices and latents.shape[2] != num_indices:
    raise UserError(
      f"this model knows its {num_indices} tokens a frame by their index,"
      f" got latents {latents.shape}."
    )
  if time.shape not in (latents.shape[:1], latents.shape[:2]):
    raise UserError(
      f"time must be one number a clip, {latents.shape[:1]}, or a frame,"
      f" {latents.shape[:2]}, got {time.shape}."
    )
  if isinstance(context, ContextKeyValues):
    lead = context.stages[0].key.shape[1:3]
  else:
    lead = context.shape[:2]
    width = config.context_width
    if context.ndim != 4 or context.shape[-1] != width:
      raise UserError(
        f"context must be [B, F, I, {width}], got {context.shape}."
      )
  if tuple(lead) != tuple(latents.shape[:2]):
    raise UserError(
      f"context is for {tuple(lead)} clips and frames, latents are"
      f" {tuple(latents.shape[:2])}; encode the context of this clip."
    )
