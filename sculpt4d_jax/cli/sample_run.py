"""The work of `sculpt4d sample` and of the program `sample` of a checkout.

Both read their arguments, then call `run` with a preset and `Options`.
"""

from collections.abc import Sequence
import dataclasses
import pathlib
import shutil
from typing import Any

from absl import logging
import jax

from sculpt4d_jax import api
from sculpt4d_jax.cli import exits
from sculpt4d_jax.cli import options as arguments
from sculpt4d_jax.diffusion import windows as windows_lib
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import cutout_preview
from sculpt4d_jax.inference import known as known_lib
from sculpt4d_jax.inference import outputs
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io import paths
from sculpt4d_jax.io.meshes import exporters
from sculpt4d_jax.training import preset as preset_lib

# Folder of finished windows in the output of an unfinished run.
_WINDOW_FOLDER = "windows"


@dataclasses.dataclass(frozen=True)
class Options:
  """What to sample besides a preset's settings, named like the arguments.

  Attributes:
    input: Clip, or with `batch` a folder of clips.
    output: Folder for the results; made if missing.
    weights: Folder of weights; None takes the preset's.
    matte: Way to cut out the object.
    start: Start of the used part, seconds.
    end: End of the used part, seconds.
    formats: Names of the meshes' formats; None writes the default ones.
    known: Known frames, INDEX:FILE or INDEX:FILE@FRAME.
    save_latents: Whether to write latents.npz.
    all_frames: Whether to take the video's own frames, in windows.
    window: Frames of a window of a long clip.
    overlap: Frames that consecutive windows share.
    blend: Shared frames over which sequential windows fade.
    windows: Kind of the windows, see `diffusion/windows.py`.
    batch: Whether the input is a folder of clips.
    register: Whether to register the meshes to one.
    preview_cutout: Whether to write cutout.png and stop.
    progress: Whether bars are shown.
  """

  input: str
  output: paths.PathLike
  weights: str | None = None
  matte: str = "auto"
  start: float | None = None
  end: float | None = None
  formats: str | None = None
  known: Sequence[str] = ()
  save_latents: bool = False
  all_frames: bool = False
  window: int | None = None
  overlap: int | None = None
  blend: int | None = None
  windows: str = "sequential"
  batch: bool = False
  register: bool = False
  preview_cutout: bool = False
  progress: bool = True


def run(preset: preset_lib.Preset, options: Options) -> int:
  """Makes the meshes of one clip or of all clips of a folder.

  With several processes all share one clip, and process 0 writes the files.

  Returns:
    The exit code: 0, or 2 if a clip of a batch failed.

  Raises:
    UserError: An argument or a file cannot be used.
  """
  if jax.process_count() > 1:
    _check_shared(options)
  output = paths.of(options.output)
  if not options.preview_cutout:
    outputs.check_writable(output)
  # Errors are found before the work.
  names = exporters.parse(options.formats) if options.formats else None
  windows = _windows(options, preset.data.num_frames)
  if options.batch:
    return _run_batch(preset, options, names, windows)
  known_files = known_lib.parse(
    options.known, None if options.all_frames else preset.sampling.num_frames
  )
  known_lib.check(known_files)
  # The clip first, so that its errors are found before weights are loaded.
  source = local_copies.fetch(options.input)
  clip = _read(source, preset, options, options.progress)
  if options.preview_cutout:
    print(f"Look at {cutout_preview.write(output, clip)}.")
    return 0
  is_main = jax.process_index() == 0
  maker = _Maker(preset, options, names, windows, options.progress and is_main)
  maker.make(clip, output, known_files)
  if is_main:
    print(arguments.opened_with(output / outputs.VIEWER))
  return 0


class _Maker:
  """A loaded model, and what all clips of a run have in common."""

  def __init__(
    self,
    preset: preset_lib.Preset,
    options: Options,
    formats: Sequence[str] | None,
    windows: windows_lib.Windows | None,
    progress: bool,
  ):
    self._options, self._formats, self._windows = options, formats, windows
    self._progress = progress
    self._model = api.load(
      preset, options.weights, devices=jax.devices(), progress=progress
    )

  def make(
    self,
    clip: pipeline.Clip,
    output: Any,
    known_files: Sequence[known_lib.KnownFile] = (),
  ) -> None:
    """Makes one clip and writes its files."""
    # A run with output in a store cannot resume.
    is_local = not paths.is_remote(output)
    window_folder = output / _WINDOW_FOLDER if is_local else None
    result = self._model.generate(
      clip,
      known=known_files,
      windows=self._windows,
      window_folder=window_folder,
      progress=self._progress,
    )
    if jax.process_index():
      return  # Process 0 has the same result.
    written = result.save(
      output,
      formats=self._formats,
      latents=self._options.save_latents,
      progress=self._progress,
    )
    if window_folder is not None:  # Finished windows are no longer needed.
      shutil.rmtree(window_folder, ignore_errors=True)
    logging.info("Wrote %d files to %s.", len(written), output)
    if self._options.register:
      _register(paths.of(output), result, self._progress)


def _run_batch(
  preset: preset_lib.Preset,
  options: Options,
  formats: Sequence[str] | None,
  windows: windows_lib.Windows | None,
) -> int:
  """Makes every clip of a folder; the exit code is 2 if one failed."""
  from sculpt4d_jax.inference import batch  # Late: see `_register`.

  for name in ("known", "preview_cutout"):
    if getattr(options, name):
      raise UserError(f"--{name} is of one clip; leave it out with --batch.")
  jobs = batch.find(
    paths.on_disk(options.input, "--input"),
    paths.of(options.output),
    is_registered=options.register,
  )
  if all(job.is_done for job in jobs):
    print(f"All {len(jobs)} clips are done.")
    return 0
  exporters.load_libraries(formats)
  maker = _Maker(preset, options, formats, windows, progress=False)

  def make(job: batch.Job) -> None:
    clip = _read(job.source, preset, options, progress=False)
    maker.make(clip, job.output)

  def on_end(job: batch.Job, reason: str | None) -> None:
    logging.info("%s: %s", job.source.name, reason or "done")

  report = batch.run(jobs, make, _reason, on_end)
  print(report.describe())
  return 2 if report.failed else 0


def _read(
  source: str | pathlib.Path,
  preset: preset_lib.Preset,
  options: Options,
  progress: bool,
) -> pipeline.Clip:
  return api.read_clip(
    source,
    preset,
    all_frames=options.all_frames,
    matte=options.matte,
    start=options.start,
    end=options.end,
    progress=progress,
  )


def _check_shared(options: Options) -> None:
  """Refuses what several processes that share a clip cannot do.

  Raises:
    UserError: An argument needs one process.
  """
  for name in ("batch", "window", "all_frames", "preview_cutout"):
    if getattr(options, name):
      raise UserError(
        f"--{name} works in one process, and this run has"
        f" {jax.process_count()} that share one clip. Run it without"
        " --distributed, once a machine."
      )


def _windows(
  options: Options, trained_frames: int
) -> windows_lib.Windows | None:
  """Windows of a long clip; None if all frames are sampled at once."""
  if options.window is None and not options.all_frames:
    for name in ("overlap", "blend"):
      if getattr(options, name) is not None:
        raise UserError(f"--{name} is of windows: give --window too.")
    return None
  size = trained_frames if options.window is None else options.window
  return windows_lib.make(size, options.overlap, options.blend, options.windows)


def _reason(error: Exception) -> str:
  """Reason why a clip failed; a bug keeps its traceback in the log."""
  message = exits.user_message(error)
  if message is None:
    logging.error("A clip failed unexpectedly.", exc_info=error)
    message = f"{type(error).__name__}: {error}"
  return message


def _register(
  output: paths.StorePath, result: api.Result, progress: bool
) -> None:
  """Registers one mesh to a sample and writes it next to the sample's files."""
  # Imported late: a sample alone need not wait for it.
  from sculpt4d_jax.inference import registering
  from sculpt4d_jax.io.meshes import sequence_input

  clip = result.clip.source
  source = sequence_input.MeshSequence(
    clip.name,
    list(result.meshes),
    clip.fps,
    clip.timestamps - clip.timestamps[0],
  )
  log = run_log.RunLog(progress)
  registered = registering.register(source.meshes, log=log)
  registering.write(output, registered, source, log)
  print(registering.summary(registered))
