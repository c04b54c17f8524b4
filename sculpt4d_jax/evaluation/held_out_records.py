"""Scores a model on held-out records of assets.

A record contains no meshes, but points of every true surface and signed
distances at samples in the cube. The metrics are those of `geometry_metrics`,
computed from these:

  chamfer, f_score  between the record's uniform points of a frame and equally
  many points of the prediction; their number determines the floor
  iou               over the record's distance samples in the cube
  jitter            undefined (NaN): the samples differ from frame to frame
"""

from collections.abc import Sequence
import dataclasses

import numpy as np

from sculpt4d_jax.data.loading import examples as record_examples
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.geometry import mesh as mesh_lib
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import pipeline

Meshes = list[mesh_lib.TriangleMesh]


@dataclasses.dataclass(frozen=True)
class HeldOutRecord:
  """A clip with its truth.

  Attributes:
    name: Name of the asset and the clip.
    images: uint8 [F, S, S, 3], input of the image encoder.
    masks: uint8 [F, S, S], 255 on the object.
    points: Points of the true surfaces, uniform [F, P, 3].
    samples: Samples in the cube and their signed distances [F, Q, 4].
  """

  name: str
  images: np.ndarray
  masks: np.ndarray
  points: np.ndarray
  samples: np.ndarray


def choose(
  reader: record_examples.ExampleReader, count: int, assets: str = ""
) -> list[int]:
  """Clips evenly spread over those whose asset's name contains a text.

  Raises:
    ValueError: There are fewer.
  """
  rows = [row for row in range(len(reader)) if assets in _asset(reader, row)]
  if count > len(rows):
    what = f" of assets with {assets!r} in their names" if assets else ""
    raise UserError(
      f"{count} clips are asked for, but the split has {len(rows)}{what}."
    )
  places = np.linspace(0, len(rows) - 1, count).round().astype(int)
  return [rows[place] for place in places]


def read(
  reader: record_examples.ExampleReader, row: int, seed: int = 0
) -> HeldOutRecord:
  """Reads a clip, from one of its views.

  Args:
    reader: Reader of all parts, of geometry and images.
    row: Number of the clip.
    seed: Seed of the view.
  """
  example = reader.read(row, np.random.default_rng([seed, row]))
  uniform = example["surface"][..., 6] == 0
  # Rows are the same in all frames.
  points = example["surface"][:, uniform[0], :3]
  return HeldOutRecord(
    f"{_asset(reader, row)} {_number(reader, row)}",
    example["images"],
    example["masks"],
    points,
    example["samples"][:, ~example["is_near"]],
  )


def _asset(reader: record_examples.ExampleReader, row: int) -> str:
  clip = reader.clip(row)
  return clip.details.get("asset_name", clip.asset)


def _number(reader: record_examples.ExampleReader, row: int) -> str:
  clip = reader.clip(row)
  name = clip.details.get("clip_name") or ""
  return f"{name} {clip.clip.partition('/')[2]}".strip()


def sample_meshes(
  model: model_lib.Sculpt4D,
  record: HeldOutRecord,
  sampling: model_lib.SamplingConfig,
  surface: pipeline.SurfaceConfig,
) -> Meshes:
  """Samples the model."""
  return pipeline.sample_meshes(
    model, record.images, record.masks, sampling, surface
  )


def score(
  prediction: Sequence[mesh_lib.TriangleMesh],
  record: HeldOutRecord,
  conventions: geometry_metrics.Conventions,
) -> evaluator.SequenceMetrics:
  """Scores one mesh a frame against a record.

  Raises:
    ValueError: The numbers of frames differ, or an alignment is requested.
  """
  if len(prediction) != len(record.points):
    raise UserError(
      f"{record.name}: {len(prediction)} predicted frames against"
      f" {len(record.points)} true ones."
    )
  if conventions.alignment != "none":
    raise UserError(
      "Predictions are compared with records as they are: use --alignment=none."
    )
  surfaces, ious = [], []
  for frame, (mesh, points, samples) in enumerate(
    zip(prediction, record.points, record.samples)
  ):
    predicted = geometry_metrics.surface_points(
      mesh, len(points), conventions.seed + frame
    )
    surfaces.append(
      geometry_metrics.surface_scores(
        predicted, points, conventions.f_score_threshold
      )
    )
    places = samples[:, :3].astype(np.float64)
    ious.append(
      geometry_metrics.intersection_over_union(
        geometry_metrics.occupancy(mesh, places), samples[:, 3] > 0
      )
    )
  return evaluator.SequenceMetrics(
    name=record.name,
    chamfer=np.array([scores.chamfer for scores in surfaces]),
    iou=np.array(ious),
    f_score=np.array([scores.f_score for scores in surfaces]),
    motion=geometry_metrics.Motion(*[float("nan")] * 3),
    num_empty=sum(
      not geometry_metrics.has_surface(mesh) for mesh in prediction
    ),
  )


def describe(
  records: Sequence[HeldOutRecord], conventions: geometry_metrics.Conventions
) -> str:
  """The parameters of the metrics as a line of text."""
  num_points = {record.points.shape[1] for record in records}
  num_samples = {record.samples.shape[1] for record in records}
  return (
    f"{_list(num_points)} points a surface, Chamfer = mean of both one-way"
    f" mean distances, F-Score at {conventions.f_score_threshold:g}, IoU on"
    f" {_list(num_samples)} places drawn in the cube, all in [-1, 1]^3;"
    f" nothing aligned; seed {conventions.seed}"
  )


def _list(numbers: set[int]) -> str:
  return ", ".join(map(str, sorted(numbers)))
