"""Traces of some steps, for TensorBoard's profiler and Perfetto."""

import pathlib

from absl import logging
import jax

from sculpt4d_jax.training import schedule as schedule_lib


class Tracer:
  """Traces the steps that the schedule names, on the first process.

  The steps before are left out, so that compiling is not in the trace; a run
  that goes on behind them writes none.
  """

  def __init__(self, folder: pathlib.Path, schedule: schedule_lib.Schedule):
    self._folder = folder
    self._schedule = schedule
    self._is_on = False

  def before(self, step: int) -> None:
    """Call it before a step, counted from 0, is started."""
    wanted = self._schedule.traces(step) and jax.process_index() == 0
    if wanted and not self._is_on:
      jax.profiler.start_trace(str(self._folder))
      self._is_on = True
    elif self._is_on and not wanted:
      self.close()

  def close(self) -> None:
    """Writes the trace, if one is going on."""
    if self._is_on:
      jax.profiler.stop_trace()
      self._is_on = False
      logging.info(
        "Traced %d steps into %s; see them with tensorboard"
        " --logdir=%s (pip install tensorboard-plugin-profile).",
        self._schedule.profile[1],
        self._folder,
        self._folder,
      )
