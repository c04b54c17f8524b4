"""Sources of training clips: procedural, or records of assets.

Both kinds of source provide the batches of the stages and encode their clips in
between; nothing else in a training depends on the kind.
"""

from collections.abc import Callable
import dataclasses
import hashlib
import itertools
import json
import shutil
from typing import Any, Protocol, TypeVar

from absl import logging
from flax import nnx
import jax
import orbax.checkpoint as ocp

from sculpt4d_jax.data import batches as batches_lib
from sculpt4d_jax.data.loading import batches as record_batches
from sculpt4d_jax.data.loading import examples as record_examples
from sculpt4d_jax.data.loading import loader as record_loader
from sculpt4d_jax.data.procedural import batches as store_batches
from sculpt4d_jax.data.procedural import store as record_store
from sculpt4d_jax.data.records import index as dataset_index
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io import paths
from sculpt4d_jax.io import uploads
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import networks
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training import latents as latents_lib
from sculpt4d_jax.training import preset as preset_lib
from sculpt4d_jax.training import record_latents
from sculpt4d_jax.training.tasks import dit as dit_task
from sculpt4d_jax.training.tasks import pictures as pictures_task
from sculpt4d_jax.training.tasks import vae as vae_task
from sculpt4d_jax.weights import model_folders

# Longest wait of a process for another one, in seconds.
_MAX_WAIT = 7 * 24 * 3600
# Object that marks a store's procedural clips as complete.
_WHOLE = "whole"
_barriers = itertools.count()  # Names of barriers are never used twice.

# Options of the tasks that train on records.
_TaskConfig = (
  vae_task.VAETaskConfig
  | pictures_task.PictureTaskConfig
  | dit_task.DiTTaskConfig
)
_Result = TypeVar("_Result")


class Source(Protocol):
  """Clips for both stages.

  Attributes:
    identity: JSON that must be the same when a run resumes.
  """

  identity: dict[str, Any]

  def surfaces(self, task: vae_task.VAETaskConfig) -> batches_lib.Batches:
    """Batches for the autoencoder."""

  def pictures(
    self, task: pictures_task.PictureTaskConfig
  ) -> batches_lib.Batches:
    """Batches for the pretraining of the image encoder."""

  def encode(
    self,
    vae: shape_vae.ShapeVAE,
    image_encoder: image_encoder_lib.ImageEncoder | None = None,
  ) -> float:
    """Encodes all clips unless it is done; returns the latents' scale.

    Args:
      vae: The trained autoencoder.
      image_encoder: The frozen image encoder; None where it is trained.
    """

  def latents(self, task: dit_task.DiTTaskConfig) -> batches_lib.Batches:
    """Batches for the DiT, of clips that are encoded."""


class ProceduralSource:
  """Procedural clips, stored in the working folder."""

  def __init__(self, preset: preset_lib.Preset, workdir: paths.PathLike):
    self._workdir = workdir
    self._num_choices = preset.dit_training.latent_choices
    self._num_uniform = preset.data.sizes.num_uniform
    self.identity = {"data": preset.data.fields()}
    self._train, self._held_out = _make_stores(preset.data, workdir / "data")
    self._latents: tuple[store_batches.LatentStore, ...] | None = None

  def surfaces(self, task: vae_task.VAETaskConfig) -> batches_lib.Batches:
    """Batches of the clips' surfaces and field samples."""
    return store_batches.SurfaceBatches(
      self._train,
      self._held_out,
      batch_size=task.batch_size,
      num_frames=task.num_frames,
      num_queries=task.num_queries,
      seed=task.seed,
    )

  def pictures(
    self, task: pictures_task.PictureTaskConfig
  ) -> batches_lib.Batches:
    """Batches of the clips' pictures and field samples."""
    return store_batches.PictureBatches(
      self._train,
      self._held_out,
      batch_size=task.batch_size,
      num_frames=task.num_frames,
      num_queries=task.num_queries,
      seed=task.seed,
    )

  def encode(
    self,
    vae: shape_vae.ShapeVAE,
    image_encoder: image_encoder_lib.ImageEncoder | None = None,
  ) -> float:
    """Encodes the clips, or reads the file of an earlier encoding."""
    del image_encoder  # Pictures are small: they are encoded in the step.

    def encode() -> tuple[store_batches.LatentStore, ...]:
      return tuple(
        latents_lib.encode_store(
          self._workdir / "vae" / f"latents_{name}.npz",
          store,
          vae,
          num_uniform=self._num_uniform,
          num_choices=self._num_choices,
        )
        for name, store in (
          ("train", self._train),
          ("held_out", self._held_out),
        )
      )

    # Only the first process computes.
    self._latents = _first_process_first(encode, "latents")
    return self._latents[0].scale

  def latents(self, task: dit_task.DiTTaskConfig) -> batches_lib.Batches:
    """Batches of the clips' latents and pictures; needs `encode` first."""
    if self._latents is None:
      raise UserError("The clips are not encoded yet: call encode first.")
    return store_batches.LatentBatches(
      (self._train, self._latents[0]),
      (self._held_out, self._latents[1]),
      batch_size=task.batch_size,
      num_samples=task.num_points,
      seed=task.seed,
    )


class RecordSource:
  """Records of assets, made by launch.prepare_data."""

  def __init__(self, preset: preset_lib.Preset):
    self._preset = preset
    self._records = preset.records
    self._folders = list(preset.records.folders)
    self._names: dict[str, str] = {}
    self.example = preset.records.example
    # Identities of clips contain the hashes of their assets. Held-out clips are
    # left out: no training step sees them.
    digest = hashlib.sha256()
    for folder in self._folders:
      for clip in dataset_index.read_index(folder).splits["train"]:
        digest.update(clip.clip.encode())
    # Folders may move; their content must not change.
    self.identity = {"training clips": digest.hexdigest()}
    if not any(
      dataset_index.read_index(folder).splits["test"]
      for folder in self._folders
    ):
      logging.warning(
        "The test split of %s has no clips: nothing is evaluated. With only a"
        " few assets, prepare the data with a larger test fraction.",
        ", ".join(self._folders),
      )

  def surfaces(self, task: vae_task.VAETaskConfig) -> batches_lib.Batches:
    """Batches of surfaces and field samples, of any frames of a clip."""
    example = dataclasses.replace(
      self.example,
      # The autoencoder knows no time, so any frames will do.
      contents=("geometry",),
      num_frames=task.num_frames,
      consecutive=False,
      num_samples=task.num_queries,
    )
    return self._batches(task, example)

  def pictures(
    self, task: pictures_task.PictureTaskConfig
  ) -> batches_lib.Batches:
    """Batches of pictures and field samples, of any frames of a clip."""
    example = dataclasses.replace(
      self.example,
      # Field samples alone: the surface points of the same entries would be
      # copied to the devices for nothing.
      contents=("images", "samples"),
      num_frames=task.num_frames,
      consecutive=False,
      num_samples=task.num_queries,
    )
    return self._batches(task, example)

  def encode(
    self,
    vae: shape_vae.ShapeVAE,
    image_encoder: image_encoder_lib.ImageEncoder | None = None,
  ) -> float:
    """Computes the missing shards of this process, and waits for all."""
    job = posterior_job(self._preset, vae)
    jobs = [job]
    self._names = {"posterior": job.name}
    if self._records.use_features and image_encoder is not None:
      jobs.append(feature_job(self._preset, image_encoder))
      self._names["features"] = jobs[-1].name
    # Each process computes its share of the shards, then all wait.
    for each in jobs:
      record_latents.precompute(
        self._folders,
        each,
        share=jax.process_index(),
        num_shares=jax.process_count(),
      )
      wait_for_all(each.folder)
    return record_latents.latent_scale(self._folders, job.name)

  def latents(self, task: dit_task.DiTTaskConfig) -> batches_lib.Batches:
    """Batches of latents, with pictures or tokens; needs `encode` first."""
    if not self._names:
      raise UserError("The clips are not encoded yet: call encode first.")
    shown = "features" if self._records.use_features else "images"
    if shown == "features" and shown not in self._names:
      raise UserError(
        "records.use_features is for an image encoder that does not learn:"
        " set dit_training.train_image_encoder=False and give its weights by"
        " dit_training.init_from."
      )
    samples = task.num_points
    example = dataclasses.replace(
      self.example,
      contents=("posterior", shown) + (("samples",) if samples else ()),
      num_samples=samples,
      **self._names,
    )
    return self._batches(task, example)

  def _batches(
    self, task: _TaskConfig, example: record_examples.ExampleConfig
  ) -> batches_lib.Batches:
    options = self._records
    loader = record_loader.LoaderConfig(
      batch_size=task.batch_size,
      seed=task.seed,
      example=example,
      num_threads=options.num_threads,
      num_workers=options.num_workers,
      prefetch=options.prefetch,
    )
    return record_batches.RecordBatches(
      self._folders, loader, num_frames=self.example.num_frames
    )


def posterior_job(
  preset: preset_lib.Preset, vae: shape_vae.ShapeVAE
) -> record_latents.PosteriorJob:
  """The job that a training by this preset needs."""
  settings = record_latents.LatentSettings(
    preset.records.example, preset.dit_training.latent_choices
  )
  return record_latents.PosteriorJob(vae, settings)


def feature_job(
  preset: preset_lib.Preset,
  image_encoder: image_encoder_lib.ImageEncoder,
) -> record_latents.FeatureJob:
  """The job that a training by this preset needs."""
  settings = record_latents.LatentSettings(preset.records.example)
  return record_latents.FeatureJob(image_encoder, settings)


def load_module(
  model: networks.NetworkConfigs, folder: paths.PathLike, name: str
) -> nnx.Module:
  """One of a preset's networks with weights, in float32.

  Args:
    model: Configurations of the networks.
    folder: Folder of weights.
    name: "vae", "image_encoder" or "dit".

  Raises:
    model_files.ModelFileError: The weights are missing or do not fit.
  """
  kind, part = model.parts()[name]
  graphdef, params = networks.abstract(kind, part)
  return nnx.merge(
    graphdef, model_folders.load(folder, name, params, part, "float32")[0]
  )


def check_identity(folder: paths.PathLike, source: Source) -> None:
  """Makes sure that a resumed stage continues with the data it began with.

  Raises:
    ValueError: The data differ.
  """
  path = folder / "data.json"
  if path.is_file():
    found = json.loads(path.read_text())
    if found != source.identity:
      raise UserError(
        f"The data of {folder} have changed since its training began, and"
        " its steps would not see the clips they would have seen. Take"
        f" another --workdir, or delete {path} to continue anyway."
      )
  # All have read the file (or found none) before the first process writes it.
  wait_for_all(f"identity of {folder.name}")
  if jax.process_index() == 0 and not path.is_file():
    with atomic.output_errors(folder):
      folder.mkdir(parents=True, exist_ok=True)
    atomic.write_bytes(path, json.dumps(source.identity, indent=1).encode())


def wait_for_all(name: str) -> None:
  """Waits for all processes, which may take hours."""
  if jax.process_count() == 1:
    return
  # A collective of the devices would time out after seconds.
  ocp.multihost.sync_global_processes(
    f"{name} {next(_barriers)}",
    timeout=_MAX_WAIT,
    processes=set(range(jax.process_count())),
  )


def _make_stores(
  data: preset_lib.DataConfig, folder: paths.PathLike
) -> tuple[record_store.RecordStore, ...]:
  """The training and the held-out split of procedural clips."""
  splits = {
    "train": (data.num_clips, data.first_seed),
    "held_out": (data.num_held_out, data.held_out_seed),
  }

  # Stores are memory-mapped, so each machine keeps a local copy of a remote
  # folder.
  local = local_copies.scratch(folder)

  def open_or_make():
    return tuple(
      record_store.open_or_make(
        local / name,
        num_clips=num_clips,
        num_frames=data.num_frames,
        first_seed=seed,
        sizes=data.sizes,
      )
      for name, (num_clips, seed) in splits.items()
    )

  if not paths.is_remote(folder):
    return _first_process_first(open_or_make, "data")

  #   first process   copies or makes, uploads, marks, opens |
  #   all others                                             | copy, open
  #
  # Processes of one machine share `local`, hence the lock.
  def copy_or_make():
    is_there = (folder / _WHOLE).exists()
    with local_copies.locked(local):
      if is_there:
        local_copies.fetch_into(folder, local)
      try:
        stores = open_or_make()
      except record_store.OtherKindError:
        if is_there:
          raise
        # A stale copy of an earlier run in the cache may be deleted.
        shutil.rmtree(local)
        stores = open_or_make()
    # The mark is written last: it says that the rest is complete.
    if jax.process_index() == 0 and not is_there:
      uploads.upload_folder(local, folder, leave_out=local_copies.OWN)
      (folder / _WHOLE).write_bytes(b"")
    return stores

  return _first_process_first(copy_or_make, "data")


def _first_process_first(make: Callable[[], _Result], name: str) -> _Result:
  """Calls `make` on the first process first; the others find its files."""
  if jax.process_count() == 1:
    return make()
  # The second call of `make` finds everything done, and only opens it.
  result = make() if jax.process_index() == 0 else None
  wait_for_all(name)
  return make() if result is None else result
