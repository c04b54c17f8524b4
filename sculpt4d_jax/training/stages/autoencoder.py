"""The stage `vae`: trains the autoencoder and encodes all clips."""

from collections.abc import Collection

from flax import nnx

from sculpt4d_jax import partitioning
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import sources
from sculpt4d_jax.training.stages import stage
from sculpt4d_jax.training.tasks import presets
from sculpt4d_jax.training.tasks import vae as vae_task
from sculpt4d_jax.weights import model_files


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

  def run(self, source: sources.Source) -> None:
    """Trains, or resumes, and writes the finished weights."""
    init_from, given = self.settings.init_from, None
    if init_from:
      given = nnx.state(
        sources.load_module(self.preset.model, init_from, "vae")
      )
    surfaces = source.surfaces(self.settings.task)
    task = presets.vae(self.preset, surfaces, given)
    params, details = self.train(task, source)
    # Clips are encoded with the weights as they are stored (rounded), which
    # later runs read.
    params = model_files.as_stored(params)
    vae = nnx.merge(task.graphdef, params)
    details |= {
      "field_band": self.settings.task.field_band,
      "scale_factor": source.encode(vae),
    }
    stage.save(
      self.workdir / stage.VAE_FILE, params, self.preset.model.vae, details
    )
