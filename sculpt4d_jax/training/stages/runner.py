"""A whole training from a preset: data, autoencoder, latents, DiT, weights."""

from collections.abc import Sequence

from sculpt4d_jax import partitioning
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import output_checks
from sculpt4d_jax.io import paths
from sculpt4d_jax.training import mixed_source
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training.stages import autoencoder
from sculpt4d_jax.training.stages import diffusion
from sculpt4d_jax.training.stages import distillation
from sculpt4d_jax.training.stages import pictures
from sculpt4d_jax.training.stages import stage

# The clips of "data" are made whenever a later stage needs them.
STAGES = ("data", "vae", "pictures", "dit")
# Also distillation, which starts from finished weights.
ALL_STAGES = (*STAGES, "distill")


def run(
  preset: preset_lib.Preset, workdir: paths.PathLike, stages: Sequence[str]
) -> None:
  """Runs stages in order; each resumes where an earlier run stopped.

  Args:
    preset: A preset.
    workdir: Folder of everything that is written; the finished weights are in
      `workdir/weights`.
    stages: Some of `ALL_STAGES`.

  Raises:
    ValueError: A stage is unknown or cannot run; see `stage.Stage.check`.
    OutputError: The bucket of the folder cannot be written to.
    model_files.ModelFileError: Weights to start from do not fit.
  """
  workdir = paths.of(workdir)
  unknown = set(stages) - set(ALL_STAGES)
  if unknown:
    raise UserError(
      f"Unknown stages {sorted(unknown)}; choose among {list(ALL_STAGES)}."
    )
  planned = [one for one in make(preset, workdir) if one.name in stages]
  output_checks.check_folder(workdir)
  mesh = partitioning.make_mesh(preset.mesh)
  for one in planned:
    one.check(mesh, stages)
  source = mixed_source.open_source(preset, workdir)
  for one in planned:
    one.run(source)


def make(
  preset: preset_lib.Preset, workdir: paths.PathLike
) -> list[stage.Stage]:
  """Makes all stages that a preset has, in their order."""
  made: list[stage.Stage] = [
    autoencoder.Autoencoder(preset, preset.vae_training, workdir)
  ]
  if preset.picture_training:
    made.append(pictures.Pictures(preset, preset.picture_training, workdir))
  return [
    *made,
    diffusion.Diffusion(preset, preset.dit_training, workdir),
    distillation.Distillation(preset, preset.distillation, workdir),
  ]


def describe_results(workdir: paths.PathLike, stages: Sequence[str]) -> str:
  """Sentence about where a run's results are."""
  weights = paths.of(workdir) / "weights"
  if "dit" in stages or "distill" in stages:
    return f"The weights are in {weights}."
  if "vae" in stages:
    return (
      f"The autoencoder's weights are in {weights}; the stage dit trains the"
      " diffusion transformer on its latents."
    )
  return (
    f"The clips are in {paths.of(workdir) / 'data'}; no weights were made. The"
    " stages vae and dit make them."
  )
