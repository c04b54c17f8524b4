r"""Makes an animated mesh from a clip of a moving object.

With the small model that is shipped, on any machine:

  python -m launch.sample --config=configs/tiny.py --input=my.mp4 --output=out

--input is a video (mp4, mov, webm, avi, gif), a folder of pictures or one
picture. The object should fill a good part of the frame. Where it has an alpha
channel or stands before a plain background, it is cut out by itself; else give
a matting network with --matte=onnx:FILE.

OUTPUT gets frame_0000.ply and so on, animation.glb and animation.usdc, a
viewer.html that you open in a browser, preview.png, and run.json.

Faster:        --preset=fast, or --preset=draft; docs/sampling.md has the scores
More frames:   --config.sampling.num_frames=16
Finer meshes:  --config.surface.resolution=192 --config.surface.max_faces=20000
Other result:  --config.sampling.seed=1 --config.sampling.guidance_scale=3
Part of it:    --start=1.5 --end=3
Cut-out alone: --preview_cutout

The full-size model, with converted weights (launch.convert_weights), on one
accelerator; --plan prints what it needs of the memory of usual devices, and
with which savings it fits, and does nothing else:

  python -m launch.sample --plan --config=configs/sculpt4d.py
  python -m launch.sample --config=configs/sculpt4d.py --input=my.mp4 \
      --output=out --checkpoint=weights/hunyuan3d \
      --config.sampling.offload --config.sampling.guidance_in_turns
"""

from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from launch import program
from sculpt4d_jax import api
from sculpt4d_jax.inference import cutout_preview
from sculpt4d_jax.inference import memory_plan
from sculpt4d_jax.inference import outputs
from sculpt4d_jax.inference import sampling as sampling_lib
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io import paths
from sculpt4d_jax.training import preset as preset_lib

_CONFIG = config_flags.DEFINE_config_file(
  "config", "configs/tiny.py", "Preset; see configs/base.py for its fields."
)
_INPUT = flags.DEFINE_string(
  "input", None, "Video, folder of pictures, or picture."
)
_OUTPUT = flags.DEFINE_string(
  "output", None, "Folder for the results; made if missing."
)
_CHECKPOINT = flags.DEFINE_string(
  "checkpoint",
  None,
  "Folder of weights; by default the ones that the preset names.",
)
_PRESET = flags.DEFINE_enum(
  "preset",
  None,
  list(sampling_lib.PRESETS),
  "Solver, steps and guidance interval by name; draft is the fastest. Fields"
  " that are given by --config.sampling win over it.",
)
_MATTE = flags.DEFINE_string(
  "matte",
  "auto",
  "How the object is cut out: auto, alpha, plain, motion, colour, none (the"
  " whole frame is the object), or onnx:FILE, a matting network; python -m"
  " launch.matting lists some.",
)
_PLAN = flags.DEFINE_bool(
  "plan",
  False,
  "Print what the preset needs of a device's memory, and whether usual"
  " devices have it.",
)
_PREVIEW_CUTOUT = flags.DEFINE_bool(
  "preview_cutout",
  False,
  "Only cut the object out and write cutout.png: the frames, and below them"
  " what the model would see.",
)
_START = flags.DEFINE_float("start", None, "First second that is used.")
_END = flags.DEFINE_float("end", None, "Last second that is used.")


def main(argv):
  del argv
  config = _CONFIG.value
  if _PRESET.value:
    given = config_flags.get_override_values(flags.FLAGS["config"])
    _apply_preset(config, _PRESET.value, given)
  preset = preset_lib.from_config(config)
  if _PLAN.value:
    print_plan(preset)
    return
  for flag in (_INPUT, _OUTPUT):
    if not flag.value:
      raise ValueError(f"--{flag.name} is missing; --help explains the flags.")
  program.log_platform()
  output = paths.of(_OUTPUT.value)
  outputs.check_writable(output)
  # The clip first: what is wrong with it is found before weights are loaded.
  clip = api.read_clip(
    local_copies.fetch(_INPUT.value),
    preset,
    matte=_MATTE.value,
    start=_START.value,
    end=_END.value,
  )
  if _PREVIEW_CUTOUT.value:
    print(f"Look at {cutout_preview.write(output, clip)}.")
    return
  result = api.load(preset, _CHECKPOINT.value).generate(clip)
  written = result.save(output)
  logging.info("Wrote %d files to %s.", len(written), output)
  print(f"Open {output / outputs.VIEWER} in a browser.")


def _apply_preset(config, name, given):
  """Sets a sampling preset's fields, except those given on the command line."""
  for field, value in sampling_lib.preset(name).items():
    if f"sampling.{field}" not in given:
      config.sampling[field] = value


def print_plan(preset: preset_lib.Preset) -> None:
  """Prints tables of memory by part and of devices."""
  # Nothing is allocated, but arrays of no numbers still want a device: the
  # host, so that the plan of an accelerator is made without it.
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    planner = memory_plan.Planner(preset.model)
    settings = memory_plan.settings_of(preset.sampling, preset.surface)
    print("\n".join(memory_plan.format_plan(planner, settings)))
  print(
    f"\nWeights in bfloat16; a device is filled to {memory_plan.USABLE:.0%}."
    " The savings are fields of --config.sampling. Estimated, not measured on"
    " these devices; see sculpt4d_jax/inference/memory_plan.py."
  )


if __name__ == "__main__":
  program.run(main)
