"""Scores a model on held-out procedural clips, against trivial baselines.

The rows of the comparison:

  model          the model's samples
  per frame      the same weights without temporal attention
  mean shape     one mesh for all clips: the region that is most often inside the
                 training objects, with their mean volume
  best training  the single training clip with the largest overlap with all
                 held-out clips (chosen on them, so optimistic)
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import TypeVar

import jax
import numpy as np

from sculpt4d_jax.data.procedural import clip_records
from sculpt4d_jax.data.procedural import solids
from sculpt4d_jax.evaluation import comparison_page
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation import sequences
from sculpt4d_jax.evaluation.protocols import conventions as conventions_lib
from sculpt4d_jax.evaluation.protocols import evaluate
from sculpt4d_jax.evaluation.protocols import scores as protocol_scores
from sculpt4d_jax.geometry import isosurface
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.geometry import placement as placement_lib
from sculpt4d_jax.geometry import signed_distance
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import run_log

Meshes = list[mesh_lib.TriangleMesh]

METHODS = ("model", "per frame", "mean shape", "best training")
_TRUTH_RESOLUTION = 96
_BOUNDS = 1.01
_COARSE_RESOLUTION = 32
_BAND = 0.1
_Score = TypeVar("_Score")


@dataclasses.dataclass(frozen=True)
class HeldOutClip:
  """A clip with its truth.

  Attributes:
    name: Family and seed.
    clip: The animated solid.
    images: uint8 [F, S, S, 3], input of the image encoder.
    masks: uint8 [F, S, S], 255 on the object.
    truth: The true mesh of every frame, upright; empty if they were not made.
    placement: Place of the upright object in the frame of its record; see
      `clip_records.Record`.
  """

  name: str
  clip: solids.SyntheticClip
  images: np.ndarray
  masks: np.ndarray
  truth: Meshes
  placement: placement_lib.Placement = placement_lib.UPRIGHT


def make_clips(
  seeds: Sequence[int],
  num_frames: int,
  sizes: clip_records.RecordSizes,
  log: run_log.RunLog,
  *,
  seconds: float = 1.0,
  has_truth: bool = True,
) -> list[HeldOutClip]:
  """Makes the clips of some seeds; see `make_clip`."""
  return [
    make_clip(seed, num_frames, sizes, seconds=seconds, has_truth=has_truth)
    for seed in log.each("make held-out clips", seeds)
  ]


def make_clip(
  seed: int,
  num_frames: int,
  sizes: clip_records.RecordSizes,
  *,
  seconds: float = 1.0,
  has_truth: bool = True,
) -> HeldOutClip:
  """Makes the clip of a seed and its pictures.

  Args:
    seed: Seed of the clip.
    num_frames: Frames of it.
    sizes: Sizes of its record.
    seconds: Length of the clip.
    has_truth: Whether its true meshes are made, which takes most of the time.
  """
  clip = solids.make_clip(seed, num_frames, seconds=seconds)
  record = clip_records.make_record(clip, sizes)
  return HeldOutClip(
    f"{clip.family}-{seed}",
    clip,
    record.images,
    record.masks,
    truth_meshes(clip) if has_truth else [],
    record.placement,
  )


def truth_meshes(clip: solids.SyntheticClip) -> Meshes:
  """Marching cubes of the signed distance of every frame."""
  solid = clip_records.trim(clip.solid)
  meshes = []
  for frame in range(clip.num_frames):
    parts = jax.tree.map(lambda x: x[frame], solid)
    grid = isosurface.coarse_to_fine_field(
      lambda points, parts=parts: np.asarray(_field(parts, points)),
      _TRUTH_RESOLUTION,
      bounds=_BOUNDS,
      min_resolution=_TRUTH_RESOLUTION // 4,
    )
    meshes.append(isosurface.extract_surface(grid.values, bounds=_BOUNDS))
  return meshes


@jax.jit
def _field(solid: signed_distance.Solid, points: jax.Array) -> jax.Array:
  return signed_distance.signed_distance(solid, points) / _BAND


def mean_shape(clips: Sequence[solids.SyntheticClip]) -> Meshes:
  """The mean occupancy, thresholded to the mean volume, as one mesh."""
  total, count = 0.0, 0
  for clip in clips:
    occupied = _occupancies(clip, 2 * _COARSE_RESOLUTION)
    total, count = total + occupied.sum(0), count + len(occupied)
  mean = total / count
  num_solid = max(1, int(round(mean.sum())))
  threshold = np.sort(mean.ravel())[-num_solid]
  # Slightly raised, so that cells at the threshold are inside.
  field = (mean - threshold + 0.5 / count).astype(np.float32)
  # Cell centres span slightly less than the cube.
  bounds = 1.0 - 0.5 / _COARSE_RESOLUTION
  return [isosurface.extract_surface(field, bounds=bounds)]


def best_training_clip(
  candidates: Sequence[solids.SyntheticClip],
  clips: Sequence[HeldOutClip],
) -> solids.SyntheticClip:
  """The candidate with the largest mean IoU with all held-out clips."""
  truth = [_occupancies(c.clip, _COARSE_RESOLUTION) for c in clips]

  def score(candidate: solids.SyntheticClip) -> float:
    occupied = _occupancies(candidate, _COARSE_RESOLUTION)
    return np.mean(
      [
        geometry_metrics.intersection_over_union(a.ravel(), b.ravel())
        for true_frames in truth
        for a, b in zip(occupied, true_frames)
      ]
    )

  return max(candidates, key=score)


def _occupancies(clip: solids.SyntheticClip, resolution: int) -> np.ndarray:
  """Whether the centres of a grid's cells are inside: bool [F, R, R, R]."""
  points = geometry_metrics.grid_points(resolution).astype(np.float32)
  points = np.broadcast_to(points, (clip.num_frames, *points.shape))
  solid = clip_records.trim(clip.solid)
  inside = np.asarray(clip_records.distances(solid, points)) > 0
  return inside.reshape(clip.num_frames, *(resolution,) * 3)


def sample_meshes(
  model: model_lib.Sculpt4D,
  clip: HeldOutClip,
  sampling: model_lib.SamplingConfig,
  surface: pipeline.SurfaceConfig,
) -> Meshes:
  """Samples the model."""
  return pipeline.sample_meshes(
    model, clip.images, clip.masks, sampling, surface
  )


def compare_seeds(
  model: model_lib.Sculpt4D,
  held_out: range,
  train: range,
  num_frames: int,
  sizes: clip_records.RecordSizes,
  sampling: model_lib.SamplingConfig,
  surface: pipeline.SurfaceConfig,
  protocol: conventions_lib.Protocol,
  log: run_log.RunLog,
) -> dict[str, protocol_scores.Report]:
  """Makes procedural clips of the seeds and scores a model on them.

  Args:
    model: Networks with weights.
    held_out: Seeds of the clips that are scored.
    train: Seeds of training clips, for the trivial baselines.
    num_frames: Frames of a clip.
    sizes: Sizes of the clips' records.
    sampling: Settings of the sampler.
    surface: Settings of the surfaces.
    protocol: Protocol of the scores.
    log: Log that shows the progress.
  """
  clips = make_clips(held_out, num_frames, sizes, log)
  trivial = [solids.make_clip(seed, num_frames) for seed in train]
  return compare_by_protocol(
    model, clips, trivial, sampling, surface, protocol, log
  )


def compare(
  model: model_lib.Sculpt4D,
  clips: Sequence[HeldOutClip],
  training_clips: Sequence[solids.SyntheticClip],
  sampling: model_lib.SamplingConfig,
  surface: pipeline.SurfaceConfig,
  conventions: geometry_metrics.Conventions,
  log: run_log.RunLog,
  page: comparison_page.ComparisonPage | None = None,
) -> dict[str, evaluator.Summary]:
  """Scores every method on every clip.

  Args:
    model: Networks with their weights.
    clips: Held out.
    training_clips: Clips from which the trivial answers are made.
    sampling: Settings of the sampler.
    surface: Settings of the surfaces.
    conventions: Conventions of the metrics.
    log: Shows progress.
    page: Gets a picture of the model's meshes of each clip.

  Returns:
    A summary for each of `METHODS`.
  """

  def score(
    method: str, meshes: Meshes, clip: HeldOutClip
  ) -> evaluator.SequenceMetrics:
    scores = evaluator.evaluate_sequence(
      meshes, clip.truth, conventions, name=clip.name
    )
    if page and method == METHODS[0]:
      page.add(scores, meshes, clip.truth, clip.images)
    return scores

  scores = _score_answers(
    model, clips, training_clips, sampling, surface, score, log
  )
  return {name: evaluator.summarise(s) for name, s in scores.items()}


def compare_by_protocol(
  model: model_lib.Sculpt4D,
  clips: Sequence[HeldOutClip],
  training_clips: Sequence[solids.SyntheticClip],
  sampling: model_lib.SamplingConfig,
  surface: pipeline.SurfaceConfig,
  protocol: conventions_lib.Protocol,
  log: run_log.RunLog,
) -> dict[str, protocol_scores.Report]:
  """Scores every method by a named protocol; for arguments see `compare`."""

  def score(
    method: str, meshes: Meshes, clip: HeldOutClip
  ) -> protocol_scores.ClipScores:
    del method
    return evaluate.score_clip(
      sequences.ShapeSequence(tuple(meshes)),
      sequences.ShapeSequence(tuple(clip.truth)),
      protocol,
      name=clip.name,
      workers=-1,
    )

  scores = _score_answers(
    model, clips, training_clips, sampling, surface, score, log
  )
  return {
    name: protocol_scores.summarise(protocol, s) for name, s in scores.items()
  }


def _score_answers(
  model: model_lib.Sculpt4D,
  clips: Sequence[HeldOutClip],
  training_clips: Sequence[solids.SyntheticClip],
  sampling: model_lib.SamplingConfig,
  surface: pipeline.SurfaceConfig,
  score: Callable[[str, Meshes, HeldOutClip], _Score],
  log: run_log.RunLog,
) -> dict[str, list[_Score]]:
  """Results of `score(method, meshes, clip)` for every method and clip."""
  with log.stage("trivial answers"):
    average = mean_shape(training_clips)
    nearest = truth_meshes(best_training_clip(training_clips, clips))
  per_frame = dataclasses.replace(sampling, temporal_mode="none")
  answers = {
    "model": functools.partial(
      sample_meshes, model, sampling=sampling, surface=surface
    ),
    "per frame": functools.partial(
      sample_meshes, model, sampling=per_frame, surface=surface
    ),
    "mean shape": lambda clip: average * clip.clip.num_frames,
    "best training": lambda clip: nearest,
  }
  scores = {name: [] for name in answers}
  for clip in log.each("sample and score", clips):
    for name, answer in answers.items():
      scores[name].append(score(name, answer(clip), clip))
  return scores
