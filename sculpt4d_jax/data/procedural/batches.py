"""Batches of procedural clips; see `batches.Batches`."""

import dataclasses

import numpy as np

from sculpt4d_jax.data.procedural import drawing
from sculpt4d_jax.data.procedural import store as record_store

Batch = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class LatentStore:
  """Unscaled posteriors of the autoencoder for a split.

  Attributes:
    mean: float16 [clips, 2, choices, F, N, C]; the second axis is mirrored or
      not, the third the draw of query rows.
    log_variance: The same shape.
    scale: Factor that gives diffusion latents unit variance.
  """

  mean: np.ndarray
  log_variance: np.ndarray
  scale: float


class _StoreBatches:
  """Selection of clips for a step, shared by all stages."""

  def __init__(
    self,
    train: record_store.RecordStore,
    held_out: record_store.RecordStore,
    batch_size: int,
    seed: int,
  ):
    self._train = train
    self._held_out = held_out
    self._batch_size = batch_size
    self._seed = seed
    self.num_frames = train.num_frames
    self.num_held_out = held_out.num_clips

  def _draw(self, step: int) -> drawing.Draw:
    return drawing.draw(
      self._train.num_clips, self._batch_size, self._seed, step
    )

  def describe(self, step: int) -> str:
    """Names the clips of a step by their numbers; see `drawing.describe`."""
    return drawing.describe(self._draw(step))


def _held_out_draw(clip: int) -> drawing.Draw:
  return drawing.Draw(
    np.array([clip]), np.array([False]), np.random.default_rng(clip)
  )


class SurfaceBatches(_StoreBatches):
  """Surfaces and distances, for the autoencoder."""

  def __init__(
    self,
    train: record_store.RecordStore,
    held_out: record_store.RecordStore,
    *,
    batch_size: int,
    num_frames: int,
    num_queries: int,
    seed: int,
  ):
    """Takes `num_queries` samples of `num_frames` frames of each clip."""
    super().__init__(train, held_out, batch_size, seed)
    self._sizes = dict(num_frames=num_frames, num_queries=num_queries)

  def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
    """The surfaces of a step, or of some of its clips."""
    return drawing.surface_batch(
      self._train, self._draw(step), rows=rows, **self._sizes
    )

  def held_out(self, clip: int) -> Batch:
    """All frames and samples of a held-out clip; the same at every call."""
    return drawing.surface_batch(
      self._held_out,
      _held_out_draw(clip),
      num_frames=self._held_out.num_frames,
      num_queries=self._held_out.samples.shape[2],
    )


class PictureBatches(_StoreBatches):
  """Pictures and distances of single frames, for the image encoder."""

  def __init__(
    self,
    train: record_store.RecordStore,
    held_out: record_store.RecordStore,
    *,
    batch_size: int,
    num_frames: int,
    num_queries: int,
    seed: int,
  ):
    """Takes `num_queries` samples of `num_frames` frames of each clip."""
    super().__init__(train, held_out, batch_size, seed)
    self._sizes = dict(num_frames=num_frames, num_queries=num_queries)

  def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
    """The pictures of a step, or of some of its clips."""
    return drawing.picture_batch(
      self._train, self._draw(step), rows=rows, **self._sizes
    )

  def held_out(self, clip: int) -> Batch:
    """All frames and samples of a held-out clip; the same at every call."""
    return drawing.picture_batch(
      self._held_out,
      _held_out_draw(clip),
      num_frames=self._held_out.num_frames,
      num_queries=self._held_out.samples.shape[2],
    )


class LatentBatches(_StoreBatches):
  """Posteriors and pictures, for the DiT."""

  def __init__(
    self,
    train: tuple[record_store.RecordStore, LatentStore],
    held_out: tuple[record_store.RecordStore, LatentStore],
    *,
    batch_size: int,
    num_samples: int,
    seed: int,
  ):
    """Takes `num_samples` distance samples a frame too, if not 0."""
    super().__init__(train[0], held_out[0], batch_size, seed)
    self._latents = {"train": train[1], "held_out": held_out[1]}
    self._num_samples = num_samples

  def batch(self, step: int, rows: np.ndarray | None = None) -> Batch:
    """The posteriors of a step, or of some of its clips."""
    return self._batch(
      self._train, self._latents["train"], self._draw(step), rows
    )

  def held_out(self, clip: int) -> Batch:
    """The posteriors of a held-out clip; the same at every call."""
    return self._batch(
      self._held_out, self._latents["held_out"], _held_out_draw(clip), None
    )

  def _batch(
    self,
    store: record_store.RecordStore,
    latents: LatentStore,
    whole: drawing.Draw,
    local: np.ndarray | None,
  ) -> Batch:
    choices = whole.rng.integers(latents.mean.shape[2], size=len(whole.clips))
    drawn = whole
    if local is not None:
      drawn, choices = whole.take(local), choices[local]
    rows = (drawn.clips, drawn.mirrored.astype(int), choices)
    batch = {
      "mean": latents.mean[rows],
      "log_variance": latents.log_variance[rows],
      "images": drawing.image_batch(store, drawn),
    }
    if self._num_samples:
      batch["samples"] = drawing.surface_batch(
        store,
        whole,
        num_frames=store.num_frames,
        num_queries=self._num_samples,
        keep_order=True,
        rows=local,
      )["samples"]
    return batch
