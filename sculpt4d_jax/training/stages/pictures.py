"""The stage `pictures`: teaches the image encoder to read the field."""

import pathlib

from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import sources
from sculpt4d_jax.training.stages import stage
from sculpt4d_jax.training.tasks import pictures as pictures_task
from sculpt4d_jax.training.tasks import presets

# Start of the image encoder in the DiT's training, not its result.
TAUGHT_ENCODER = pathlib.PurePath("pictures") / "image_encoder.safetensors"


class Pictures(stage.Stage):
  """Pretrains the image encoder on single pictures."""

  name = "pictures"
  settings: preset_lib.PictureTraining

  def shapes(self) -> pictures_task.PictureTask:
    """The task without data."""
    return presets.pictures(self.preset)

  def run(self, source: sources.Source) -> None:
    """Trains, or resumes, and writes the finished weights."""
    task = presets.pictures(self.preset, source.pictures(self.settings.task))
    params, details = self.train(task, source)
    stage.save(
      self.workdir / TAUGHT_ENCODER,
      params["image_encoder"],
      task.encoder_config,
      details,
    )
