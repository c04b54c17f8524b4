"""Traces of some steps, for TensorBoard's profiler and Perfetto."""

import pathlib
import tempfile

from absl import logging
import jax

from sculpt4d_jax.io import paths
from sculpt4d_jax.io import uploads
from sculpt4d_jax.training import schedule as schedule_lib


class Tracer:
  """Traces the steps that the schedule names, on the first process.

  The first steps are left out, so that compiling is not in the trace. A run
  that resumes after these steps writes no trace.
  """

  def __init__(self, folder: paths.PathLike, schedule: schedule_lib.Schedule):
    self._folder = paths.of(folder)
    self._staging = None  # The profiler writes to local files only.
    self._schedule = schedule
    self._is_on = False

  def before(self, step: int) -> None:
    """Must be called before each step, counted from 0."""
    wanted = self._schedule.traces(step) and jax.process_index() == 0
    if wanted and not self._is_on:
      if paths.is_remote(self._folder):
        self._staging = tempfile.TemporaryDirectory(prefix="sculpt4d-trace-")
      target = self._staging.name if self._staging else self._folder
      jax.profiler.start_trace(str(target))
      self._is_on = True
    elif self._is_on and not wanted:
      self.close()

  def close(self) -> None:
    """Writes the trace, if one is in progress."""
    if self._is_on:
      jax.profiler.stop_trace()
      self._is_on = False
      if self._staging is not None:
        with self._staging as staging:
          try:
            uploads.upload_folder(pathlib.Path(staging), self._folder)
          except OSError as error:  # The run matters more.
            logging.error("The trace is lost. %s", error)
        self._staging = None
      logging.info(
        "Traced %d steps into %s; see them with tensorboard"
        " --logdir=%s (pip install tensorboard-plugin-profile).",
        self._schedule.profile[1],
        self._folder,
        self._folder,
      )
