"""Protocols and their parameters."""

import dataclasses
from typing import Any

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation.views import pictures

# The largest distance of two points in [-1, 1]^3.
WORST_DISTANCE = 2.0 * 3.0**0.5

_MIN_SIZE = 32  # Below, VGG16 has no pixel left at its last layer.

ALIGNMENTS = (
  "none",
  "scale_translation",
  "icp",
  "first_frame_icp",
  "gradient",
)
NORMALISATIONS = ("none", "clip_box", "first_frame_boxes")
SAMPLINGS = ("paired", "actionbench")


@dataclasses.dataclass(frozen=True)
class ViewSettings:
  """Pictures for the metrics that are networks.

  Attributes:
    size: Side of a picture in pixels.
    azimuths: Cameras' azimuths in degrees; 0 is the input view.
    weights: Folder of the networks' weights, or None.
  """

  size: int = 512
  azimuths: tuple[float, ...] = pictures.AZIMUTHS
  weights: str | None = None

  def __post_init__(self):
    if self.size < _MIN_SIZE:
      raise UserError(
        f"size={self.size}: pictures need at least {_MIN_SIZE} pixels a side."
      )


@dataclasses.dataclass(frozen=True)
class Conventions:
  """The parameters of a protocol.

  Attributes:
    num_points: Points sampled on each surface.
    num_queries: Points of each surface whose distance to all points of the
      other is computed; None for all.
    seed: Seed of the points.
    sampling: "paired": seed + frame for both surfaces, drawn by
      `geometry.sampling`. "actionbench": seed + frame for the prediction, drawn
      by trimesh; queries by permutations of the seed and the seed + 1.
    normalisation: Normalisation before the alignment: "none"; "clip_box", which
      scales the prediction's box over all frames to [-1, 1]; or
      "first_frame_boxes", which scales both by the boxes of their first frames.
    alignment: Alignment of the prediction to the truth, once a clip: "none",
      "scale_translation" and "icp" over all frames (see `geometry_metrics`),
      "first_frame_icp" as Motion 3-to-4, "gradient" on frame 0.
    alignment_points: Points of each surface for "gradient".
    is_reference: Whether the errors of the reference code are reproduced.
    leaves_out_failed: Whether true clips without a prediction are excluded from
      the mean. Otherwise they get the worst score.
    takes_first_frames: Whether a prediction may have more frames than the
      truth, of which the first ones are taken.
    repeats_last_truth: Whether a truth with fewer frames holds its last one.
    views: Pictures for the metrics that are networks.
  """

  num_points: int
  num_queries: int | None = None
  seed: int = 0
  sampling: str = "paired"
  normalisation: str = "none"
  alignment: str = "none"
  alignment_points: int = 10_000
  is_reference: bool = False
  leaves_out_failed: bool = False
  takes_first_frames: bool = False
  repeats_last_truth: bool = False
  views: ViewSettings = ViewSettings()

  def __post_init__(self):
    if self.num_points < 1:
      raise UserError(f"num_points={self.num_points} must be at least 1.")
    if self.seed < 0:
      raise UserError(f"seed={self.seed} must not be negative.")
    for name, choices in (
      ("alignment", ALIGNMENTS),
      ("normalisation", NORMALISATIONS),
      ("sampling", SAMPLINGS),
    ):
      if getattr(self, name) not in choices:
        raise UserError(
          f"{name}={getattr(self, name)!r} is unknown; choose one of"
          f" {', '.join(choices)}."
        )


@dataclasses.dataclass(frozen=True)
class Protocol:
  """A named evaluation procedure.

  Attributes:
    name: Its name, with ":reference" if errors of the reference are reproduced.
    metrics: Names in `metric_table.METRICS`, the columns of a table.
    conventions: Its parameters.
    summary: The line of conventions after the name.
    slips: Reproduced errors of the reference, one sentence each.
  """

  name: str
  metrics: tuple[str, ...]
  conventions: Conventions
  summary: str
  slips: tuple[str, ...] = ()

  def with_conventions(self, **changes: Any) -> "Protocol":
    """The protocol with other parameters; fields of `Conventions`."""
    conventions = dataclasses.replace(self.conventions, **changes)
    return dataclasses.replace(self, conventions=conventions)

  def describe(self) -> str:
    """The line to print with the numbers."""
    line = f"{self.name}: {self.summary}; seed {self.conventions.seed}"
    if self.slips:
      line += "; slips of the reference kept: " + "; ".join(self.slips)
    return line
