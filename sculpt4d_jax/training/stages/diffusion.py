"""The stage `dit`: trains the transformer, and the image encoder with it."""

from collections.abc import Collection

from flax import nnx

from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import loop
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import sample_callback
from sculpt4d_jax.training import sources
from sculpt4d_jax.training.stages import pictures
from sculpt4d_jax.training.stages import stage
from sculpt4d_jax.training.tasks import dit as dit_task
from sculpt4d_jax.training.tasks import presets


class Diffusion(stage.Stage):
  """Trains the DiT, and the image encoder with it if the preset says so."""

  name = "dit"
  settings: preset_lib.DiTTraining

  def shapes(self) -> dit_task.DiTTask:
    """The task without data."""
    return presets.dit(self.preset)

  def evaluations(self) -> dict[str, int]:
    """Held-out losses, and samples if the preset wants them."""
    return super().evaluations() | {"sample": self.settings.samples.every}

  def check(self, mesh: partitioning.Mesh, planned: Collection[str]) -> None:
    """Checks also that there will be an autoencoder to train with."""
    super().check(mesh, planned)
    vae_file = self.workdir / stage.VAE_FILE
    has_vae = "vae" in planned or vae_file.exists()
    if self.settings.init_from:
      wanted = ["image_encoder", "dit"] + ["vae"] * (not has_vae)
      self.check_weights(self.settings.init_from, wanted)
      return
    if self.settings.task.lora.rank:
      raise UserError(
        "LoRA adapts given weights: name their folder in"
        " dit_training.init_from."
      )
    if not has_vae:
      raise UserError(
        f"{vae_file} is missing: train the autoencoder first, with the stages"
        " vae and dit, or start from weights that have one: name their folder"
        " in dit_training.init_from."
      )

  def run(self, source: sources.Source) -> None:
    """Trains, or resumes, and writes the finished weights."""
    options = self.settings.task
    vae, scale = self.load_vae(self.settings.init_from)
    given = self._given()
    learns = options.train_image_encoder
    source.encode(vae, None if learns else given.get("image_encoder"))
    if options.shape_weight:
      given["vae"] = vae
    task = presets.dit(
      self.preset,
      source.latents(options),
      scale,
      {name: nnx.state(module) for name, module in given.items()},
    )
    params, details = self.train(task, source, self._observers(vae, scale))
    if options.lora.rank:
      stage.save(
        self.workdir / "weights" / "adapters.safetensors",
        task.trained(params),
        options.lora,
        details,
      )
      params = task.exported(params)
    self.save_networks(params, details)

  def _given(self) -> dict[str, nnx.Module]:
    """Networks that start from given weights, by name."""
    folder, names = self.settings.init_from, ("image_encoder", "dit")
    taught = self.workdir / pictures.TAUGHT_ENCODER
    if not folder:
      if not taught.exists():
        return {}
      folder, names = taught.parent, ("image_encoder",)
    model = self.preset.model
    return {name: sources.load_module(model, folder, name) for name in names}

  def _observers(
    self, vae: shape_vae.ShapeVAE, scale: float
  ) -> tuple[loop.Observer, ...]:
    """Callbacks that show samples during the training."""
    if not self.settings.samples.every:
      return ()
    return (sample_callback.SampledClips(self.preset, vae, scale),)
