"""Draws batches: clips, frames and mirroring.

A batch depends only on the seed and the step, so an interrupted run resumes
with exactly the same batches. Each epoch visits every clip once in a different
order.

Mirroring swaps left and right of the object and its pictures alike, which
doubles the number of different clips.
"""

import dataclasses

import numpy as np

from sculpt4d_jax.data.procedural import store as record_store
from sculpt4d_jax.errors import UserError

# A mirror across the plane x = 0: xyz, normal, label.
_MIRROR = np.array([-1, 1, 1, -1, 1, 1, 1], np.float32)


@dataclasses.dataclass(frozen=True)
class Draw:
  """The random choices of one batch.

  Attributes:
    clips: Row of each clip [B].
    mirrored: Whether it is mirrored [B].
    rng: Randomness for all other choices of the batch.
  """

  clips: np.ndarray
  mirrored: np.ndarray
  rng: np.random.Generator

  def take(self, rows: np.ndarray) -> "Draw":
    """Some rows of the batch, with the current state of its randomness."""
    return Draw(self.clips[rows], self.mirrored[rows], self.rng)


def describe(drawn: Draw) -> str:
  """The clips of a batch, for a message."""
  names = (
    f"{clip} mirrored" if mirrored else f"{clip}"
    for clip, mirrored in zip(drawn.clips, drawn.mirrored)
  )
  return "clips " + ", ".join(names)


def draw(num_clips: int, batch_size: int, seed: int, step: int) -> Draw:
  """The clips of a step; raises ValueError if a batch exceeds the clips."""
  if batch_size > num_clips:
    raise UserError(
      f"batch_size={batch_size} exceeds the {num_clips} clips there are;"
      " make more clips or take smaller batches."
    )
  per_epoch = num_clips // batch_size
  epoch, batch = divmod(step, per_epoch)
  order = np.random.default_rng([seed, epoch, 1]).permutation(num_clips)
  rng = np.random.default_rng([seed, step, 2])
  return Draw(
    clips=order[batch * batch_size : (batch + 1) * batch_size],
    mirrored=rng.random(batch_size) < 0.5,
    rng=rng,
  )


def mirror_rows(rows: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
  """Mirrors rows that start with a position; `mirrored` [B] picks clips."""
  signs = _MIRROR[: rows.shape[-1]]
  if rows.shape[-1] == 4:  # Position and signed distance.
    signs = np.array([-1, 1, 1, 1], np.float32)
  shape = (len(mirrored),) + (1,) * (rows.ndim - 1)
  return rows * np.where(mirrored.reshape(shape), signs, np.float32(1))


def mirror_images(images: np.ndarray, mirrored: np.ndarray) -> np.ndarray:
  """Mirrors pictures [B, F, S, S, 3] of the clips that `mirrored` picks."""
  images = np.array(images)
  images[mirrored] = images[mirrored][..., ::-1, :]
  return images


def surface_batch(
  store: record_store.RecordStore,
  drawn: Draw,
  *,
  num_frames: int,
  num_queries: int,
  keep_order: bool = False,
  rows: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """Surfaces and distance samples of some frames.

  Args:
    store: Records.
    drawn: Indices of the clips.
    num_frames: Frames taken of each clip, at random.
    num_queries: Distance samples taken of each frame, at random.
    keep_order: Whether the frames keep their order in time.
    rows: Rows of the batch to return; None returns all. Random numbers are
      drawn for all rows, so that the processes of a run agree.

  Returns:
    `surface` [B, F', P, 7], `samples` [B, F', Q', 4], float32.
  """
  if num_queries > store.samples.shape[2]:
    raise UserError(
      f"num_queries={num_queries} exceeds the {store.samples.shape[2]}"
      " distance samples a frame that the records have."
    )
  surfaces, samples = [], []
  wanted = set(range(len(drawn.clips)) if rows is None else map(int, rows))
  mirrored = drawn.mirrored if rows is None else drawn.mirrored[rows]
  for index, clip in enumerate(drawn.clips):
    frames = drawn.rng.choice(store.num_frames, num_frames, replace=False)
    if keep_order:
      frames.sort()
    queries = drawn.rng.choice(
      store.samples.shape[2], num_queries, replace=False
    )
    if index in wanted:
      surfaces.append(store.surface[clip][frames])
      samples.append(store.samples[clip][frames][:, queries])
  return {
    "surface": mirror_rows(np.stack(surfaces).astype(np.float32), mirrored),
    "samples": mirror_rows(np.stack(samples).astype(np.float32), mirrored),
  }


def picture_batch(
  store: record_store.RecordStore,
  drawn: Draw,
  *,
  num_frames: int,
  num_queries: int,
  rows: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
  """Pictures and distance samples of some frames.

  Args:
    store: Records.
    drawn: Indices of the clips.
    num_frames: Frames taken of each clip, at random.
    num_queries: Distance samples taken of each frame, at random.
    rows: Clips of the batch that are wanted; None is all.

  Returns:
    `images` uint8 [B, F', S, S, 3], `samples` float32 [B, F', Q', 4].
  """
  wanted = np.arange(len(drawn.clips)) if rows is None else rows
  drawn_frames = [
    (
      drawn.rng.choice(store.num_frames, num_frames, replace=False),
      drawn.rng.choice(store.samples.shape[2], num_queries, replace=False),
    )
    for _ in drawn.clips
  ]
  images, samples = [], []
  for index in map(int, wanted):
    clip = drawn.clips[index]
    frames, queries = drawn_frames[index]
    images.append(store.images[clip][frames])
    samples.append(store.samples[clip][frames][:, queries])
  mirrored = drawn.mirrored[wanted]
  return {
    "images": mirror_images(np.stack(images), mirrored),
    "samples": mirror_rows(np.stack(samples).astype(np.float32), mirrored),
  }


def image_batch(store: record_store.RecordStore, drawn: Draw) -> np.ndarray:
  """Pictures of all frames, uint8 [B, F, S, S, 3]."""
  clips = np.stack([store.images[clip] for clip in drawn.clips])
  return mirror_images(clips, drawn.mirrored)
