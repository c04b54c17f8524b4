"""A whole training from a preset: data, autoencoder, latents, DiT, weights."""

from collections.abc import Mapping
import pathlib
from typing import Any

from absl import logging
from flax import nnx
import jax

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import paths
from sculpt4d_jax.models import networks
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import loop
from sculpt4d_jax.training import mixed_source
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import sample_callback
from sculpt4d_jax.training import sources
from sculpt4d_jax.training.tasks import presets
from sculpt4d_jax.weights import model_files
from sculpt4d_jax.weights import model_folders

STAGES = ("data", "vae", "pictures", "dit")
# Also distillation, which starts from finished weights.
ALL_STAGES = (*STAGES, "distill")
_VAE_FILE = pathlib.PurePath("weights") / "vae.safetensors"
# Start of the image encoder in the DiT's training, not its result.
_TAUGHT_ENCODER = pathlib.PurePath("pictures") / "image_encoder.safetensors"


def run(
  preset: preset_lib.Preset, workdir: paths.PathLike, stages: list[str]
) -> None:
  """Runs stages in order; each resumes where an earlier run stopped.

  Args:
    preset: A preset.
    workdir: Folder of everything that is written; the finished weights are in
      `workdir/weights`.
    stages: Some of `ALL_STAGES`.

  Raises:
    ValueError: A stage is unknown or cannot run; see `tasks.check`.
    model_files.ModelFileError: Weights to start from do not fit.
  """
  workdir = paths.of(workdir)
  unknown = set(stages) - set(ALL_STAGES)
  if unknown:
    raise UserError(
      f"Unknown stages {sorted(unknown)}; choose among {list(ALL_STAGES)}."
    )
  presets.check(preset, stages, workdir / _VAE_FILE)
  source = mixed_source.open_source(preset, workdir)
  if "vae" in stages:
    train_vae(preset, workdir, source)
  if "pictures" in stages and preset.picture_training:
    train_pictures(preset, workdir, source)
  if "dit" in stages:
    train_dit(preset, workdir, source)
  if "distill" in stages:
    distill(preset, workdir, source)


def train_vae(
  preset: preset_lib.Preset,
  workdir: paths.PathLike,
  source: sources.Source,
) -> None:
  """Trains the autoencoder; writes its weights and all latents."""
  training = preset.vae_training
  options, init_from = training.task, training.init_from
  given = None
  if init_from:
    given = nnx.state(sources.load_module(preset.model, init_from, "vae"))
  task = presets.vae(preset, source.surfaces(options), given)
  sources.check_identity(workdir / "vae", source)
  trained = loop.train(
    task,
    training.optimizer,
    workdir / "vae",
    mesh=preset.mesh,
    seed=options.seed,
    schedule=training.schedule,
  )
  # Clips are encoded with the weights as they are stored (rounded), which later
  # runs read.
  params = model_files.as_stored(trained.params)
  vae = nnx.merge(task.graphdef, params)
  details = {
    "steps": training.optimizer.num_steps,
    "field_band": options.field_band,
    "scale_factor": source.encode(vae),
    "eval": _evaluated(task, trained),
  }
  logging.info("Autoencoder: %s", details)
  _save(workdir / _VAE_FILE, params, preset.model.vae, details)


def _evaluated(task: loop.Task, trained: loop.Trained) -> dict[str, float]:
  """Held-out metrics of the result; computed only if the run did not."""
  if trained.evaluated is None:
    return task.evaluate(trained.params)
  return trained.evaluated


def train_pictures(
  preset: preset_lib.Preset,
  workdir: paths.PathLike,
  source: sources.Source,
) -> None:
  """Pretrains the image encoder and writes its weights."""
  training = preset.picture_training
  task = presets.pictures(preset, source.pictures(training.task))
  sources.check_identity(workdir / "pictures", source)
  trained = loop.train(
    task,
    training.optimizer,
    workdir / "pictures",
    mesh=preset.mesh,
    seed=training.task.seed,
    schedule=training.schedule,
  )
  details = {
    "steps": training.optimizer.num_steps,
    "eval": _evaluated(task, trained),
  }
  logging.info("Image encoder: %s", details)
  _save(
    workdir / _TAUGHT_ENCODER,
    trained.params["image_encoder"],
    task.encoder_config,
    details,
  )


def _save(
  path: paths.StorePath,
  params: Any,
  model_config: Any,
  details: Mapping[str, Any],
):
  """Writes weights on the first process; all processes wait for them."""
  if jax.process_index() == 0:
    model_files.save(path, params, model_config, details)
  sources.wait_for_all(path.name)


def train_dit(
  preset: preset_lib.Preset,
  workdir: paths.PathLike,
  source: sources.Source,
) -> None:
  """Trains the DiT, and the image encoder with it if the preset says so."""
  vae_file = workdir / _VAE_FILE
  training = preset.dit_training
  options, init_from = training.task, training.init_from
  if not vae_file.exists() and init_from:
    _take_vae(preset.model, init_from, vae_file)
  vae, scale = _load_vae(preset.model.vae, vae_file)
  given = {}
  if init_from:
    for name in ("image_encoder", "dit"):
      given[name] = sources.load_module(preset.model, init_from, name)
  elif (workdir / _TAUGHT_ENCODER).exists():
    given["image_encoder"] = sources.load_module(
      preset.model, workdir / _TAUGHT_ENCODER.parent, "image_encoder"
    )
  learns = options.train_image_encoder
  source.encode(vae, None if learns else given.get("image_encoder"))
  task = presets.dit(
    preset,
    source.latents(options),
    scale,
    {name: nnx.state(module) for name, module in given.items()},
  )
  sources.check_identity(workdir / "dit", source)
  trained = loop.train(
    task,
    training.optimizer,
    workdir / "dit",
    mesh=preset.mesh,
    seed=options.seed,
    schedule=training.schedule,
    observers=_observers(preset, vae, scale),
  )
  params = trained.params
  details = {
    "steps": training.optimizer.num_steps,
    "eval": _evaluated(task, trained),
  }
  logging.info("DiT: %s", details)
  if options.lora.rank:
    _save(
      workdir / "weights" / "adapters.safetensors",
      task.trained(params),
      options.lora,
      details,
    )
    params = task.exported(params)
  for name in ("dit", "image_encoder"):
    _save(
      workdir / "weights" / f"{name}.safetensors",
      params[name],
      getattr(preset.model, name),
      details,
    )


def distill(
  preset: preset_lib.Preset,
  workdir: pathlib.Path,
  source: sources.Source,
) -> None:
  """Trains a few-step student; writes its weights with all others."""
  vae_file = workdir / _VAE_FILE
  training = preset.distillation
  init_from = training.init_from
  if not vae_file.exists():
    _take_vae(preset.model, init_from, vae_file)
  vae, scale = _load_vae(preset.model.vae, vae_file)
  networks_of_teacher = presets.teacher_of(preset).model
  teacher = {
    name: sources.load_module(networks_of_teacher, init_from, name)
    for name in ("image_encoder", "dit")
  }
  source.encode(vae, teacher["image_encoder"])
  task = presets.distillation(
    preset,
    source.latents(training.task),
    scale,
    {name: nnx.state(module) for name, module in teacher.items()},
  )
  sources.check_identity(workdir / "distill", source)
  trained = loop.train(
    task,
    training.optimizer,
    workdir / "distill",
    mesh=preset.mesh,
    seed=training.task.seed,
    schedule=training.schedule,
  )
  details = {
    "steps": training.optimizer.num_steps,
    "eval": _evaluated(task, trained),
    "guidance_scale": training.task.guidance_scale,
    "teacher": str(init_from),
  }
  logging.info("Student: %s", details)
  params = task.exported(trained.params)
  for name in ("dit", "image_encoder"):
    _save(
      workdir / "weights" / f"{name}.safetensors",
      params[name],
      getattr(preset.model, name),
      details,
    )


def _observers(
  preset: preset_lib.Preset, vae: shape_vae.ShapeVAE, scale: float
) -> tuple[loop.Observer, ...]:
  """Callbacks that show samples while the DiT is trained."""
  if not preset.dit_training.samples.every:
    return ()
  return (sample_callback.SampledClips(preset, vae, scale),)


def _take_vae(
  model: networks.NetworkConfigs, folder: str, path: paths.PathLike
) -> None:
  """Copies the autoencoder from the initial weights."""
  _, abstract = networks.abstract(shape_vae.ShapeVAE, model.vae)
  params, details = model_folders.load(
    folder, "vae", abstract, model.vae, dtype="float32"
  )
  details |= {"copied_from": str(folder)}
  model_files.save(path, params, model.vae, details)


def _load_vae(
  config: shape_vae.ShapeVAEConfig, path: paths.PathLike
) -> tuple[shape_vae.ShapeVAE, float]:
  """The autoencoder, and the scale factor of its latents."""
  graphdef, abstract = networks.abstract(shape_vae.ShapeVAE, config)
  params, details = model_files.load(path, abstract, config)
  # A pretrained autoencoder has its factor in the configuration.
  scale = details.get("scale_factor", config.scale_factor)
  return nnx.merge(graphdef, params), scale
