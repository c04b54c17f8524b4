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
Other result:  --config.sampling.temperature=0.25 --config.sampling.seed=1
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

from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from launch import processes
from launch import program
from sculpt4d_jax.cli import sample_run
from sculpt4d_jax.diffusion import windows as windows_lib
from sculpt4d_jax.errors import UserError
from sculpt4d_jax.inference import memory_choice
from sculpt4d_jax.inference import sampling as sampling_lib
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
  " smoothly from one window to the next; by default all of the overlap.",
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


def main(argv: Sequence[str]) -> int | None:
  """Runs the program."""
  del argv
  config = _CONFIG.value
  if _PRESET.value:
    given = config_flags.get_override_values(flags.FLAGS["config"])
    sampling_lib.apply_preset(config.sampling, _PRESET.value, given)
  preset = preset_lib.from_config(config)
  if _PLAN.value:
    print(memory_choice.report(preset.model, preset.sampling, preset.surface))
    return None
  for flag in (_INPUT, _OUTPUT):
    if not flag.value:
      raise UserError(f"--{flag.name} is missing; --help explains the flags.")
  processes.initialize()
  program.log_platform()
  return sample_run.run(
    preset,
    sample_run.Options(
      _INPUT.value,
      _OUTPUT.value,
      weights=_CHECKPOINT.value,
      matte=_MATTE.value,
      start=_START.value,
      end=_END.value,
      formats=_FORMATS.value,
      known=_KNOWN.value,
      save_latents=_SAVE_LATENTS.value,
      all_frames=_ALL_FRAMES.value,
      window=_WINDOW.value,
      overlap=_OVERLAP.value,
      blend=_BLEND.value,
      windows=_WINDOWS.value,
      batch=_BATCH.value,
      register=_REGISTER.value,
      preview_cutout=_PREVIEW_CUTOUT.value,
    ),
  )


if __name__ == "__main__":
  program.run(main)
