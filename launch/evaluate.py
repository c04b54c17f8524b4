"""Scores predicted mesh sequences against the true ones.

Usage:

  # One sequence: two folders with frame_0000.ply, frame_0001.ply, ...
  python -m launch.evaluate --predicted=out/demo --truth=truth/demo

  # The same from animated GLB or USD files.
  python -m launch.evaluate --predicted=out/demo.glb --truth=truth/demo.usdc

  # Many sequences: two folders of such folders or files, paired by name.
  python -m launch.evaluate --predicted=out --truth=truth --output=scores.json

Prints Chamfer distance, IoU, F-Score and jitter, averaged over the frames of a
sequence and then over sequences, with a 95 % bootstrap interval over sequences,
and the conventions that the numbers depend on. Meshes are expected in [-1, 1]^3
with y up. Both sides need the same number of frames. A predicted frame without
faces counts, with the worst values; see sculpt4d_jax/evaluation/
geometry_metrics.py for the definitions.

Exits with 2 and one message if the input cannot be compared.
"""

from collections.abc import Sequence
import json

from absl import flags
import tqdm

from launch import program
from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation import sequence_pairs
from sculpt4d_jax.io import atomic

_DEFAULTS = geometry_metrics.Conventions()

_PREDICTED = flags.DEFINE_string(
    "predicted",
    None,
    "A predicted sequence (a folder of PLY files, a GLB or USD file), or a"
    " folder of them.",
    required=True,
)
_TRUTH = flags.DEFINE_string(
    "truth", None, "The true sequence or sequences, likewise.", required=True
)
_OUTPUT = flags.DEFINE_string(
    "output", None, "JSON file for every number, frame by frame; optional."
)
_NAME = flags.DEFINE_string(
    "name", "prediction", "What to call the predictions in the table."
)
_MARKDOWN = flags.DEFINE_bool(
    "markdown", False, "Print tables in Markdown instead of plain text."
)
_ALIGNMENT = flags.DEFINE_enum(
    "alignment",
    _DEFAULTS.alignment,
    geometry_metrics.ALIGNMENTS,
    "What to take off the prediction first, found once for a whole sequence:"
    " nothing, scale and translation, or these and a rigid pose found by ICP.",
)
_NUM_POINTS = flags.DEFINE_integer(
    "num_points",
    _DEFAULTS.num_points,
    "Points sampled on each surface for Chamfer and F-Score.",
    lower_bound=1,
)
_F_SCORE_THRESHOLD = flags.DEFINE_float(
    "f_score_threshold",
    _DEFAULTS.f_score_threshold,
    "Distance in [-1, 1]^3 below which a point counts as met.",
    lower_bound=0.0,
)
_IOU_RESOLUTION = flags.DEFINE_integer(
    "iou_resolution",
    _DEFAULTS.iou_resolution,
    "Cells along an axis of the occupancy grid.",
    lower_bound=1,
)
_SEED = flags.DEFINE_integer(
    "seed", _DEFAULTS.seed, "Seed of the sampled points.", lower_bound=0
)


def main(unused_argv: Sequence[str]) -> None:
  conventions = geometry_metrics.Conventions(
      num_points=_NUM_POINTS.value,
      f_score_threshold=_F_SCORE_THRESHOLD.value,
      iou_resolution=_IOU_RESOLUTION.value,
      alignment=_ALIGNMENT.value,
      seed=_SEED.value,
  )
  pairs = sequence_pairs.find_pairs(_PREDICTED.value, _TRUTH.value)
  scores = score_pairs(pairs, conventions)
  summary = evaluator.summarise(scores)
  print_report({_NAME.value: summary}, conventions, markdown=_MARKDOWN.value)
  if _OUTPUT.value:
    report = evaluator.to_json({_NAME.value: summary}, conventions)
    text = json.dumps(report, indent=2, allow_nan=False) + "\n"
    atomic.write_bytes(_OUTPUT.value, text.encode())


def score_pairs(
    pairs: Sequence[sequence_pairs.SequencePair],
    conventions: geometry_metrics.Conventions,
) -> list[evaluator.SequenceMetrics]:
  """Reads and scores sequence by sequence, with a progress bar."""
  scores = []
  with tqdm.tqdm(unit="frame", dynamic_ncols=True) as bar:
    for index, pair in enumerate(pairs):
      bar.set_description(f"{pair.name} ({index + 1} of {len(pairs)})")
      prediction, truth = pair.read()
      scores.append(
          evaluator.evaluate_sequence(
              prediction,
              truth,
              conventions,
              name=pair.name,
              on_frame=bar.update,
          )
      )
  return scores


def print_report(
    rows: dict[str, evaluator.Summary],
    conventions: geometry_metrics.Conventions,
    *,
    markdown: bool,
) -> None:
  """Prints sequences where there are several, the means, and conventions."""
  for title, summary in rows.items():
    if len(summary.sequences) > 1:
      print(f"{title}, by sequence:\n")
      print(evaluator.format_sequences(summary, markdown=markdown), "\n")
  print(evaluator.format_table(rows, markdown=markdown))
  print(f"\nConventions: {conventions.describe()}.")


if __name__ == "__main__":
  program.run(main)
