r"""Makes an animated mesh from a clip of a moving object.

With the included small model, on any machine:

  python -m launch.sample --config=configs/small.py --input=my.mp4 --output=out

--input is a video (mp4, mov, webm, avi, gif), a folder of pictures or one
picture. The object should fill a good part of the frame. It is cut out
automatically if the clip has an alpha channel or a plain background; otherwise
use a matting network with --matte=onnx:FILE.

OUTPUT gets frame_0000.ply and so on, animation.glb and animation.usdc,
viewer.html for a browser, preview.png, and run.json. --formats=obj,usdz writes
other formats.

Faster:        --preset=fast, or --preset=draft; docs/sampling.md has the scores
More frames:   --config.sampling.num_frames=16
Finer meshes:  --config.surface.resolution=192 --config.surface.max_faces=20000
Other result:  --config.sampling.seed=1 --config.sampling.guidance_scale=3
Part of it:    --start=1.5 --end=3
One mesh:      --register, for a single topology in motion
Cut-out alone: --preview_cutout
Long clips:    --all_frames, in windows of the frames that the model was trained
               on; --window=16 --overlap=8 sets them; docs/sampling.md
Many clips:    --input=FOLDER --batch; all local devices share a clip
Many hosts:    --distributed=auto in every process: all devices share a clip, and
               process 0 writes the files
Known frames:  --known=0:mesh.glb, a mesh that is frame 0; --save_latents keeps
               latents.npz, of which --known=0:out/latents.npz@7 takes frame 7

The full-size model, with converted weights (launch.convert_weights), on one
accelerator; --plan prints the memory it needs, common devices and the savings
with which it fits them, and does nothing else:

  python -m launch.sample --plan --config=configs/sculpt4d.py
  python -m launch.sample --config=configs/sculpt4d.py --input=my.mp4 \
      --output=out --checkpoint=weights/hunyuan3d \
      --config.sampling.offload --config.sampling.guidance_in_turns
"""

from collections.abc import Mapping, Sequence
import pathlib
import shutil
from typing import Any

from absl import flags
from absl import logging
import jax
import ml_collections
from ml_collections import config_flags

from launch import processes
from launch import program
from sculpt4d_jax import api
from sculpt4d_jax.diffusion import windows as windows_lib
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import cutout_preview
from sculpt4d_jax.inference import known as known_lib
from sculpt4d_jax.inference import memory_choice
from sculpt4d_jax.inference import outputs
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.inference import sampling as sampling_lib
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io import paths
from sculpt4d_jax.io.meshes import exporters
from sculpt4d_jax.training import preset as preset_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/small.py", "Preset; see configs/base.py for its fields."
)
_INPUT = flags.DEFINE_string(
  "input", None, "Video, folder of pictures or picture."
)
_OUTPUT = flags.DEFINE_string("output", None, "Output folder; made if missing.")
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "Folder of weights; by default the preset's.",
)
_PRESET = flags.DEFINE_enum(
  "preset",
  None,
  list(sampling_lib.PRESETS),
  "Name of a combination of solver, steps and guidance interval; draft is the"
  " fastest. --config.sampling overrides its fields.",
)
_MATTE = flags.DEFINE_string(
  "matte",
  "auto",
  "Method that cuts out the object: auto, alpha, plain, motion, colour, none"
  " (the whole frame is the object), or onnx:FILE, a matting network; python"
  " -m launch.matting lists some.",
)
_KNOWN = flags.DEFINE_multi_string(
  "known",
  [],
  "Known frame, INDEX:FILE: a mesh in the clip's cube, or latents.npz of an"
  " earlier run, optionally followed by @FRAME to take another frame of it."
  " May be repeated.",
)
_SAVE_LATENTS = flags.DEFINE_bool(
  "save_latents", False, "Also write latents.npz, for --known of later runs."
)
_FORMATS = flags.DEFINE_string(
  "formats", None, f"Meshes: {exporters.help_text()}."
)
_ALL_FRAMES = flags.DEFINE_bool(
  "all_frames",
  False,
  "Take the video's own frames instead of resampling it to"
  " config.sampling.num_frames; longer clips are sampled in windows.",
)
_WINDOW = flags.DEFINE_integer(
  "window",
  None,
  "Number of frames of a window of a long clip; with --all_frames by default"
  " the number that the model was trained on (config.data.num_frames).",
)
_OVERLAP = flags.DEFINE_integer(
  "overlap",
  None,
  "Number of frames that consecutive windows share; by default half a window.",
)
_BLEND = flags.DEFINE_integer(
  "blend",
  None,
  "Number of shared frames that a sequential window samples again, to pass"
  " smoothly from one window to the next; by default three quarters of"
  " the overlap.",
)
_WINDOWS = flags.DEFINE_enum(
  "windows",
  "sequential",
  list(windows_lib.KINDS),
  "sequential: one window after the other, in the memory of one window; the"
  " same command resumes after an interruption. averaged: all windows"
  " together, with the smoothest seams.",
)
_BATCH = flags.DEFINE_bool(
  "batch",
  False,
  "Treat --input as a folder of clips, each with its own folder in --output."
  " The same command resumes: finished clips are skipped. Failures are"
  " reported at the end, with exit code 2.",
)
_PLAN = flags.DEFINE_bool(
  "plan",
  False,
  "Print the memory that the preset needs, and whether common devices have it.",
)
_PREVIEW_CUTOUT = flags.DEFINE_bool(
  "preview_cutout",
  False,
  "Only cut out the object and write cutout.png: the frames, and below them"
  " the model's input.",
)
_REGISTER = flags.DEFINE_bool(
  "register",
  False,
  "Also register the sampled meshes to one moving mesh, like launch.register:"
  " registered.glb and its record, next to the other files.",
)
_START = flags.DEFINE_float("start", None, "Start of the used part, seconds.")
_END = flags.DEFINE_float("end", None, "End of the used part, seconds.")


# Folder of finished windows in the output of an unfinished run.
_WINDOW_FOLDER = "windows"


def main(argv: Sequence[str]):
  """Runs the program."""
  del argv
  config = _CONFIG.value
  if _PRESET.value:
    given = config_flags.get_override_values(flags.FLAGS["config"])
    _apply_preset(config, _PRESET.value, given)
  preset = preset_lib.from_config(config)
  if _PLAN.value:
    print(memory_choice.report(preset.model, preset.sampling, preset.surface))
    return
  for flag in (_INPUT, _OUTPUT):
    if not flag.value:
      raise UserError(f"--{flag.name} is missing; --help explains the flags.")
  processes.initialize()
  program.log_platform()
  if jax.process_count() > 1:
    _check_shared()
  if _BATCH.value:
    return _make_batch(preset)
  output = paths.of(_OUTPUT.value)
  outputs.check_writable(output)
  known_files = known_lib.parse(
    _KNOWN.value, None if _ALL_FRAMES.value else preset.sampling.num_frames
  )
  # Errors are found before the work.
  known_lib.check(known_files)
  _formats()
  _window_settings(preset.data.num_frames)
  # The clip first, so that its errors are found before weights are loaded.
  clip = _read(local_copies.fetch(_INPUT.value), preset)
  if _PREVIEW_CUTOUT.value:
    print(f"Look at {cutout_preview.write(output, clip)}.")
    return 0
  is_main = jax.process_index() == 0
  _make(_load(preset), clip, output, known_files, progress=is_main)
  if not is_main:
    return 0
  print(f"Open {output / outputs.VIEWER} in a browser.")
  return 0


def _check_shared() -> None:
  """Refuses what several processes that share a clip cannot do.

  Raises:
    UserError: A flag needs one process.
  """
  for flag in (_BATCH, _WINDOW, _ALL_FRAMES, _PREVIEW_CUTOUT):
    if flag.value:
      raise UserError(
        f"--{flag.name} works in one process, and this run has"
        f" {jax.process_count()} that share one clip. Run it without"
        " --distributed, once a machine."
      )


def _read(
  source: str | pathlib.Path, preset: preset_lib.Preset, progress: bool = True
) -> pipeline.Clip:
  """Reads a clip according to the flags."""
  return api.read_clip(
    source,
    preset,
    all_frames=_ALL_FRAMES.value,
    matte=_MATTE.value,
    start=_START.value,
    end=_END.value,
    progress=progress,
  )


def _load(preset: preset_lib.Preset) -> api.Model:
  return api.load(preset, _CHECKPOINT.value, devices=jax.devices())


def _make(
  model: api.Model,
  clip: pipeline.Clip,
  output: Any,
  known_files: Sequence[known_lib.KnownFile] = (),
  progress: bool = True,
) -> None:
  """Makes one clip and writes its files."""
  result = model.generate(
    clip,
    known=known_files,
    windows=_window_settings(model.config.data.num_frames),
    # A run with output in a store cannot resume.
    window_folder=None if paths.is_remote(output) else output / _WINDOW_FOLDER,
    progress=progress,
  )
  if jax.process_index():
    return  # Process 0 has the same result.
  written = result.save(
    output,
    formats=_formats(),
    latents=_SAVE_LATENTS.value,
    progress=progress,
  )
  if not paths.is_remote(output):  # Finished windows are no longer needed.
    shutil.rmtree(output / _WINDOW_FOLDER, ignore_errors=True)
  logging.info("Wrote %d files to %s.", len(written), output)
  if _REGISTER.value:
    register(paths.of(output), result)


def _make_batch(preset: preset_lib.Preset) -> int:
  """Makes every clip of a folder; the exit code is 2 if one failed."""
  from sculpt4d_jax.inference import batch  # Late: see `register`.

  if _KNOWN.value:
    raise UserError("--known is of one clip; leave it out with --batch.")
  _formats()
  _window_settings(preset.data.num_frames)
  output = paths.of(_OUTPUT.value)
  outputs.check_writable(output)
  jobs = batch.find(
    paths.on_disk(_INPUT.value, "--input"),
    output,
    is_registered=_REGISTER.value,
  )
  if all(job.is_done for job in jobs):
    print(f"All {len(jobs)} clips are done.")
    return 0
  exporters.load_libraries(_formats())
  model = _load(preset)

  def make(job: batch.Job) -> None:
    clip = _read(job.source, preset, progress=False)
    _make(model, clip, job.output, progress=False)

  def on_end(job: batch.Job, reason: str | None) -> None:
    logging.info("%s: %s", job.source.name, reason or "done")

  report = batch.run(jobs, make, _reason, on_end)
  print(report.describe())
  return 2 if report.failed else 0


def _reason(error: Exception) -> str:
  """Reason why a clip failed; a bug keeps its traceback in the log."""
  message = program.user_message(error)
  if message is None:
    logging.error("A clip failed unexpectedly.", exc_info=error)
    message = f"{type(error).__name__}: {error}"
  return message


def _formats() -> tuple[str, ...] | None:
  """The formats that the flag names; None takes the default ones."""
  return exporters.parse(_FORMATS.value) if _FORMATS.value else None


def _window_settings(trained_frames: int) -> windows_lib.Windows | None:
  """Windows of a long clip; None if all frames are sampled at once."""
  if _WINDOW.value is None and not _ALL_FRAMES.value:
    for flag in (_OVERLAP, _BLEND):
      if flag.value is not None:
        raise UserError(f"--{flag.name} is of windows: give --window too.")
    return None
  size = trained_frames if _WINDOW.value is None else _WINDOW.value
  return windows_lib.make(size, _OVERLAP.value, _BLEND.value, _WINDOWS.value)


def register(output: paths.StorePath, result: api.Result) -> None:
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
  log = run_log.RunLog()
  registered = registering.register(source.meshes, log=log)
  registering.write(output, registered, source, log)
  print(registering.summary(registered))


def _apply_preset(
  config: ml_collections.ConfigDict, name: str, given: Mapping[str, Any]
):
  """Sets a sampling preset's fields, except those given on the command line."""
  for field, value in sampling_lib.preset(name).items():
    if f"sampling.{field}" not in given:
      config.sampling[field] = value


if __name__ == "__main__":
  program.run(main)
