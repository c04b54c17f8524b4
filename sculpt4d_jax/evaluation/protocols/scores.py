"""Scores of clips, means over clips with intervals, tables and JSON."""

from collections.abc import Mapping, Sequence
import dataclasses
import importlib.metadata
import platform
from typing import Any

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import run_seconds
from sculpt4d_jax.evaluation.protocols import clip_pair
from sculpt4d_jax.evaluation.protocols import conventions as conventions_lib
from sculpt4d_jax.evaluation.protocols import metric_table
from sculpt4d_jax.evaluation.views import weight_files

Estimate = evaluator.Estimate
Protocol = conventions_lib.Protocol

SCHEMA = 1
_ARROWS = {"lower": "↓", "higher": "↑"}
_PACKAGES = ("sculpt4d-jax", "numpy", "scipy", "trimesh", "libigl", "jax")


@dataclasses.dataclass(frozen=True)
class ClipScores:
  """Scores of one clip.

  Attributes:
    name: Name of the clip.
    num_frames: Number of frames F.
    num_empty: Frames in which the prediction has no surface.
    is_failed: Whether there is no prediction at all.
    values: Metric -> a score a frame [F] or one for the clip [1]; NaN where it
      is not defined.
    notes: Metric -> reason why it is not defined.
    features: Metric of a set of clips -> its features of this clip.
    sources: Descriptions of the sources of prediction and truth.
    seconds: Wall time of the scoring.
    run: Wall time of the run that made the prediction, if it left a record.
  """

  name: str
  num_frames: int
  num_empty: int
  is_failed: bool
  values: Mapping[str, np.ndarray]
  notes: Mapping[str, str] = dataclasses.field(default_factory=dict)
  features: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
  sources: tuple[str, str] = ("", "")
  seconds: float = 0.0
  run: run_seconds.RunSeconds | None = None

  def mean(self, metric: str) -> float:
    """The clip's score: the mean over its frames."""
    return float(np.mean(self.values[metric]))


@dataclasses.dataclass(frozen=True)
class Report:
  """Scores of a set of clips by one protocol.

  Attributes:
    protocol: The protocol.
    clips: Scores of all clips, failed ones included.
    estimates: Mean over clips and its interval, by metric.
    weights: Networks that were used: name -> path, size and SHA-256.
    notes: Lines to print with the table.
  """

  protocol: Protocol
  clips: tuple[ClipScores, ...]
  estimates: Mapping[str, Estimate]
  weights: Mapping[str, Mapping[str, object]] = dataclasses.field(
    default_factory=dict
  )
  notes: tuple[str, ...] = ()

  @property
  def num_failed(self) -> int:
    """Number of clips without a prediction."""
    return sum(clip.is_failed for clip in self.clips)

  @property
  def num_empty(self) -> int:
    """Frames without a surface in clips that have a prediction."""
    return sum(clip.num_empty for clip in self.clips if not clip.is_failed)

  def describe(self) -> str:
    """The line of conventions with the counts."""
    line = f"{self.protocol.describe()}; {_count(len(self.clips), 'clip')}"
    line += f", {self.num_failed} failed"
    if self.num_empty:
      line += f"; {_count(self.num_empty, 'predicted frame')} without a surface"
    return line


def summarise(
  protocol: Protocol,
  clips: Sequence[ClipScores],
  weights: Mapping[str, Mapping[str, object]] | None = None,
) -> Report:
  """Means over clips with bootstrap intervals.

  Raises:
    ValueError: There are no clips.
  """
  if not clips:
    raise UserError("There are no clips to summarise.")
  counted = clips
  if protocol.conventions.leaves_out_failed:
    counted = [clip for clip in clips if not clip.is_failed]
  estimates, notes = {}, []
  for name in protocol.metrics:
    metric = metric_table.METRICS[name]
    features = [c.features[name] for c in counted if name in c.features]
    if metric.of_set is None:
      estimates[name] = evaluator.estimate_mean([c.mean(name) for c in counted])
      continue
    estimates[name] = Estimate(np.nan, np.nan, np.nan, 0)
    if not features:
      continue
    try:
      value, note = metric.of_set(features)
    except clip_pair.NotDefined as error:
      notes.append(f"{metric.title} not defined: {error}.")
      continue
    estimates[name] = Estimate(value, np.nan, np.nan, len(features))
    notes.append(f"{metric.title}: {note}.")
  return Report(protocol, tuple(clips), estimates, weights or {}, tuple(notes))


def format_table(
  rows: Mapping[str, Report], *, markdown: bool = False, digits: int = 4
) -> str:
  """A table with a row for each method; all of one protocol."""
  metrics = next(iter(rows.values())).protocol.metrics
  titles = (metric_table.METRICS[name] for name in metrics)
  table = [
    ["", "n", "failed"]
    + [f"{metric.title} {_ARROWS[metric.better]}" for metric in titles]
  ]
  for title, report in rows.items():
    cells = [
      evaluator.format_estimate(report.estimates[name], digits)
      for name in metrics
    ]
    table.append(
      [title, str(len(report.clips)), str(report.num_failed)] + cells
    )
  return evaluator.layout(table, markdown)


def format_clips(
  report: Report, *, markdown: bool = False, digits: int = 4
) -> str:
  """A table with a row for each clip."""
  metrics = report.protocol.metrics
  table = [
    ["", "frames", "empty"]
    + [metric_table.METRICS[name].title for name in metrics]
  ]
  for clip in report.clips:
    empty = "failed" if clip.is_failed else str(clip.num_empty)
    cells = [
      evaluator.format_number(clip.mean(name), digits) for name in metrics
    ]
    table.append([clip.name, str(clip.num_frames), empty] + cells)
  return evaluator.layout(table, markdown)


def paired_difference(
  report: Report, other: Report, metric: str, **options: Any
) -> Estimate:
  """Mean of `report - other` over the clips that have the metric in both.

  Clips differ more among themselves than methods do, so that two methods are
  told apart by the differences clip by clip.

  Args:
    report: Scores of one method.
    other: Scores of another on the same clips, in any order.
    metric: One of the protocol's metrics.
    **options: Options of `evaluator.estimate_mean`.

  Raises:
    ValueError: The clips are not the same.
  """
  means = [{c.name: c.mean(metric) for c in r.clips} for r in (report, other)]
  if means[0].keys() != means[1].keys():
    odd = sorted(means[0].keys() ^ means[1].keys())
    raise UserError(f"Only one method has the clips {', '.join(odd)}.")
  return evaluator.estimate_mean(
    [value - means[1][name] for name, value in means[0].items()], **options
  )


def format_report(rows: Mapping[str, Report], *, markdown: bool = False) -> str:
  """The text that a program prints: clips if several, means, conventions."""
  parts = []
  for title, report in rows.items():
    if len(report.clips) > 1:
      parts.append(f"{title}, by clip:")
      parts.append(format_clips(report, markdown=markdown))
  lines = [format_table(rows, markdown=markdown)]
  for title, report in rows.items():
    lines += [f"{title}: {note}" for note in format_notes(report)]
  parts.append("\n".join(lines))
  first = next(iter(rows.values()))
  if first.protocol.name == "views":
    folder = first.protocol.conventions.views.weights
    parts.append(weight_files.describe(folder, first.weights))
  parts.append(f"Conventions: {first.describe()}.")
  return "\n\n".join(parts)


def format_notes(report: Report) -> list[str]:
  """Notes on the scores, and reasons for missing ones."""
  reasons: dict[tuple[str, str], int] = {}
  for clip in report.clips:
    for name, note in clip.notes.items():
      reasons[name, note] = reasons.get((name, note), 0) + 1
  runs = [clip.run for clip in report.clips if clip.run is not None]
  return [*report.notes, *run_seconds.describe(runs)] + [
    f"{metric_table.METRICS[name].title} not defined: {note}"
    f" ({_count(number, 'clip')})."
    for (name, note), number in reasons.items()
  ]


def to_json(rows: Mapping[str, Report], device: str = "") -> dict:
  """All scores of a table, for `json.dump`; NaN becomes None."""
  protocol = next(iter(rows.values())).protocol
  return {
    "schema": SCHEMA,
    "protocol": protocol.name,
    "description": protocol.describe(),
    "conventions": dataclasses.asdict(protocol.conventions),
    "slips": list(protocol.slips),
    "device": device or platform.processor() or platform.machine(),
    "versions": _versions(),
    "methods": {
      title: {
        "num_clips": len(report.clips),
        "num_failed": report.num_failed,
        "num_empty_frames": report.num_empty,
        "weights": dict(report.weights),
        "estimates": {
          name: evaluator.plain(dataclasses.asdict(estimate))
          for name, estimate in report.estimates.items()
        },
        "clips": [clip_to_json(clip) for clip in report.clips],
      }
      for title, report in rows.items()
    },
  }


def clip_from_json(document: Mapping[str, Any]) -> ClipScores:
  """The scores that `clip_to_json` wrote; features of sets are not kept."""
  run = document.get("run")
  return ClipScores(
    name=document["name"],
    num_frames=document["num_frames"],
    num_empty=document["num_empty"],
    is_failed=document["is_failed"],
    values={
      name: np.array([np.nan if v is None else v for v in values], float)
      for name, values in document["values"].items()
    },
    notes=document["notes"],
    sources=(document["predicted_from"], document["truth_from"]),
    seconds=document["seconds"],
    run=None if run is None else run_seconds.RunSeconds(**run),
  )


def clip_to_json(clip: ClipScores) -> dict[str, Any]:
  """The scores of a clip, for `json.dump`; NaN becomes None."""
  return {
    "name": clip.name,
    "num_frames": clip.num_frames,
    "num_empty": clip.num_empty,
    "is_failed": clip.is_failed,
    "predicted_from": clip.sources[0],
    "truth_from": clip.sources[1],
    "seconds": round(clip.seconds, 3),
    "means": evaluator.plain({name: clip.mean(name) for name in clip.values}),
    "values": evaluator.plain(dict(clip.values)),
    "notes": dict(clip.notes),
    "run": None if clip.run is None else dataclasses.asdict(clip.run),
  }


def _versions() -> dict[str, str]:
  versions = {}
  for name in _PACKAGES:
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      versions[name] = "not installed"
  return versions


def _count(number: int, noun: str) -> str:
  return f"{number} {noun}{'' if number == 1 else 's'}"
