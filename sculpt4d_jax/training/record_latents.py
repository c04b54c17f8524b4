"""Latents and image features of records, computed once, in shards next to them.

  posteriors/NAME/SHARD   mean and log-variance of every frame; each use draws a
                          sample, with ONE noise for a clip
  features/NAME/SHARD     the image encoder's tokens of every view

There is one of each for every shard of records. A shard appears complete or not
at all, so an interrupted job resumes with the missing shards, and any number of
jobs can share the work. NAME is a hash of the encoder's weights and of
everything else that affects the result, so stale latents are never used. One
clip is in memory at a time.

A clip has several posteriors: of the object and its mirror image, for several
draws of the encoder's query rows, and for each view if objects are turned to
the camera. `precomputed.posterior_part` numbers them.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import hashlib
import json
import pathlib
from typing import Any
import zlib

from absl import logging
from flax import nnx
import jax
import jax.numpy as jnp
import numpy as np
import tqdm

from sculpt4d_jax import array_types
from sculpt4d_jax.data.loading import examples as record_examples
from sculpt4d_jax.data.records import index as dataset_index
from sculpt4d_jax.data.records import schema
from sculpt4d_jax.data.records import shards as record_files
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths
from sculpt4d_jax.models import image_encoder as image_encoder_lib
from sculpt4d_jax.models import shape_vae
from sculpt4d_jax.training.tasks import vae as vae_task

Array = array_types.Array
Reader = record_examples.ExampleReader
_Config = shape_vae.ShapeVAEConfig | image_encoder_lib.ImageEncoderConfig

# Hexadecimal digits, 48 bits: enough to tell the few encoders of a data set
# apart, in a name that people can still compare.
_NAME_LENGTH = 12


@dataclasses.dataclass(frozen=True)
class LatentSettings:
  """Settings of the precomputation.

  Attributes:
    example: Rows, views and pictures to encode; the same as training reads.
    choices: Number of draws of the autoencoder's query rows.
    seed: Seed of the draws.
  """

  example: record_examples.ExampleConfig
  choices: int = 1
  seed: int = 0

  @property
  def mirrors(self) -> int:
    """Number of encodings of a view: 2 with the mirror image, else 1."""
    return 2 if self.example.mirror else 1


class PosteriorJob:
  """Posteriors of an autoencoder."""

  kind = "posterior"
  folder = "posteriors"

  def __init__(self, vae: shape_vae.ShapeVAE, settings: LatentSettings):
    e = settings.example
    self.settings = settings
    # Only what the encoder reads. The folders of posteriors and features are
    # what these jobs make.
    self.example = dataclasses.replace(
      e, contents=("geometry",), num_samples=0, posterior="", features=""
    )
    self._num_uniform = e.num_uniform
    self.name = _name(
      vae,
      vae.config,
      settings,
      # The fields that change what the encoder is given. Sizes of pictures are
      # not among them, nor the number of frames: all frames are encoded.
      (
        "num_parts",
        "num_uniform",
        "num_sharp",
        "turn_to_camera",
        "picture_frame",
        "max_elevation",
        "mirror",
      ),
    )
    # Weights are an argument of the compiled function: as constants they would
    # be part of the program, a second copy in memory.
    graphdef, params = nnx.split(vae)
    config = vae.config

    @jax.jit
    def encode(
      params: nnx.State, surface: Array, key: Array
    ) -> shape_vae.Posterior:
      inputs, queries = vae_task.select_clip_rows(
        key, surface[None], config, self._num_uniform
      )
      posterior = nnx.merge(graphdef, params).encode(inputs, queries)
      return jax.tree.map(lambda x: x[0].astype(jnp.float16), posterior)

    self._encode = lambda *args: encode(params, *args)

  def details(self, reader: Reader, row: int) -> dict[str, Any]:
    """Views, mirror images and draws of a clip, stored with its shard."""
    # An object that is not turned has one pose for all views.
    turned = self.example.turn_to_camera
    return {
      "views": reader.views(row) if turned else [],
      "mirrors": self.settings.mirrors,
      "choices": self.settings.choices,
    }

  def entries(
    self, reader: Reader, row: int, details: dict[str, Any]
  ) -> Iterator[dict[str, np.ndarray]]:
    """Yields a clip's posteriors; adds their second moment to `details`."""
    clip = reader.clip(row).clip
    moments, number = [], 0
    for view in details["views"] or [0]:
      for mirrored in range(details["mirrors"]):
        for _ in range(details["choices"]):
          # From the clip's identity, not its row: a clip that is added to the
          # data set changes no other clip's posteriors.
          seed = _seed(self.settings.seed, clip, number)
          example = reader.read_variant(
            row, view, bool(mirrored), np.random.default_rng(seed)
          )
          posterior = self._encode(
            example["surface"], jax.random.key(seed % 2**31)
          )
          mean, log_variance = map(
            np.asarray, (posterior.mean, posterior.log_variance)
          )
          # The mean square of a sample is mean^2 + variance in expectation, so
          # none has to be drawn.
          moments.append(
            np.mean(
              mean.astype(np.float64) ** 2
              + np.exp(log_variance.astype(np.float64))
            )
          )
          number += 1
          yield {"mean": mean, "log_variance": log_variance}
    # In the table of contents, so that `latent_scale` reads no posteriors.
    details["moment"] = float(np.mean(moments))


class FeatureJob:
  """Tokens of a frozen image encoder."""

  kind = "features"
  folder = "features"

  def __init__(
    self,
    encoder: image_encoder_lib.ImageEncoder,
    settings: LatentSettings,
  ):
    e = settings.example
    # Tokens are computed once for each view, so that a picture cannot be
    # augmented: it has the middle of the margins and its own colours.
    border = sum(e.border_ratio) / 2
    self.settings = settings
    self.example = dataclasses.replace(
      e,
      contents=("images",),
      colour_jitter=0.0,
      posterior="",
      features="",
      border_ratio=(border, border),
    )
    self.name = _name(
      encoder,
      encoder.config,
      # Draws of query rows do not affect pictures and must not change the name.
      dataclasses.replace(settings, choices=1),
      ("image_size", "border_ratio", "max_elevation", "mirror"),
    )
    graphdef, params = nnx.split(encoder)

    @jax.jit
    def encode(params: nnx.State, images: Array) -> Array:
      module = nnx.merge(graphdef, params)
      # Frame by frame: a clip of full size would need 16 times the memory.
      one = lambda x: module(x[None].astype(jnp.float32) / 127.5 - 1.0)[0]
      return jax.lax.map(one, images).astype(jnp.float16)

    self._encode = lambda images: encode(params, images)

  def details(self, reader: Reader, row: int) -> dict[str, Any]:
    """Views and mirror images of a clip, stored with its shard."""
    return {
      "views": reader.views(row),
      "mirrors": self.settings.mirrors,
      "choices": 1,
    }

  def entries(
    self, reader: Reader, row: int, details: dict[str, Any]
  ) -> Iterator[dict[str, np.ndarray]]:
    """Yields a clip's tokens for each view and mirror image."""
    rng = np.random.default_rng
    for view in details["views"]:
      for mirrored in range(details["mirrors"]):
        # These settings leave nothing to draw, so any seed will do.
        example = reader.read_variant(row, view, bool(mirrored), rng(0))
        yield {"tokens": np.asarray(self._encode(example["images"]))}


Job = PosteriorJob | FeatureJob


def precompute(
  folders: Sequence[paths.PathLike],
  job: Job,
  *,
  share: int = 0,
  num_shares: int = 1,
) -> int:
  """Computes the missing shards of a job.

  Args:
    folders: Data sets.
    job: The computation.
    share: Index of this worker's share of the shards.
    num_shares: Number of workers.

  Returns:
    Number of clips that were computed; the others existed.

  Raises:
    RecordError: There is no data set, or a record is damaged.
    OutputError: A shard cannot be written.
  """
  work = []
  for folder in folders:
    index = dataset_index.read_index(folder)
    by_shard: dict[str, list[tuple[Reader, int]]] = {}
    for split in dataset_index.SPLITS:
      reader = record_examples.ExampleReader(index, split, job.example)
      for row in range(len(reader)):
        # Clips of both splits may share a shard.
        by_shard.setdefault(reader.clip(row).shard, []).append((reader, row))
    for shard, clips in sorted(by_shard.items()):
      work.append((index.folder / job.folder / job.name / shard, clips))
  # Divided before looking for what is missing: workers that start at different
  # times see different files, but must agree on their shares.
  work = work[share::num_shares]
  missing = [item for item in work if not _is_done(job, *item)]
  total = sum(len(clips) for _, clips in work)
  todo = sum(len(clips) for _, clips in missing)
  logging.info(
    "%s %s: %d of %d clips are still to be computed.",
    job.folder.capitalize(),
    job.name,
    todo,
    total,
  )
  with tqdm.tqdm(
    total=total,
    initial=total - todo,
    desc=job.folder,
    mininterval=2.0,
    # Omitted by the first worker, since False would override TQDM_DISABLE.
    **({"disable": True} if share else {}),
  ) as progress:
    for path, clips in missing:
      _write(job, path, clips, progress)
  return todo


def _write(
  job: Job,
  path: pathlib.Path | paths.StorePath,
  clips: Sequence[tuple[Reader, int]],
  progress: tqdm.tqdm,
) -> None:
  details: dict[str, dict[str, Any]] = {}

  def entries() -> Iterator[record_files.Entry]:
    for reader, row in clips:
      clip = reader.clip(row).clip
      details[clip] = job.details(reader, row)
      for part, arrays in enumerate(job.entries(reader, row, details[clip])):
        content = schema.encode(job.kind, clip, arrays, part)
        yield clip, job.kind, part, content
      progress.update()

  with atomic.output_errors(path.parent):
    path.parent.mkdir(parents=True, exist_ok=True)
  # Filled while the entries are written; read for the table of contents, which
  # is a shard's last entry.
  record_files.write_shard(path, entries(), details)


def _is_done(
  job: Job,
  path: pathlib.Path | paths.StorePath,
  clips: Sequence[tuple[Reader, int]],
) -> bool:
  """Whether a shard exists for the clips that the index has now."""
  if not path.is_file():
    return False
  shards = record_files.ShardReader(path.parent)
  try:
    contents = shards.contents(path.name)
  except record_files.RecordError as error:
    logging.warning("%s; it is made again.", error)
    return False
  finally:
    shards.close()
  return {reader.clip(row).clip for reader, row in clips} <= set(contents)


def latent_scale(folders: Sequence[paths.PathLike], name: str) -> float:
  """The factor that gives the training clips' latents a variance of 1.

  Raises:
    RecordError: Posteriors are missing.
  """
  moments = []
  for folder in folders:
    index = dataset_index.read_index(folder)
    shards = record_files.ShardReader(index.folder / PosteriorJob.folder / name)
    # Held-out clips must not influence what is trained.
    for clip in index.splits["train"]:
      moments.append(
        shards.contents(clip.shard)[clip.clip]["details"]["moment"]
      )
    shards.close()
  return float(np.mean(moments) ** -0.5)


def _seed(seed: int, clip: str, number: int) -> int:
  return zlib.crc32(f"{seed} {clip} {number}".encode())


def _name(
  module: nnx.Module,
  config: _Config,
  settings: LatentSettings,
  fields: Sequence[str],
) -> str:
  """Hash of an encoder's weights and of all that affects its output."""
  digest = hashlib.sha256()
  shaping = {name: getattr(settings.example, name) for name in fields}
  shaping |= {
    "choices": settings.choices,
    "seed": settings.seed,
    "config": _plain(config),
  }
  digest.update(json.dumps(shaping, sort_keys=True, default=str).encode())
  leaves = jax.tree_util.tree_flatten_with_path(nnx.split(module)[1])[0]
  for path, leaf in leaves:
    digest.update(jax.tree_util.keystr(path).encode())
    digest.update(np.ascontiguousarray(leaf).tobytes())
  return digest.hexdigest()[:_NAME_LENGTH]


def _plain(config: _Config) -> dict[str, Any]:
  """The configuration's fields that change what is computed."""
  fields = dataclasses.asdict(config)
  # How blocks run, and the scale that is applied after encoding.
  for name in ("scan_unroll", "remat_policy", "scale_factor"):
    fields.pop(name, None)
  if fields.get("token_order") == "drawn":  # Keeps names of older folders.
    del fields["token_order"]
  return fields
