"""Scores mesh sequences; computes means, confidence intervals and tables.

A sequence is scored frame by frame and averaged over its frames; a table
averages over sequences, which are the independent samples, and gives a
bootstrap confidence interval of that mean. To compare methods on the same
sequences use `paired_difference`, because sequences differ more than methods
do.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.geometry import mesh as mesh_lib

Conventions = geometry_metrics.Conventions
TriangleMesh = mesh_lib.TriangleMesh

# Columns of a table, with the direction that is better.
METRICS = {
  "chamfer": "lower",
  "iou": "higher",
  "f_score": "higher",
  "jitter": "lower",
}
_TITLES = {
  "chamfer": "Chamfer",
  "iou": "IoU",
  "f_score": "F-Score",
  "jitter": "Jitter",
}
_ARROWS = {"lower": "↓", "higher": "↑"}


@dataclasses.dataclass(frozen=True)
class SequenceMetrics:
  """Scores of one sequence; `geometry_metrics` defines each.

  Attributes:
    name: Name of the sequence.
    chamfer, iou, f_score: One value a frame, float64 [F].
    motion: Jitter and accelerations of the whole sequence.
    num_empty: Frames in which the prediction has no surface.
  """

  name: str
  chamfer: np.ndarray
  iou: np.ndarray
  f_score: np.ndarray
  motion: geometry_metrics.Motion
  num_empty: int

  @property
  def num_frames(self) -> int:
    """Number of frames F, those without a prediction included."""
    return len(self.chamfer)

  def means(self) -> dict[str, float]:
    """Each metric's mean; jitter is NaN for fewer than three frames."""
    return {
      "chamfer": float(self.chamfer.mean()),
      "iou": float(self.iou.mean()),
      "f_score": float(self.f_score.mean()),
      "jitter": self.motion.jitter,
    }


@dataclasses.dataclass(frozen=True)
class Estimate:
  """A mean over sequences with its confidence interval.

  The interval is NaN where fewer than two sequences have the metric.
  """

  mean: float
  low: float
  high: float
  num_sequences: int


@dataclasses.dataclass(frozen=True)
class Summary:
  """Scores of many sequences.

  Attributes:
    estimates: One for each of `METRICS`.
    sequences: Scores of the sequences that were averaged.
  """

  estimates: Mapping[str, Estimate]
  sequences: tuple[SequenceMetrics, ...]


def evaluate_sequence(
  prediction: Sequence[TriangleMesh],
  truth: Sequence[TriangleMesh],
  conventions: Conventions,
  *,
  name: str = "",
  on_frame: Callable[[], object] | None = None,
) -> SequenceMetrics:
  """Scores one predicted sequence against the true one.

  Args:
    prediction: One mesh a frame; a mesh without a surface gets the worst score.
    truth: True meshes, one a frame, each with a surface.
    conventions: Parameters of the metrics.
    name: Name of the sequence, for messages and tables.
    on_frame: Called after each frame, for a progress bar.

  Raises:
    ValueError: The numbers of frames differ, or the truth lacks a surface.
  """
  where = f"{name}: " if name else ""
  if len(prediction) != len(truth):
    raise UserError(
      f"{where}{len(prediction)} predicted frames against {len(truth)} true"
      " ones; sample the video at the times of the truth."
    )
  if not truth:
    raise UserError(f"{where}there are no frames to compare.")
  for frame, mesh in enumerate(truth):
    if not geometry_metrics.has_surface(mesh):
      raise UserError(
        f"{where}frame {frame} of the truth has no surface; there is nothing"
        " to compare with."
      )
  prediction = geometry_metrics.align(prediction, truth, conventions)
  resolution = conventions.jitter_resolution
  surfaces, ious, fields = [], [], []
  for frame, pair in enumerate(zip(prediction, truth)):
    samples = [
      geometry_metrics.surface_points(
        mesh, conventions.num_points, conventions.seed + frame
      )
      for mesh in pair
    ]
    surfaces.append(
      geometry_metrics.surface_scores(*samples, conventions.f_score_threshold)
    )
    ious.append(
      geometry_metrics.intersection_over_union(
        *(
          geometry_metrics.grid_occupancy(mesh, conventions.iou_resolution)
          for mesh in pair
        )
      )
    )
    if len(truth) > 2:
      fields.append(
        [
          geometry_metrics.grid_distance(
            mesh, resolution, conventions.truncation
          )
          for mesh in pair
        ]
      )
    if on_frame is not None:
      on_frame()
  fields = np.array(fields).reshape(-1, 2, resolution**3)
  return SequenceMetrics(
    name=name,
    chamfer=np.array([scores.chamfer for scores in surfaces]),
    iou=np.array(ious),
    f_score=np.array([scores.f_score for scores in surfaces]),
    motion=geometry_metrics.motion(
      fields[:, 0], fields[:, 1], conventions.truncation
    ),
    num_empty=sum(
      not geometry_metrics.has_surface(mesh) for mesh in prediction
    ),
  )


def summarise(
  sequences: Sequence[SequenceMetrics],
  *,
  confidence: float = 0.95,
  num_resamples: int = 10_000,
  seed: int = 0,
) -> Summary:
  """Means over sequences with bootstrap confidence intervals.

  Sequences too short for jitter are excluded from its mean.

  Source: Efron, Bootstrap methods, 1979 (percentile interval).
  """
  if not sequences:
    raise UserError("There are no sequences to summarise.")
  values = [sequence.means() for sequence in sequences]
  return Summary(
    estimates={
      metric: estimate_mean(
        [value[metric] for value in values],
        confidence=confidence,
        num_resamples=num_resamples,
        seed=seed,
      )
      for metric in METRICS
    },
    sequences=tuple(sequences),
  )


def estimate_mean(
  values: Sequence[float],
  *,
  confidence: float = 0.95,
  num_resamples: int = 10_000,
  seed: int = 0,
) -> Estimate:
  """The mean of values that are not NaN, and its bootstrap interval."""
  if not 0.0 < confidence < 1.0:
    raise UserError(f"confidence={confidence} must lie between 0 and 1.")
  values = np.asarray(values, np.float64)
  values = values[~np.isnan(values)]
  count = len(values)
  if not count:
    return Estimate(math.nan, math.nan, math.nan, 0)
  if count == 1:
    return Estimate(float(values[0]), math.nan, math.nan, 1)
  rng = np.random.default_rng(seed)
  resampled = values[rng.integers(0, count, (num_resamples, count))].mean(1)
  tail = (1.0 - confidence) / 2.0
  low, high = np.quantile(resampled, [tail, 1.0 - tail])
  return Estimate(float(values.mean()), float(low), float(high), count)


def paired_difference(
  method: Summary, other: Summary, metric: str, **options: Any
) -> Estimate:
  """Mean of `method - other` over the sequences scored by both.

  Args:
    method: Scores of one method.
    other: Scores of another on the same sequences, in any order.
    metric: One of `METRICS`.
    **options: Options of `estimate_mean`.

  Raises:
    ValueError: The sequences differ, or names are not unique.
  """
  pairs = []
  for summary in (method, other):
    values = {s.name: s.means()[metric] for s in summary.sequences}
    if len(values) != len(summary.sequences):
      raise UserError("Sequences must have different names to be paired.")
    pairs.append(values)
  if pairs[0].keys() != pairs[1].keys():
    odd = sorted(pairs[0].keys() ^ pairs[1].keys())
    raise UserError(f"Only one method has the sequences {', '.join(odd)}.")
  return estimate_mean(
    [value - pairs[1][name] for name, value in pairs[0].items()], **options
  )


def format_table(
  rows: Mapping[str, Summary], *, markdown: bool = False, digits: int = 4
) -> str:
  """A table with a row for each method (or sequence) and its intervals."""
  header = ["", "sequences"] + [
    f"{_TITLES[metric]} {_ARROWS[better]}" for metric, better in METRICS.items()
  ]
  table = [header]
  for title, summary in rows.items():
    table.append(
      [title, str(len(summary.sequences))]
      + [
        format_estimate(summary.estimates[metric], digits) for metric in METRICS
      ]
    )
  return layout(table, markdown)


def format_sequences(
  summary: Summary, *, markdown: bool = False, digits: int = 4
) -> str:
  """A table with a row for each sequence."""
  table = [["", "frames", "empty"] + [_TITLES[metric] for metric in METRICS]]
  for sequence in summary.sequences:
    means = sequence.means()
    table.append(
      [sequence.name, str(sequence.num_frames), str(sequence.num_empty)]
      + [format_number(means[metric], digits) for metric in METRICS]
    )
  return layout(table, markdown)


def to_json(rows: Mapping[str, Summary], conventions: Conventions) -> dict:
  """All scores of a table, for `json.dump`; NaN becomes None."""
  return {
    "conventions": dataclasses.asdict(conventions),
    "description": conventions.describe(),
    "methods": {
      title: {
        "estimates": {
          metric: plain(dataclasses.asdict(estimate))
          for metric, estimate in summary.estimates.items()
        },
        "sequences": [
          plain(dataclasses.asdict(sequence)) for sequence in summary.sequences
        ],
      }
      for title, summary in rows.items()
    },
  }


def plain(value: Any) -> Any:
  """Nested values converted for JSON."""
  if isinstance(value, dict):
    return {key: plain(entry) for key, entry in value.items()}
  if isinstance(value, np.ndarray):
    return [plain(entry) for entry in value.tolist()]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value


def format_estimate(estimate: Estimate, digits: int) -> str:
  """The mean with its interval, as "0.12 [0.10, 0.14]"."""
  text = format_number(estimate.mean, digits)
  if math.isnan(estimate.low):
    return text
  low = format_number(estimate.low, digits)
  high = format_number(estimate.high, digits)
  return f"{text} [{low}, {high}]"


def format_number(value: float, digits: int) -> str:
  """A number with so many digits; a dash for NaN."""
  return "–" if math.isnan(value) else f"{value:.{digits}f}"


def layout(table: Sequence[Sequence[str]], markdown: bool) -> str:
  """Columns of equal width: the first to the left, the others to the right."""
  widths = [max(map(len, column)) for column in zip(*table)]
  lines = []
  for row in table:
    cells = [row[0].ljust(widths[0])] + [
      cell.rjust(width) for cell, width in zip(row[1:], widths[1:])
    ]
    lines.append(
      f"| {' | '.join(cells)} |" if markdown else "  ".join(cells).rstrip()
    )
  if markdown:
    rules = ["-" * max(widths[0], 3)] + [
      "-" * max(width - 1, 2) + ":" for width in widths[1:]
    ]
    lines.insert(1, f"| {' | '.join(rules)} |")
  return "\n".join(lines)
