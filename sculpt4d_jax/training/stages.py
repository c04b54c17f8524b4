"""A whole training from a preset: data, autoencoder, latents, DiT, weights."""

import pathlib

from absl import logging
from flax import nnx
import jax
import ml_collections

from sculpt4d_jax import partitioning
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import loop
from sculpt4d_jax.training import sample_callback
from sculpt4d_jax.training import schedule as schedule_lib
from sculpt4d_jax.training import sources
from sculpt4d_jax.training.tasks import presets
from sculpt4d_jax.weights import model_files
from sculpt4d_jax.weights import model_folders

STAGES = ("data", "vae", "dit")
_VAE_FILE = pathlib.PurePath("weights") / "vae.safetensors"


def run(
  config: ml_collections.ConfigDict, workdir: pathlib.Path, stages: list[str]
) -> None:
  """Runs stages in order; each goes on where an earlier run stopped.

  Args:
    config: A preset, see `configs/base.py`.
    workdir: Folder of everything that is written; the finished weights are in
      `workdir/weights`.
    stages: Some of `STAGES`.

  Raises:
    ValueError: A stage is unknown or cannot run; see `tasks.check`.
    model_files.ModelFileError: Weights to start from do not fit.
  """
  unknown = set(stages) - set(STAGES)
  if unknown:
    raise ValueError(
      f"Unknown stages {sorted(unknown)}; choose among {list(STAGES)}."
    )
  presets.check(config, stages, workdir / _VAE_FILE)
  source = sources.open_source(config, workdir)
  if "vae" in stages:
    train_vae(config, workdir, source)
  if "dit" in stages:
    train_dit(config, workdir, source)


def train_vae(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  source: sources.Source,
) -> None:
  """Trains the autoencoder and writes its weights and all latents."""
  options, optimizer = presets.vae_options(config)
  init_from = config.vae_training.init_from
  model_config = shape_vae.ShapeVAEConfig(**config.model.vae)
  given = None
  if init_from:
    given = nnx.state(sources.load_module(config, init_from, "vae"))
  task = presets.vae(config, source.surfaces(options), given)
  sources.check_identity(workdir / "vae", source)
  params = loop.train(
    task,
    optimizer,
    workdir / "vae",
    mesh=partitioning.MeshConfig(**config.mesh),
    seed=options.seed,
    schedule=schedule_lib.take(config.vae_training.to_dict()),
  )
  # The clips are encoded with the weights that are written.
  params = model_files.as_stored(params)
  vae = nnx.merge(task.graphdef, params)
  details = {
    "steps": optimizer.num_steps,
    "field_band": options.field_band,
    "scale_factor": source.encode(vae),
    "eval": task.evaluate(params),
  }
  logging.info("Autoencoder: %s", details)
  _save(workdir / _VAE_FILE, params, model_config, details)


def _save(path, params, model_config, details):
  """Writes weights on the first process; all go on when they are there."""
  if jax.process_index() == 0:
    model_files.save(path, params, model_config, details)
  sources.wait_for_all(path.name)


def train_dit(
  config: ml_collections.ConfigDict,
  workdir: pathlib.Path,
  source: sources.Source,
) -> None:
  """Trains the DiT, and the image encoder with it if the preset says so."""
  vae_file = workdir / _VAE_FILE
  if not vae_file.exists() and config.dit_training.init_from:
    _take_vae(config, vae_file)
  vae, scale = _load_vae(config, vae_file)
  options, optimizer = presets.dit_options(config)
  init_from = config.dit_training.init_from
  given = {}
  if init_from:
    for name in ("image_encoder", "dit"):
      given[name] = sources.load_module(config, init_from, name)
  dit_config = dit_lib.DiTConfig(**config.model.dit)
  encoder_config = image_encoder_lib.ImageEncoderConfig(
    **config.model.image_encoder
  )
  learns = options.train_image_encoder
  source.encode(vae, None if learns else given.get("image_encoder"))
  task = presets.dit(
    config,
    source.latents(options),
    scale,
    {name: nnx.state(module) for name, module in given.items()},
  )
  sources.check_identity(workdir / "dit", source)
  params = loop.train(
    task,
    optimizer,
    workdir / "dit",
    mesh=partitioning.MeshConfig(**config.mesh),
    seed=options.seed,
    schedule=schedule_lib.take(config.dit_training.to_dict()),
    observers=_observers(config, vae, scale),
  )
  details = {"steps": optimizer.num_steps, "eval": task.evaluate(params)}
  logging.info("DiT: %s", details)
  if options.lora.rank:
    _save(
      workdir / "weights" / "adapters.safetensors",
      task.trained(params),
      options.lora,
      details,
    )
    params = task.exported(params)
  for name, part in (("dit", dit_config), ("image_encoder", encoder_config)):
    _save(
      workdir / "weights" / f"{name}.safetensors",
      params[name],
      part,
      details,
    )


def _observers(config, vae, scale):
  """What shows samples while the DiT is trained."""
  options = sample_callback.SampledConfig(**config.dit_training.samples)
  if not options.every:
    return ()
  return (sample_callback.SampledClips(options, config, vae, scale),)


def _take_vae(config, path):
  """Copies the autoencoder of the weights to start from."""
  folder = config.dit_training.init_from
  kind, part = model_lib.parts(config.model)["vae"]
  abstract = nnx.eval_shape(lambda: kind(part, rngs=nnx.Rngs(0)))
  params, details = model_folders.load(
    folder, "vae", nnx.split(abstract)[1], part, dtype="float32"
  )
  model_files.save(path, params, part, details | {"copied_from": str(folder)})


def _load_vae(config, path):
  """The autoencoder, and the factor of the latents that go with it."""
  model_config = shape_vae.ShapeVAEConfig(**config.model.vae)
  graphdef, abstract = nnx.split(
    nnx.eval_shape(lambda: shape_vae.ShapeVAE(model_config, rngs=nnx.Rngs(0)))
  )
  params, details = model_files.load(path, abstract, model_config)
  # Of a pretrained one, the configuration has it.
  scale = details.get("scale_factor", model_config.scale_factor)
  return nnx.merge(graphdef, params), scale
