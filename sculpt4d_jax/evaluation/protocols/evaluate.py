"""Scores clips by a protocol; the entry point of programs and the library.

from sculpt4d_jax.evaluation.protocols import evaluate
report = evaluate.evaluate("out", "truth", protocol="actionbench")
print(evaluate.scores.format_table({"mine": report}))

The same function is `sculpt4d_jax.evaluate`.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
import concurrent.futures
import contextlib
import dataclasses
import multiprocessing
import os
import time
from typing import Any

import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.evaluation import run_seconds
from sculpt4d_jax.evaluation import sequence_pairs
from sculpt4d_jax.evaluation import sequences
from sculpt4d_jax.evaluation.protocols import clip_pair
from sculpt4d_jax.evaluation.protocols import conventions as conventions_lib
from sculpt4d_jax.evaluation.protocols import metric_table
from sculpt4d_jax.evaluation.protocols import protocol_table
from sculpt4d_jax.evaluation.protocols import scores
from sculpt4d_jax.evaluation.protocols.metrics import metric as metric_lib
from sculpt4d_jax.evaluation.views import weight_files
from sculpt4d_jax.inference import run_log

Protocol = conventions_lib.Protocol
Pair = sequence_pairs.SequencePair | sequence_pairs.MemoryPair
# A path, a list of meshes, or an object with `meshes`.
SequenceLike = Any

_PATH = (str, os.PathLike)

_THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_ONE_THREAD = "--xla_cpu_multi_thread_eigen=false"


def evaluate(
  predicted: SequenceLike,
  truth: SequenceLike,
  protocol: str | Protocol = "project",
  *,
  processes: int = 1,
  progress: run_log.ProgressOption = True,
) -> scores.Report:
  """Scores a predicted sequence, or a folder of them, against the truth.

  Args:
    predicted: A sequence in memory, as a list of meshes or an object with
      `meshes`; or the path of a sequence or of a folder of them, which are
      paired by name. A sequence may be a folder of PLY, OBJ or GLB files, an
      animated GLB, USD or Alembic file, or a .npy cloud of tracked points.
    truth: Likewise. A folder's true sequences without a prediction count as
      failed clips, unless the protocol is `project`.
    protocol: A name, as `sculpt4d evaluate --describe` lists them, or a
      protocol.
    processes: Number of processes that share the clips.
    progress: True for a bar on stderr, False for silence, or a function that is
      called with a `run_log.Progress`.

  Returns:
    Scores of every clip frame by frame, and their means with 95 % intervals.

  Raises:
    ValueError: The input cannot be read or compared.
  """
  protocol = protocol_table.resolve(protocol)
  if isinstance(predicted, _PATH) and isinstance(truth, _PATH):
    pairs = sequence_pairs.find_pairs(
      predicted, truth, every_truth=protocol.name != "project"
    )
  else:
    pairs = [sequence_pairs.MemoryPair("sequence", predicted, truth)]
  return evaluate_pairs(pairs, protocol, processes=processes, progress=progress)


def evaluate_pairs(
  pairs: Sequence[Pair],
  protocol: Protocol,
  *,
  processes: int = 1,
  progress: run_log.ProgressOption = True,
) -> scores.Report:
  """Reads and scores pairs of sequences; for arguments see `evaluate`."""
  if processes < 1:
    raise UserError(f"processes={processes} must be at least 1.")
  log = run_log.RunLog(progress)
  with log.stage("score clips", len(pairs)) as bar:
    clips = list(_score_all(pairs, protocol, processes, bar))
  return scores.summarise(protocol, clips, found_weights(protocol))


def with_views(protocol: Protocol, **settings: Any) -> Protocol:
  """The protocol with other pictures, by fields of `ViewSettings`."""
  views = conventions_lib.ViewSettings(**settings)
  return protocol.with_conventions(views=views)


def found_weights(protocol: Protocol) -> dict[str, dict[str, object]]:
  """Weights that the networks among a protocol's metrics have, with hashes."""
  if protocol.name.partition(":")[0] != "views":
    return {}
  return weight_files.found(protocol.conventions.views.weights)


def score_clip(
  prediction: sequences.ShapeSequence | None,
  truth: sequences.ShapeSequence,
  protocol: Protocol,
  *,
  name: str = "",
  workers: int = 1,
  on_frame: Callable[[], object] | None = None,
) -> scores.ClipScores:
  """Scores one clip.

  Args:
    prediction: None if missing; the clip then gets the worst score.
    truth: True meshes, one a frame, each with a surface.
    protocol: The protocol.
    name: Name of the clip.
    workers: Threads of nearest-neighbour searches; -1 is one a core.
    on_frame: Called after each frame, for a progress bar.

  Raises:
    ValueError: The two cannot be compared.
  """
  start = time.monotonic()
  pair = clip_pair.ClipPair(
    prediction, truth, protocol.conventions, name=name, workers=workers
  )
  metrics = [metric_table.METRICS[name] for name in protocol.metrics]
  values = {metric.name: [] for metric in metrics}
  notes = {}

  def score(
    metric: metric_lib.Metric,
    function: Callable[..., float],
    *arguments: object,
  ) -> None:
    if metric.name in notes:
      return
    try:
      values[metric.name].append(function(*arguments))
    except clip_pair.NotDefined as error:
      notes[metric.name] = str(error)

  # Frame by frame, because metrics share a frame's points and distances.
  for frame in range(pair.num_frames):
    for metric in metrics:
      if metric.of_frame is not None:
        score(metric, metric.frame_score, pair, frame)
    if on_frame is not None:
      on_frame()
  features = {}
  for metric in metrics:
    if metric.of_clip is not None:
      score(metric, metric.of_clip, pair)
    elif metric.of_set is not None:
      try:
        features[metric.name] = metric.features_of_clip(pair)
      except clip_pair.NotDefined as error:
        notes[metric.name] = str(error)
  return scores.ClipScores(
    name=name,
    num_frames=pair.num_frames,
    num_empty=int(np.count_nonzero(pair.is_empty)),
    is_failed=prediction is None,
    values={
      # A score of a set has no value for one clip.
      key: np.array(found if found and key not in notes else [np.nan])
      for key, found in values.items()
    },
    features=features,
    notes=notes,
    sources=(pair.prediction.source, pair.truth.source),
    seconds=time.monotonic() - start,
  )


def _score_all(
  pairs: Sequence[Pair],
  protocol: Protocol,
  processes: int,
  bar: run_log.Bar,
) -> Iterator[scores.ClipScores]:
  """Scores of all pairs, in their order."""
  if processes == 1 or len(pairs) == 1:
    for pair in pairs:
      yield _read_and_score(pair, protocol, -1)
      bar.update()
    return
  with (
    _single_threaded(),
    concurrent.futures.ProcessPoolExecutor(
      min(processes, len(pairs)), multiprocessing.get_context("spawn")
    ) as pool,
  ):
    futures = [pool.submit(_read_and_score, p, protocol, 1) for p in pairs]
    try:
      _wait(futures, bar)
    finally:
      pool.shutdown(cancel_futures=True)
    yield from (future.result() for future in futures)


def _wait(
  futures: Iterable[concurrent.futures.Future], bar: run_log.Bar
) -> None:
  """Waits for all, and raises the first error in this process."""
  for future in concurrent.futures.as_completed(futures):
    error = future.exception()
    if isinstance(error, ValueError):
      # Raised as a user's error, as if it had occurred in this process.
      raise sequences.SequenceError(str(error))
    future.result()
    bar.update()


def _read_and_score(
  pair: Pair, protocol: Protocol, workers: int
) -> scores.ClipScores:
  prediction, truth = pair.read_shapes()
  run = None
  if isinstance(pair.predicted, _PATH):
    run = run_seconds.read(pair.predicted)
  found = score_clip(
    prediction, truth, protocol, name=pair.name, workers=workers
  )
  return dataclasses.replace(found, run=run)


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
  """Limits the threads of processes that are started in the block."""
  names = (*_THREAD_SETTINGS, "XLA_FLAGS")
  before = {name: os.environ.get(name) for name in names}
  for name in _THREAD_SETTINGS:
    os.environ.setdefault(name, "1")
  os.environ["XLA_FLAGS"] = f"{before['XLA_FLAGS'] or ''} {_ONE_THREAD}".strip()
  try:
    yield
  finally:
    for name, value in before.items():
      if value is None:
        os.environ.pop(name, None)
      else:
        os.environ[name] = value
