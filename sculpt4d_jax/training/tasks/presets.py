"""Makes the training tasks of a preset, and checks that they can run.

Problems are found here in seconds, instead of after hours of the previous
stage.
"""

from collections.abc import Mapping, Sequence
import dataclasses

from flax import nnx

from sculpt4d_jax import partitioning
from sculpt4d_jax.data import batches as batches_lib
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import paths
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import schedule as schedule_lib
from sculpt4d_jax.training.tasks import distillation as distillation_task
from sculpt4d_jax.training.tasks import dit as dit_task
from sculpt4d_jax.training.tasks import pictures as pictures_task
from sculpt4d_jax.training.tasks import vae as vae_task
from sculpt4d_jax.weights import model_files
from sculpt4d_jax.weights import model_folders


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


def check(
  preset: preset_lib.Preset,
  stages: Sequence[str],
  vae_file: paths.PathLike,
) -> None:
  """Checks that stages can run, as far as this can be known in advance.

  Args:
    preset: A preset.
    stages: Some of "vae", "pictures", "dit" and "distill"; others need no
      check.
    vae_file: File of the trained autoencoder, which may not exist yet.

  Raises:
    ValueError: The mesh does not match the devices or divide a step, the metric
      of the best checkpoints is not evaluated, or a previous stage is not
      finished.
    model_files.ModelFileError: Initial weights are missing or have other sizes.
  """
  mesh = partitioning.make_mesh(preset.mesh)
  if "vae" in stages:
    training = preset.vae_training
    vae(preset).check_mesh(mesh, training.optimizer.accumulation_steps)
    _check_best(training.schedule, {"eval": training.task.eval_clips})
    if training.init_from:
      _check_weights(preset, training.init_from, ["vae"])
  if "pictures" in stages and preset.picture_training:
    training = preset.picture_training
    pictures(preset).check_mesh(mesh, training.optimizer.accumulation_steps)
    _check_best(training.schedule, {"eval": training.task.eval_clips})
  if "dit" in stages:
    training = preset.dit_training
    dit(preset).check_mesh(mesh, training.optimizer.accumulation_steps)
    evaluated = {
      "eval": training.task.eval_clips,
      "sample": training.samples.every,
    }
    _check_best(training.schedule, evaluated)
    has_vae = "vae" in stages or vae_file.exists()
    _check_dit_start(preset, has_vae, vae_file)

  if "distill" in stages:
    _check_distillation(preset, mesh, stages)


def _check_distillation(
  preset: preset_lib.Preset, mesh: partitioning.Mesh, stages: Sequence[str]
) -> None:
  if not {"vae", "dit"}.isdisjoint(stages):
    raise UserError(
      "A student is distilled from finished weights: run --stages=distill by"
      " itself, with its own --workdir."
    )
  training = preset.distillation
  task = distillation(preset)
  task.check_mesh(mesh, training.optimizer.accumulation_steps)
  _check_best(training.schedule, {"eval": training.task.eval_clips})
  if not training.init_from:
    raise UserError(
      "A student needs a teacher: name the folder of its weights in"
      " distillation.init_from."
    )
  _check_weights(
    teacher_of(preset), training.init_from, ["vae", "image_encoder", "dit"]
  )


def _check_best(
  schedule: schedule_lib.Schedule, evaluated: Mapping[str, int]
) -> None:
  """Raises ValueError if no evaluation has the metric of the best."""
  metric = schedule.best_metric
  if schedule.keep_best and not evaluated.get(schedule_lib.kind(metric)):
    raise UserError(
      f"The best checkpoints are chosen by {metric}, which this stage does not"
      " evaluate: see eval_clips and samples.every, or choose another"
      " best_metric."
    )


def _check_dit_start(
  preset: preset_lib.Preset, has_vae: bool, vae_file: paths.PathLike
) -> None:
  init_from = preset.dit_training.init_from
  if init_from:
    wanted = ["image_encoder", "dit"] + ["vae"] * (not has_vae)
    _check_weights(preset, init_from, wanted)
    return
  if preset.dit_training.task.lora.rank:
    raise UserError(
      "LoRA adapts given weights: name their folder in dit_training.init_from."
    )
  if not has_vae:
    raise UserError(
      f"{vae_file} is missing: train the autoencoder first, with the stages"
      " vae and dit, or start from weights that have one: name their folder in"
      " dit_training.init_from."
    )


def _check_weights(
  preset: preset_lib.Preset, folder: str, names: Sequence[str]
) -> None:
  """Raises ModelFileError if a folder lacks networks of these sizes."""
  folder = paths.of(folder)
  found = model_folders.open_parts(folder)
  missing = [name for name in names if name not in found]
  if missing:
    raise model_files.ModelFileError(
      f"{folder} has no {' and no '.join(missing)}, only {', '.join(found)}."
    )
  for name in names:
    model_files.check_config(
      folder / name,
      model_files.fields(found[name].config),
      preset.model.parts()[name][1],
    )
