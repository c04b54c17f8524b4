"""The stage `vae`: trains the autoencoder and encodes all clips."""

from collections.abc import Collection
from typing import Any

from flax import nnx

from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import networks
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import sources
from sculpt4d_jax.training.stages import stage
from sculpt4d_jax.training.tasks import presets
from sculpt4d_jax.training.tasks import vae as vae_task
from sculpt4d_jax.weights import model_files
from sculpt4d_jax.weights import model_folders


class Autoencoder(stage.Stage):
  """Trains the autoencoder."""

  name = "vae"
  settings: preset_lib.VAETraining

  def shapes(self) -> vae_task.VAETask:
    """The task without data."""
    return presets.vae(self.preset)

  def check(self, mesh: partitioning.Mesh, planned: Collection[str]) -> None:
    """Checks also the weights it starts from."""
    super().check(mesh, planned)
    if self.settings.init_from:
      self.check_weights(self.settings.init_from, ["vae"])
    elif self.settings.task.decoder_only:
      raise UserError(
        "vae_training.decoder_only keeps the encoder of given weights: name"
        " their folder in vae_training.init_from."
      )

  def run(self, source: sources.Source) -> None:
    """Trains, or resumes, and writes the finished weights."""
    init_from, given, found = self.settings.init_from, None, {}
    if init_from:
      given, found = self._given(init_from)
    surfaces = source.surfaces(self.settings.task)
    task = presets.vae(self.preset, surfaces, given)
    params, details = self.train(task, source)
    # Clips are encoded with the weights as they are stored (rounded), which
    # later runs read.
    params = model_files.as_stored(params)
    details["field_band"] = self.settings.task.field_band
    if self.settings.task.decoder_only:
      # The latents are those of the given weights, at their scale.
      scale = found.get("scale_factor", self.preset.model.vae.scale_factor)
    else:
      scale = source.encode(nnx.merge(task.graphdef, params))
    details["scale_factor"] = scale
    stage.save(
      self.workdir / stage.VAE_FILE, params, self.preset.model.vae, details
    )

  def _given(self, folder: str) -> tuple[nnx.State, dict[str, Any]]:
    """Parameters to start from, and the facts stored with them."""
    config = self.preset.model.vae
    _, abstract = networks.abstract(shape_vae.ShapeVAE, config)
    return model_folders.load(folder, "vae", abstract, config, "float32")
