"""A preset as frozen dataclasses, built once from its configuration file.

Programs read a ConfigDict (`configs/base.py` lists every field); everything
below them takes the typed sections of a `Preset`. A misspelt field or invalid
value fails here, before any work.
"""

from collections.abc import Mapping
import dataclasses
from typing import Any

import ml_collections

from sculpt4d_jax import partitioning
from sculpt4d_jax.data.loading import examples as record_examples
from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.diffusion import frame_times
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import sampling as sampling_lib
from sculpt4d_jax.models import lora as lora_lib
from sculpt4d_jax.models import networks
from sculpt4d_jax.training import optimizer as optimizer_lib
from sculpt4d_jax.training import parameter_groups
from sculpt4d_jax.training import schedule as schedule_lib
from sculpt4d_jax.training.tasks import distillation as distillation_task
from sculpt4d_jax.training.tasks import dit as dit_task
from sculpt4d_jax.training.tasks import pictures as pictures_task
from sculpt4d_jax.training.tasks import vae as vae_task


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Procedural clips, and sizes that also apply to records.

  Attributes:
    num_clips: Number of clips of the training split.
    num_held_out: Number of clips of the held-out split.
    num_frames: Number of frames F of a clip.
    first_seed: Seed of the first training clip.
    held_out_seed: Seed of the first held-out clip; the splits are disjoint.
    sizes: Sizes of one record.
  """

  num_clips: int
  num_held_out: int
  num_frames: int
  first_seed: int
  held_out_seed: int
  sizes: clip_records.RecordSizes

  def __post_init__(self):
    train = range(self.first_seed, self.first_seed + self.num_clips)
    held_out = range(self.held_out_seed, self.held_out_seed + self.num_held_out)
    if train.start < held_out.stop and held_out.start < train.stop:
      raise UserError(
        f"Seeds of the training clips ({train.start} to {train.stop - 1}) and"
        f" of the held-out clips ({held_out.start} to {held_out.stop - 1})"
        " overlap; choose other first seeds."
      )

  def fields(self) -> dict[str, Any]:
    """The section as in its configuration: JSON types, no nesting."""
    fields = dataclasses.asdict(self)
    sizes = fields.pop("sizes")
    del sizes["near_deviations"], sizes["picture_frame"]
    return fields | {
      name: list(value) if isinstance(value, tuple) else value
      for name, value in sizes.items()
    }


@dataclasses.dataclass(frozen=True)
class RecordsConfig:
  """Records of assets that training reads instead of procedural clips.

  Attributes:
    folders: Data sets of launch.prepare_data; none trains on procedural clips.
    share: Fraction of a batch's clips that are records; the others are
      procedural.
    use_features: Whether precomputed tokens of the image encoder are read
      instead of pictures.
    num_threads: Number of threads that read and decode in each process.
    num_workers: Number of processes that do so instead of threads.
    prefetch: Number of batches that are read ahead.
    example: Parts of a record that are read.
  """

  folders: tuple[str, ...]
  share: float
  use_features: bool
  num_threads: int
  num_workers: int
  prefetch: int
  example: record_examples.ExampleConfig


@dataclasses.dataclass(frozen=True)
class PictureTraining:
  """Pretraining of the image encoder, before the DiT's training.

  Attributes:
    task: Batches and loss.
    optimizer: Optimizer and number of steps.
    schedule: Steps at which the run logs, evaluates and saves.
  """

  task: pictures_task.PictureTaskConfig
  optimizer: optimizer_lib.OptimizerConfig
  schedule: schedule_lib.Schedule


@dataclasses.dataclass(frozen=True)
class VAETraining:
  """Training of the autoencoder.

  Attributes:
    task: Batches and loss.
    optimizer: Optimizer and number of steps.
    schedule: Steps at which the run logs, evaluates and saves.
    init_from: Folder of weights to start from, or "".
  """

  task: vae_task.VAETaskConfig
  optimizer: optimizer_lib.OptimizerConfig
  schedule: schedule_lib.Schedule
  init_from: str


@dataclasses.dataclass(frozen=True)
class SampledConfig:
  """Held-out clips that are sampled while the DiT is trained.

  Attributes:
    every: Number of steps between samples; 0 samples nothing.
    num_clips: Number of clips, the first held-out procedural ones.
    num_steps: Number of steps of the sampler.
    resolution: Number of cells of the surface's grid along an axis.
    num_points: Number of points of a surface for Chamfer distance and F-Score.
  """

  every: int
  num_clips: int
  num_steps: int
  resolution: int
  num_points: int

  def __post_init__(self):
    if self.every < 0 or self.num_clips < 1:
      raise UserError(
        f"samples.every={self.every} must not be negative and"
        f" samples.num_clips={self.num_clips} at least 1."
      )


@dataclasses.dataclass(frozen=True)
class DiTTraining:
  """Training of the diffusion transformer.

  Attributes:
    task: Batches and loss.
    optimizer: Optimizer and number of steps.
    schedule: Steps at which the run logs, evaluates and saves.
    init_from: Folder of weights to start from, or "".
    latent_choices: Number of draws of the autoencoder's query rows for each
      clip.
    samples: Clips that are sampled in training.
  """

  task: dit_task.DiTTaskConfig
  optimizer: optimizer_lib.OptimizerConfig
  schedule: schedule_lib.Schedule
  init_from: str
  latent_choices: int
  samples: SampledConfig


@dataclasses.dataclass(frozen=True)
class Distillation:
  """Training of a few-step student.

  Attributes:
    task: Batches and loss.
    optimizer: Optimizer and number of steps.
    schedule: Steps at which the run logs, evaluates and saves.
    init_from: Folder of the teacher's weights, or "".
  """

  task: distillation_task.DistillationConfig
  optimizer: optimizer_lib.OptimizerConfig
  schedule: schedule_lib.Schedule
  init_from: str


@dataclasses.dataclass(frozen=True)
class Preset:
  """All sections of a configuration file.

  Attributes:
    name: Name of the preset, for logs and run.json.
    weights: Folder of shipped weights, from the project's root, or "".
    model: Sizes of the networks.
    mesh: Use of the devices in training.
    data: Procedural clips.
    records: Records of assets.
    vae_training: The autoencoder's training.
    picture_training: Pretraining of the image encoder; None without it.
    dit_training: Training of the diffusion transformer.
    distillation: Training of a few-step student.
    sampling: Frames, steps and guidance of a sample.
    surface: Settings of the meshes.
  """

  name: str
  weights: str
  model: networks.NetworkConfigs
  mesh: partitioning.MeshConfig
  data: DataConfig
  records: RecordsConfig
  vae_training: VAETraining
  picture_training: PictureTraining | None
  dit_training: DiTTraining
  distillation: Distillation
  sampling: sampling_lib.SamplingConfig
  surface: pipeline.SurfaceConfig


def from_config(config: ml_collections.ConfigDict) -> Preset:
  """Builds the typed preset of a configuration.

  Args:
    config: Configuration from a file of `configs/`, with or without overrides.

  Raises:
    ValueError: A field is unknown or missing, or has an invalid value.
  """
  fields = config.to_dict()
  in_picture = fields["model"]["dit"]["picture_frame"]
  data = _data(fields.pop("data") | {"picture_frame": in_picture})
  model = networks.NetworkConfigs(
    **{
      name: _make(kind, fields["model"].pop(name), f"model.{name}")
      for name, (_, kind) in networks.KINDS.items()
    }
  )
  del fields["model"]
  return _make(
    Preset,
    fields
    | {
      "model": model,
      "mesh": _make(partitioning.MeshConfig, fields["mesh"], "mesh"),
      "data": data,
      "records": _records(fields["records"], data),
      "vae_training": _vae_training(fields["vae_training"]),
      "picture_training": _picture_training(fields["picture_training"]),
      "dit_training": _dit_training(fields["dit_training"]),
      "distillation": _distillation(fields["distillation"]),
      "sampling": _make(
        sampling_lib.SamplingConfig, fields["sampling"], "sampling"
      ),
      "surface": _make(pipeline.SurfaceConfig, fields["surface"], "surface"),
    },
    "",
  )


def _data(fields: dict[str, Any]) -> DataConfig:
  sizes = {
    field.name: fields.pop(field.name)
    for field in dataclasses.fields(clip_records.RecordSizes)
    if field.name in fields
  }
  sizes["elevations"] = tuple(sizes["elevations"])
  made = _make(clip_records.RecordSizes, sizes, "data")
  return _make(DataConfig, fields | {"sizes": made}, "data")


def _records(fields: dict[str, Any], data: DataConfig) -> RecordsConfig:
  folders = tuple(x.strip() for x in fields.pop("folders").split(","))
  own = ("share", "use_features", "num_threads", "num_workers", "prefetch")
  options = {name: fields.pop(name) for name in own}
  example = fields | {
    "num_frames": data.num_frames,
    "num_uniform": data.sizes.num_uniform,
    "num_sharp": data.sizes.num_sharp,
    "image_size": data.sizes.image_size,
    "picture_frame": data.sizes.picture_frame,
    "border_ratio": tuple(fields["border_ratio"]),
  }
  return RecordsConfig(
    folders=tuple(filter(None, folders)),
    example=_make(record_examples.ExampleConfig, example, "records"),
    **options,
  )


def _vae_training(fields: dict[str, Any]) -> VAETraining:
  section = "vae_training"
  optimizer = fields.pop("optimizer")
  schedule = schedule_lib.take(fields)
  init_from = fields.pop("init_from")
  return VAETraining(
    task=_make(vae_task.VAETaskConfig, fields, section),
    optimizer=_make(
      optimizer_lib.OptimizerConfig, optimizer, f"{section}.optimizer"
    ),
    schedule=schedule,
    init_from=init_from,
  )


def _picture_training(fields: dict[str, Any]) -> PictureTraining | None:
  section = "picture_training"
  optimizer = fields.pop("optimizer")
  schedule = schedule_lib.take(fields)
  task = _make(pictures_task.PictureTaskConfig, fields, section)
  if not optimizer["num_steps"]:
    return None
  return PictureTraining(
    task=task,
    optimizer=_make(
      optimizer_lib.OptimizerConfig, optimizer, f"{section}.optimizer"
    ),
    schedule=schedule,
  )


def _dit_training(fields: dict[str, Any]) -> DiTTraining:
  section = "dit_training"
  optimizer = fields.pop("optimizer")
  schedule = schedule_lib.take(fields)
  own = {name: fields.pop(name) for name in ("init_from", "latent_choices")}
  samples = _make(SampledConfig, fields.pop("samples"), f"{section}.samples")
  lora = _make(lora_lib.LoRAConfig, fields["lora"], f"{section}.lora")
  if lora.rank:
    # Only adapters of the DiT are trained, even if the preset trains more from
    # scratch.
    fields |= {"train_image_encoder": False, "context_field_weight": 0.0}
  times = _make(
    frame_times.FrameTimesConfig,
    fields["frame_times"],
    f"{section}.frame_times",
  )
  made = {"lora": lora, "frame_times": times}
  task = _make(dit_task.DiTTaskConfig, fields | made, section)
  if not task.train_image_encoder:
    # Otherwise weight decay would still change an encoder that is not trained.
    frozen = parameter_groups.as_names(optimizer["frozen"])
    frozen = {*frozen, "image_encoder"}
    optimizer["frozen"] = tuple(sorted(frozen))
  return DiTTraining(
    task=task,
    optimizer=_make(
      optimizer_lib.OptimizerConfig, optimizer, f"{section}.optimizer"
    ),
    schedule=schedule,
    samples=samples,
    **own,
  )


def _distillation(fields: dict[str, Any]) -> Distillation:
  section = "distillation"
  optimizer = _make(
    optimizer_lib.OptimizerConfig,
    fields.pop("optimizer"),
    f"{section}.optimizer",
  )
  schedule = schedule_lib.take(fields)
  init_from = fields.pop("init_from")
  lora = _make(lora_lib.LoRAConfig, fields["lora"], f"{section}.lora")
  own = {"lora": lora, "num_steps": optimizer.num_steps}
  return Distillation(
    task=_make(distillation_task.DistillationConfig, fields | own, section),
    optimizer=optimizer,
    schedule=schedule,
    init_from=init_from,
  )


def _make(kind: type[Any], fields: Mapping[str, Any], section: str) -> Any:
  """Makes a dataclass; raises ValueError for an unknown or missing field."""
  known = {field.name: field for field in dataclasses.fields(kind)}
  where = f"config.{section}" if section else "config"
  unknown = sorted(set(fields) - set(known))
  if unknown:
    raise UserError(
      f"{where} has no field {', '.join(unknown)}; it has"
      f" {', '.join(sorted(known))}."
    )
  missing = sorted(
    name
    for name, field in known.items()
    if name not in fields
    and field.default is dataclasses.MISSING
    and field.default_factory is dataclasses.MISSING
  )
  if missing:
    raise UserError(f"{where} lacks {', '.join(missing)}.")
  return kind(**fields)
