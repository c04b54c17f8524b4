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

The full-size model, with converted weights (launch.convert_weights), on one
accelerator; --plan prints what it needs of the memory of usual devices, and
with which savings it fits, and does nothing else:

  python -m launch.sample --plan --config=configs/sculpt4d.py
  python -m launch.sample --config=configs/sculpt4d.py --input=my.mp4 \
      --output=out --checkpoint=weights/hunyuan3d \
      --config.sampling.offload --config.sampling.guidance_in_turns
"""

import dataclasses
import importlib.metadata
import os
import pathlib
import platform

from absl import flags
from absl import logging
import jax
from ml_collections import config_flags

from launch import program
from sculpt4d_jax.inference import memory_plan
from sculpt4d_jax.inference import model as model_lib
from sculpt4d_jax.inference import outputs
from sculpt4d_jax.inference import pipeline
from sculpt4d_jax.inference import run_log
from sculpt4d_jax.inference import sampling as sampling_lib

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
  "How the object is cut out: auto, alpha, plain, none (the whole frame is"
  " the object), or onnx:FILE, a matting network.",
)
_PLAN = flags.DEFINE_bool(
  "plan",
  False,
  "Print what the preset needs of a device's memory, and whether usual"
  " devices have it.",
)
_START = flags.DEFINE_float("start", None, "First second that is used.")
_END = flags.DEFINE_float("end", None, "Last second that is used.")

_VERSIONS = ("jax", "jaxlib", "flax", "numpy", "scikit-image", "trimesh")


def main(argv):
  del argv
  config = _CONFIG.value
  if _PRESET.value:
    given = config_flags.get_override_values(flags.FLAGS["config"])
    _apply_preset(config, _PRESET.value, given)
  if _PLAN.value:
    print_plan(config)
    return
  for flag in (_INPUT, _OUTPUT):
    if not flag.value:
      raise ValueError(f"--{flag.name} is missing; --help explains the flags.")
  program.log_platform()
  sampling = model_lib.SamplingConfig(**config.sampling)
  surface = pipeline.SurfaceConfig(**config.surface)
  output = pathlib.Path(_OUTPUT.value)
  _check_writable(output)
  log = run_log.RunLog()
  clip = pipeline.read_clip(
    _INPUT.value,
    log,
    num_frames=sampling.num_frames,
    image_size=config.model.image_encoder.image_size,
    matte=_MATTE.value,
    start=_START.value,
    end=_END.value,
    border_ratio=config.data.border_ratio,
  )
  folder = model_lib.weights_folder(config.weights, _CHECKPOINT.value)
  with log.stage("load weights"):
    model = model_lib.Sculpt4D.load(
      config.model, folder, offload=sampling.offload
    )
  result = pipeline.generate(model, clip, sampling, surface, log)
  details = _details(config, clip, sampling, surface, folder)
  paths = outputs.write(output, result, details, log)
  logging.info("Wrote %d files to %s.", len(paths), output)
  print(f"Open {output / outputs.VIEWER} in a browser.")


def _apply_preset(config, name, given):
  """Sets a sampling preset's fields, except those given on the command line."""
  for field, value in sampling_lib.preset(name).items():
    if f"sampling.{field}" not in given:
      config.sampling[field] = value


def print_plan(config) -> None:
  """Prints tables of memory by part and of devices."""
  # Nothing is allocated, but arrays of no numbers still want a device: the
  # host, so that the plan of an accelerator is made without it.
  with jax.default_device(jax.local_devices(backend="cpu")[0]):
    planner = memory_plan.Planner(config.model)
    settings = memory_plan.settings_of(config)
    print("\n".join(memory_plan.format_plan(planner, settings)))
  print(
    f"\nWeights in bfloat16; a device is filled to {memory_plan.USABLE:.0%}."
    " The savings are fields of --config.sampling. Estimated, not measured on"
    " these devices; see sculpt4d_jax/inference/memory_plan.py."
  )


def _check_writable(folder: pathlib.Path) -> None:
  """Fails before the work, not after it."""
  existing = next(p for p in (folder, *folder.absolute().parents) if p.exists())
  if not existing.is_dir():
    raise ValueError(
      f"Cannot write to {folder}: {existing} is a file; choose a folder."
    )
  if not os.access(existing, os.W_OK | os.X_OK):
    raise ValueError(
      f"Cannot write to {folder}: no permission to write in {existing};"
      " choose another folder."
    )


def _details(config, clip, sampling, surface, folder):
  """What run.json tells."""
  return {
    "preset": config.name,
    "input": {
      "name": clip.source.name,
      "frames": clip.source.num_frames,
      "fps": clip.source.fps,
      "timestamps": [round(float(t), 6) for t in clip.source.timestamps],
      "cut_out": clip.foreground.method,
      "cut_out_confidence": round(float(clip.foreground.confidence), 3),
      "crop": dataclasses.asdict(clip.box),
    },
    "weights": str(folder),
    "sampling": dataclasses.asdict(sampling),
    "surface": dataclasses.asdict(surface),
    "seed": sampling.seed,
    "device": jax.devices()[0].device_kind,
    "versions": {"python": platform.python_version()}
    | {name: importlib.metadata.version(name) for name in _VERSIONS},
  }


if __name__ == "__main__":
  program.run(main)
