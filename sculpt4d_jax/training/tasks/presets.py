"""The trainings of a preset, and whether they can run at all.

What cannot work is found here, in seconds, and not after the hours of the stage
before.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib

from flax import nnx
import ml_collections

from sculpt4d_jax import partitioning
from sculpt4d_jax.data import batches as batches_lib
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import lora as lora_lib
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import schedule as schedule_lib
from sculpt4d_jax.training.tasks import dit as dit_task
from sculpt4d_jax.training.tasks import vae as vae_task
from sculpt4d_jax.weights import model_files
from sculpt4d_jax.weights import model_folders


@dataclasses.dataclass(frozen=True)
class _Sizes:
  """Stands where batches would, for shapes alone."""

  num_frames: int


def vae_options(
  config: ml_collections.ConfigDict,
) -> tuple[vae_task.VAETaskConfig, optimizer_lib.OptimizerConfig]:
  """The `vae_training` section of a preset, checked."""
  options = config.vae_training.to_dict()
  optimizer = options.pop("optimizer")
  schedule_lib.take(options)
  del options["init_from"]
  return (
    vae_task.VAETaskConfig(**options),
    optimizer_lib.OptimizerConfig(**optimizer),
  )


def dit_options(
  config: ml_collections.ConfigDict,
) -> tuple[dit_task.DiTTaskConfig, optimizer_lib.OptimizerConfig]:
  """The `dit_training` section of a preset, checked.

  An image encoder that does not learn is among the frozen groups: its weights
  would decay otherwise.
  """
  options = config.dit_training.to_dict()
  optimizer = options.pop("optimizer")
  schedule_lib.take(options)
  for name in ("latent_choices", "init_from", "samples"):
    del options[name]
  options["lora"] = lora_lib.LoRAConfig(**options["lora"])
  task = dit_task.DiTTaskConfig(**options)
  if not task.train_image_encoder:
    frozen = {*optimizer["frozen"], "image_encoder"}
    optimizer["frozen"] = tuple(sorted(frozen))
  return task, optimizer_lib.OptimizerConfig(**optimizer)


def vae(
  config: ml_collections.ConfigDict,
  batches: batches_lib.Batches | None = None,
  init_from: Mapping[str, nnx.State] | None = None,
) -> vae_task.VAETask:
  """The autoencoder's training.

  Args:
    config: A preset.
    batches: None for shapes alone.
    init_from: Parameters to start from.
  """
  options, _ = vae_options(config)
  return vae_task.VAETask(
    options,
    shape_vae.ShapeVAEConfig(**config.model.vae),
    config.data.num_uniform,
    batches or _Sizes(options.num_frames),
    init_from,
  )


def dit(
  config: ml_collections.ConfigDict,
  batches: batches_lib.Batches | None = None,
  scale: float = 1.0,
  init_from: Mapping[str, nnx.State] | None = None,
) -> dit_task.DiTTask:
  """The DiT's training, and its image encoder's.

  Args:
    config: A preset.
    batches: None for shapes alone.
    scale: Of the latents.
    init_from: Parameters to start from, by network.
  """
  options, _ = dit_options(config)
  return dit_task.DiTTask(
    options,
    dit_lib.DiTConfig(**config.model.dit),
    image_encoder_lib.ImageEncoderConfig(**config.model.image_encoder),
    batches or _Sizes(config.data.num_frames),
    scale,
    init_from,
  )


def check(
  config: ml_collections.ConfigDict,
  stages: Sequence[str],
  vae_file: pathlib.Path,
) -> None:
  """Checks that stages can run, as far as that is known before they do.

  Args:
    config: A preset.
    stages: "vae", "dit" or both; others need no check.
    vae_file: Where the trained autoencoder is, or will be.

  Raises:
    ValueError: The mesh does not fit the devices or divide a step, the best
      checkpoints are chosen by what is not evaluated, or the stage before one is
      not finished.
    model_files.ModelFileError: Weights to start from are missing or of another
      size.
  """
  mesh = partitioning.make_mesh(partitioning.MeshConfig(**config.mesh))
  if "vae" in stages:
    training = config.vae_training
    vae(config).check_mesh(mesh, training.optimizer.accumulation_steps)
    _check_best(training, {"eval": training.eval_clips})
    if training.init_from:
      _check_weights(config, training.init_from, ["vae"])
  if "dit" in stages:
    training = config.dit_training
    dit(config).check_mesh(mesh, training.optimizer.accumulation_steps)
    evaluated = {"eval": training.eval_clips, "sample": training.samples.every}
    _check_best(training, evaluated)
    has_vae = "vae" in stages or vae_file.exists()
    _check_dit_start(config, has_vae, vae_file)


def _check_best(training, evaluated):
  """Raises ValueError where no evaluation has the metric of the best."""
  metric = training.best_metric
  if training.keep_best and not evaluated.get(schedule_lib.kind(metric)):
    raise ValueError(
      f"The best checkpoints are chosen by {metric}, which this stage does not"
      " evaluate: see eval_clips and samples.every, or choose another"
      " best_metric."
    )


def _check_dit_start(config, has_vae, vae_file):
  init_from = config.dit_training.init_from
  if init_from:
    wanted = ["image_encoder", "dit"] + ["vae"] * (not has_vae)
    _check_weights(config, init_from, wanted)
    return
  if config.dit_training.lora.rank:
    raise ValueError(
      "LoRA adapts given weights: name them with"
      " --config.dit_training.init_from."
    )
  if not has_vae:
    raise ValueError(
      f"{vae_file} is missing: train the autoencoder first, with"
      " --stages=vae,dit, or start from weights that have one, with"
      " --config.dit_training.init_from."
    )


def _check_weights(config, folder, names):
  """Raises ModelFileError where a folder lacks networks of these sizes."""
  folder = pathlib.Path(folder)
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
      model_lib.parts(config.model)[name][1],
    )
