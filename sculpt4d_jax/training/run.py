"""A whole training from a preset: data, autoencoder, latents, DiT, weights."""

import dataclasses
import itertools
import pathlib

from absl import logging
from flax import nnx
import jax
import ml_collections
import orbax.checkpoint as ocp

from sculpt4d_jax import partitioning
from sculpt4d_jax.data import record_store
from sculpt4d_jax.data import synthetic_records
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.io import model_files
from sculpt4d_jax.io import model_folders
from sculpt4d_jax.models import dit as dit_lib
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import dit_task
from sculpt4d_jax.training import latents as latents_lib
from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import train
from sculpt4d_jax.training import vae_task

STAGES = ("data", "vae", "dit")
# Of one process for another, in seconds.
_MAX_WAIT = 7 * 24 * 3600
_barriers = itertools.count()  # Names of barriers are never used twice.
_EVERY = ("log_every", "eval_every", "save_every")

Stores = tuple[record_store.RecordStore, record_store.RecordStore]


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
    ValueError: A stage is unknown, or the one before it is not finished.
  """
  unknown = set(stages) - set(STAGES)
  if unknown:
    raise ValueError(
        f"Unknown stages {sorted(unknown)}; choose among {list(STAGES)}."
    )
  stores = make_data(config, workdir / "data")
  if "vae" in stages:
    train_vae(config, workdir, stores)
  if "dit" in stages:
    train_dit(config, workdir, stores)


def make_data(
    config: ml_collections.ConfigDict, folder: pathlib.Path
) -> Stores:
  """The training and the held-out split of procedural clips."""
  fields = config.data.to_dict()
  splits = {
      "train": (fields.pop("num_clips"), fields.pop("first_seed")),
      "held_out": (fields.pop("num_held_out"), fields.pop("held_out_seed")),
  }
  _check_disjoint(*splits.values())
  num_frames = fields.pop("num_frames")
  sizes = synthetic_records.RecordSizes(**fields)

  def open_or_make():
    return tuple(
        record_store.open_or_make(
            folder / name,
            num_clips=num_clips,
            num_frames=num_frames,
            first_seed=seed,
            sizes=sizes,
        )
        for name, (num_clips, seed) in splits.items()
    )

  return _first_process_first(open_or_make, "data")


def train_vae(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, stores: Stores
) -> None:
  """Trains the autoencoder and writes its weights and all latents."""
  options = config.vae_training.to_dict()
  optimizer = optimizer_lib.OptimizerConfig(**options.pop("optimizer"))
  every = {k: options.pop(k) for k in _EVERY}
  model_config = shape_vae.ShapeVAEConfig(**config.model.vae)
  task = vae_task.VAETask(
      vae_task.VAETaskConfig(**options),
      model_config,
      config.data.num_uniform,
      *stores,
  )
  params = train.train(
      task,
      optimizer,
      workdir / "vae",
      mesh=partitioning.MeshConfig(**config.mesh),
      seed=options["seed"],
      **every,
  )
  vae = nnx.merge(task.graphdef, params)
  latents = _encode(config, workdir, stores, vae)
  details = {
      "steps": optimizer.num_steps,
      "field_band": options["field_band"],
      "scale_factor": latents[0].scale,
      "eval": task.evaluate(params),
  }
  logging.info("Autoencoder: %s", details)
  _save(workdir / "weights" / "vae.safetensors", params, model_config, details)


def _encode(config, workdir, stores, vae):
  def encode():
    return tuple(
        latents_lib.encode_store(
            workdir / "vae" / f"latents_{name}.npz",
            store,
            vae,
            num_uniform=config.data.num_uniform,
            num_choices=config.dit_training.latent_choices,
        )
        for name, store in zip(("train", "held_out"), stores)
    )

  return _first_process_first(encode, "latents")


def _first_process_first(make, name):
  """Calls `make` on the first process; the others then find what it wrote."""
  if jax.process_count() == 1:
    return make()
  result = make() if jax.process_index() == 0 else None
  _wait_for_all(name)
  return make() if result is None else result


def _wait_for_all(name):
  """Waits for as long as the first process works, which may be hours."""
  # A collective of the devices would give up on it after seconds.
  ocp.multihost.sync_global_processes(
      f"{name} {next(_barriers)}",
      timeout=_MAX_WAIT,
      processes=set(range(jax.process_count())),
  )


def _save(path, params, model_config, details):
  """Writes weights on the first process; all go on when they are there."""
  if jax.process_index() == 0:
    model_files.save(path, params, model_config, details)
  if jax.process_count() > 1:
    _wait_for_all(path.name)


def dit_options(
    config: ml_collections.ConfigDict,
) -> tuple[dit_task.DiTTaskConfig, optimizer_lib.OptimizerConfig]:
  """The `dit_training` section of a preset, checked.

  An image encoder that does not learn is among the frozen groups: its weights
  would decay otherwise.
  """
  options = config.dit_training.to_dict()
  optimizer = options.pop("optimizer")
  for name in (*_EVERY, "latent_choices", "init_from"):
    del options[name]
  task = dit_task.DiTTaskConfig(**options)
  if not task.train_image_encoder:
    frozen = {*optimizer["frozen"], "image_encoder"}
    optimizer["frozen"] = tuple(sorted(frozen))
  return task, optimizer_lib.OptimizerConfig(**optimizer)


def train_dit(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, stores: Stores
) -> None:
  """Trains the DiT, and the image encoder with it if the preset says so."""
  vae_file = workdir / "weights" / "vae.safetensors"
  if not vae_file.exists() and config.dit_training.init_from:
    _take_vae(config, vae_file)
  if not vae_file.exists():
    raise ValueError(
        f"{vae_file} is missing: train the autoencoder first, with"
        " --stages=vae,dit, or start from weights that have one, with"
        " --config.dit_training.init_from."
    )
  vae, scale = _load_vae(config, vae_file)
  latents = tuple(
      dataclasses.replace(split, scale=scale)
      for split in _encode(config, workdir, stores, vae)
  )
  options, optimizer = dit_options(config)
  every = {k: config.dit_training[k] for k in _EVERY}
  init_from = config.dit_training.init_from
  dit_config = dit_lib.DiTConfig(**config.model.dit)
  encoder_config = image_encoder_lib.ImageEncoderConfig(
      **config.model.image_encoder
  )
  task = dit_task.DiTTask(
      options,
      dit_config,
      encoder_config,
      (stores[0], latents[0]),
      (stores[1], latents[1]),
      _load_parts(config, init_from) if init_from else None,
  )
  params = train.train(
      task,
      optimizer,
      workdir / "dit",
      mesh=partitioning.MeshConfig(**config.mesh),
      seed=options.seed,
      **every,
  )
  details = {"steps": optimizer.num_steps, "eval": task.evaluate(params)}
  logging.info("DiT: %s", details)
  for name, part in (("dit", dit_config), ("image_encoder", encoder_config)):
    _save(
        workdir / "weights" / f"{name}.safetensors",
        params[name],
        part,
        details,
    )


def _load_parts(config, folder):
  """Parameters of the image encoder and the DiT, to start from."""
  states = {}
  for name in ("image_encoder", "dit"):
    kind, part = model_lib.parts(config.model)[name]
    abstract = nnx.eval_shape(lambda: kind(part, rngs=nnx.Rngs(0)))
    states[name] = model_folders.load(
        folder, name, nnx.split(abstract)[1], part, dtype="float32"
    )[0]
  return states


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
      nnx.eval_shape(
          lambda: shape_vae.ShapeVAE(model_config, rngs=nnx.Rngs(0))
      )
  )
  params, details = model_files.load(path, abstract, model_config)
  # Of a pretrained one, the configuration has it.
  scale = details.get("scale_factor", model_config.scale_factor)
  return nnx.merge(graphdef, params), scale


def _check_disjoint(train_split, held_out_split):
  (num_train, first), (num_held_out, held_out) = train_split, held_out_split
  if first < held_out + num_held_out and held_out < first + num_train:
    raise ValueError(
        f"Seeds of the training clips ({first} to {first + num_train - 1}) and"
        f" of the held-out clips ({held_out} to"
        f" {held_out + num_held_out - 1}) overlap; choose other first seeds."
    )
