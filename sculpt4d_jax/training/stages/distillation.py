"""The stage `distill`: trains a few-step student of finished weights."""

from collections.abc import Collection

from flax import nnx

from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import sources
from sculpt4d_jax.training.stages import stage
from sculpt4d_jax.training.tasks import distillation as distillation_task
from sculpt4d_jax.training.tasks import presets


class Distillation(stage.Stage):
  """Trains a few-step student; writes its weights with all others."""

  name = "distill"
  settings: preset_lib.Distillation

  def shapes(self) -> distillation_task.DistillationTask:
    """The task without data."""
    return presets.distillation(self.preset)

  def check(self, mesh: partitioning.Mesh, planned: Collection[str]) -> None:
    """Checks also that there is a teacher."""
    if not {"vae", "dit"}.isdisjoint(planned):
      raise UserError(
        "A student is distilled from finished weights: run --stages=distill by"
        " itself, with its own --workdir."
      )
    super().check(mesh, planned)
    if not self.settings.init_from:
      raise UserError(
        "A student needs a teacher: name the folder of its weights in"
        " distillation.init_from."
      )
    self.check_weights(
      self.settings.init_from,
      ["vae", "image_encoder", "dit"],
      presets.teacher_of(self.preset).model,
    )

  def run(self, source: sources.Source) -> None:
    """Trains, or resumes, and writes the finished weights."""
    init_from = self.settings.init_from
    vae, scale = self.load_vae(init_from)
    networks_of_teacher = presets.teacher_of(self.preset).model
    teacher = {
      name: sources.load_module(networks_of_teacher, init_from, name)
      for name in ("image_encoder", "dit")
    }
    source.encode(vae, teacher["image_encoder"])
    task = presets.distillation(
      self.preset,
      source.latents(self.settings.task),
      scale,
      {name: nnx.state(module) for name, module in teacher.items()},
    )
    params, details = self.train(task, source)
    details |= {
      "guidance_scale": self.settings.task.guidance_scale,
      "teacher": str(init_from),
    }
    self.save_networks(task.exported(params), details)
