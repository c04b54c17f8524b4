"""Keeps the best states of a run by a held-out metric."""

from collections.abc import Mapping
import json
import math
from typing import Any

from absl import logging
import jax

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import atomic
from sculpt4d_jax.io import paths
from sculpt4d_jax.training import checkpoints as checkpoints_lib
from sculpt4d_jax.training import schedule as schedule_lib
from sculpt4d_jax.training import state as state_lib


class Best:
  """Keeps the best `keep_best` checkpoints in a folder, with their metrics."""

  def __init__(self, folder: paths.PathLike, schedule: schedule_lib.Schedule):
    self._folder = paths.of(folder)
    self._schedule = schedule
    self._checkpoints = None
    self._scores = {}
    if not schedule.keep_best:
      return
    self._checkpoints = checkpoints_lib.Checkpoints(
      self._folder, max_to_keep=None
    )
    path = self._path()
    known = json.loads(path.read_text()) if path.exists() else {}
    # A checkpoint without a score (the run ended in between) is ignored.
    self._scores = {
      step: known[str(step)]
      for step in self._checkpoints.steps()
      if str(step) in known
    }

  def offer(
    self, state: state_lib.TrainState, values: dict[str, float]
  ) -> None:
    """Keeps the state if its metric is among the best so far.

    Every process calls it with the same values. Values of another kind of
    evaluation are ignored.

    Raises:
      CheckpointError: The checkpoint cannot be written.
      ValueError: The evaluation has no metric of that name.
    """
    name, keep = self._schedule.best_metric, self._schedule.keep_best
    if not keep:
      return
    alike = [
      n for n in values if schedule_lib.kind(n) == schedule_lib.kind(name)
    ]
    if alike and name not in values:
      raise UserError(
        f"best_metric={name!r} is not among what is evaluated:"
        f" {', '.join(sorted(alike))}."
      )
    if not alike or not math.isfinite(values[name]):
      return
    step, score = int(state.step), float(values[name])
    if step in self._scores or step in self._checkpoints.steps():
      return
    ranked = self._ranked(self._scores | {step: score})
    if step not in ranked[:keep]:
      return
    logging.info("Step %d is among the best: %s %.4g.", step, name, score)
    self._checkpoints.save(state)
    # A store that is away costs the checkpoint, not the run. The processes must
    # not differ in their scores; `restore` looks at what was written.
    self._checkpoints.settle()
    self._checkpoints.wait()
    self._scores[step] = score
    for loser in ranked[keep:]:
      self._checkpoints.delete(loser)
      del self._scores[loser]
    self._write_scores()

  def best_step(self) -> int | None:
    """The best step, or None if there is none yet."""
    ranked = self._ranked(self._scores)
    return ranked[0] if ranked else None

  def restore(self, abstract: state_lib.TrainState, shardings: Any):
    """The best state.

    Raises:
      ValueError: There is none.
    """
    if self._checkpoints is not None:
      self._checkpoints.reload()
      whole = self._checkpoints.steps()
      self._scores = {s: x for s, x in self._scores.items() if s in whole}
    step = self.best_step()
    if step is None:
      raise UserError(
        f"{self._folder} holds no best checkpoint: {self._schedule.best_metric}"
        " was never evaluated. Choose a best_metric that is, or export 'last'."
      )
    logging.info(
      "The best step is %d: %s %.4g.",
      step,
      self._schedule.best_metric,
      self._scores[step],
    )
    return self._checkpoints.restore_step(step, abstract, shardings)

  def close(self) -> None:
    """Waits for the last save."""
    if self._checkpoints is not None:
      self._checkpoints.close()

  def _ranked(self, scores: Mapping[int, float]) -> list[int]:
    sign = -1.0 if self._schedule.best_is_highest else 1.0
    return sorted(scores, key=lambda step: (sign * scores[step], step))

  def _path(self):
    return self._folder.with_name(f"{self._folder.name}.json")

  def _write_scores(self):
    if jax.process_index() == 0:
      content = {"metric": self._schedule.best_metric} | {
        str(step): score for step, score in sorted(self._scores.items())
      }
      text = json.dumps(content, indent=1)
      try:
        atomic.write_bytes(self._path(), text.encode())
      except atomic.OutputError as error:
        if not paths.is_remote(self._folder):
          raise
        logging.error("%s The run continues without it.", error)
