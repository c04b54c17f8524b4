"""The source of a preset; mixes procedural clips and records in batches."""

import dataclasses
from typing import Any

from sculpt4d_jax.data import batches as batches_lib
from sculpt4d_jax.data import mixed_batches
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import paths
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import sources
from sculpt4d_jax.training.tasks import dit as dit_task
from sculpt4d_jax.training.tasks import pictures as pictures_task
from sculpt4d_jax.training.tasks import vae as vae_task


def open_source(
  preset: preset_lib.Preset, workdir: paths.PathLike
) -> sources.Source:
  """Opens the source of a preset.

  Args:
    preset: A preset.
    workdir: Folder of the training; procedural clips are made there.

  Raises:
    ValueError: The sections `data` and `records` do not fit the records, or
      seeds overlap.
    ImportError: Records need packages that are not installed.
  """
  if not preset.records.folders:
    return sources.ProceduralSource(preset, workdir)
  if preset.records.share == 1.0:
    return sources.RecordSource(preset)
  return MixedSource(preset, workdir)


class MixedSource:
  """Mixes procedural clips and records; see `sources.Source`."""

  identity: dict[str, Any]

  def __init__(self, preset: preset_lib.Preset, workdir: paths.PathLike):
    """Opens both.

    Raises:
      ValueError: `records.share` is out of range, or a source cannot be opened.
    """
    self._share = preset.records.share
    if not 0 < self._share < 1:
      raise UserError(f"records.share={self._share} must lie in (0, 1].")
    self._procedural = sources.ProceduralSource(preset, workdir)
    self._records = sources.RecordSource(preset)
    self.identity = (
      self._procedural.identity
      | self._records.identity
      | {"records.share": self._share}
    )

  def surfaces(self, task: vae_task.VAETaskConfig) -> batches_lib.Batches:
    """Batches for the autoencoder."""
    return self._mixed(task, "surfaces")

  def pictures(
    self, task: pictures_task.PictureTaskConfig
  ) -> batches_lib.Batches:
    """Batches for the image encoder."""
    return self._mixed(task, "pictures")

  def encode(
    self,
    vae: shape_vae.ShapeVAE,
    image_encoder: image_encoder_lib.ImageEncoder | None = None,
  ) -> float:
    """Encodes all clips; the scale gives the mixture a variance of 1."""
    made = self._procedural.encode(vae, image_encoder)
    real = self._records.encode(vae, image_encoder)
    moment = (1 - self._share) * made**-2 + self._share * real**-2
    return moment**-0.5

  def latents(self, task: dit_task.DiTTaskConfig) -> batches_lib.Batches:
    """Batches for the DiT, of clips that are encoded."""
    return self._mixed(task, "latents")

  def _mixed(self, task: Any, kind: str) -> batches_lib.Batches:
    num_records = round(self._share * task.batch_size)
    if not 0 < num_records < task.batch_size:
      raise UserError(
        f"records.share={self._share} of batch_size={task.batch_size} clips"
        " leaves no clip to one of the sources; take larger batches."
      )
    num_made = task.batch_size - num_records
    parts = [
      getattr(source, kind)(dataclasses.replace(task, batch_size=count))
      for source, count in (
        (self._procedural, num_made),
        (self._records, num_records),
      )
    ]
    return mixed_batches.MixedBatches(*parts, num_made)
