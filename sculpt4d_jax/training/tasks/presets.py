"""Makes the training tasks of a preset."""

from collections.abc import Mapping
import dataclasses

from flax import nnx

from sculpt4d_jax.data import batches as batches_lib
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.tasks import distillation as distillation_task
from sculpt4d_jax.training.tasks import dit as dit_task
from sculpt4d_jax.training.tasks import pictures as pictures_task
from sculpt4d_jax.training.tasks import vae as vae_task


@dataclasses.dataclass(frozen=True)
class _Sizes:
  """Placeholder for batches when only shapes are needed."""

  num_frames: int


def vae(
  preset: preset_lib.Preset,
  batches: batches_lib.Batches | None = None,
  init_from: Mapping[str, nnx.State] | None = None,
) -> vae_task.VAETask:
  """Makes the autoencoder's training task.

  Args:
    preset: A preset.
    batches: None for shapes alone.
    init_from: Parameters to start from.
  """
  options = preset.vae_training.task
  return vae_task.VAETask(
    options,
    preset.model.vae,
    preset.data.sizes.num_uniform,
    batches or _Sizes(options.num_frames),
    init_from,
  )


def dit(
  preset: preset_lib.Preset,
  batches: batches_lib.Batches | None = None,
  scale: float = 1.0,
  init_from: Mapping[str, nnx.State] | None = None,
) -> dit_task.DiTTask:
  """Makes the training task of the DiT and its image encoder.

  Args:
    preset: A preset.
    batches: None for shapes alone.
    scale: Scale of the latents.
    init_from: Parameters to start from, by network.
  """
  return dit_task.DiTTask(
    preset.dit_training.task,
    preset.model.dit,
    preset.model.image_encoder,
    batches or _Sizes(preset.data.num_frames),
    scale,
    init_from,
    preset.model.vae,
  )


def pictures(
  preset: preset_lib.Preset,
  batches: batches_lib.Batches | None = None,
) -> pictures_task.PictureTask:
  """Makes the image encoder's pretraining task.

  Args:
    preset: A preset that has one.
    batches: None for shapes alone.
  """
  options = preset.picture_training.task
  return pictures_task.PictureTask(
    options,
    preset.model.image_encoder,
    batches or _Sizes(options.num_frames),
  )


def distillation(
  preset: preset_lib.Preset,
  batches: batches_lib.Batches | None = None,
  scale: float = 1.0,
  teacher: Mapping[str, nnx.State] | None = None,
) -> distillation_task.DistillationTask:
  """Makes the training task of a few-step student.

  Args:
    preset: A preset whose DiT has a step embedding.
    batches: None for shapes alone.
    scale: Scale of the latents.
    teacher: Parameters of the teacher, by network.
  """
  return distillation_task.DistillationTask(
    preset.distillation.task,
    preset.model.dit,
    preset.model.image_encoder,
    batches or _Sizes(preset.data.num_frames),
    scale,
    teacher,
  )


def teacher_of(preset: preset_lib.Preset) -> preset_lib.Preset:
  """The preset of a student's teacher, whose DiT has no step embedding."""
  dit_config = dataclasses.replace(preset.model.dit, step_embedding=False)
  model = dataclasses.replace(preset.model, dit=dit_config)
  return dataclasses.replace(preset, model=model)
