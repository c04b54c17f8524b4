"""Scores of mesh sequences that are in memory or in files."""

import os
from typing import Any

from sculpt4d_jax.evaluation import evaluator
from sculpt4d_jax.evaluation import geometry_metrics
from sculpt4d_jax.evaluation import sequence_pairs
from sculpt4d_jax.inference import run_log

_PATH = (str, os.PathLike)
# A path, a list of meshes, or an object with `meshes`.
Sequence = Any


def evaluate(
  predicted: Sequence,
  truth: Sequence,
  *,
  conventions: geometry_metrics.Conventions | None = None,
  progress: run_log.ProgressOption = True,
) -> evaluator.Summary:
  """Scores mesh sequences against the true ones.

  Args:
    predicted: A sequence: an object with `meshes`, a list of meshes, a folder of
      PLY files, an animated GLB or USD file; or a folder of such, paired by name.
    truth: The same, with as many frames.
    conventions: Measurements and how they are taken.
    progress: True for a bar on stderr, False for silence, or a function that is
      called with a `run_log.Progress`.

  Returns:
    Chamfer distance, IoU, F-Score and jitter of every sequence, and their
    means with 95 % intervals.

  Raises:
    ValueError: The two cannot be compared.
  """
  conventions = conventions or geometry_metrics.Conventions()
  log = run_log.RunLog(progress)
  if isinstance(predicted, _PATH) and isinstance(truth, _PATH):
    pairs = sequence_pairs.find_pairs(predicted, truth)
  else:
    pairs = [sequence_pairs.MemoryPair("sequence", predicted, truth)]
  scores = []
  for pair in log.each("score", pairs):
    prediction, true_meshes = pair.read()
    scores.append(
      evaluator.evaluate_sequence(
        prediction, true_meshes, conventions, name=pair.name
      )
    )
  return evaluator.summarise(scores)
