r"""Makes an animated mesh of a clip of a moving object.

  sculpt4d sample my.mp4 -o out
  sculpt4d sample my.mp4 -o out --frames 16 --seed 1
  sculpt4d sample my.mp4 -o out --quality draft          fewer steps
  sculpt4d sample my.mp4 -o out --start 1.5 --end 3      a part of it
  sculpt4d sample pictures/ -o out --matte alpha

The clip is a video (mp4, mov, webm, avi, gif), a folder of pictures or one
picture. The object should fill a good part of the frame. With an alpha channel
or before a plain background it is cut out automatically; otherwise give a
matting network with --matte onnx:FILE. `--preview_cutout` writes cutout.png
into the output folder and stops before the long computation.

The output folder gets frame_0000.ply and so on, animation.glb, animation.usdc
(with the extra "usd"), a viewer.html to open in a browser, preview.png, and
run.json. `--formats` chooses other formats.

The full-size model, with converted weights (`sculpt4d convert --help`), on one
accelerator; `sculpt4d plan --preset sculpt4d` says what it needs:

  sculpt4d sample my.mp4 -o out --preset sculpt4d --weights weights/hunyuan3d \
      --set sampling.offload=true --set sampling.guidance_in_turns=true
"""

import argparse

from absl import logging

from sculpt4d_jax.cli import exits
from sculpt4d_jax.cli import options
from sculpt4d_jax.io import paths
from sculpt4d_jax.io.meshes import exporters


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Defines the command's arguments."""
  parser.add_argument(
    "clip", help="video, picture, or folder of pictures", metavar="CLIP"
  )
  parser.add_argument(
    "-o",
    "--output",
    default="out",
    metavar="FOLDER",
    help="folder for the results, made if missing; default: out",
  )
  add_settings(parser)
  parser.add_argument(
    "--matte",
    default="auto",
    help="cut-out: auto, alpha, plain, none (the frame is the object) or"
    " onnx:FILE; default: auto",
  )
  parser.add_argument("--start", type=float, help="first second used")
  parser.add_argument("--end", type=float, help="last second used")
  parser.add_argument(
    "--preview_cutout",
    action="store_true",
    help="write cutout.png, a picture of the cut-out, and stop",
  )


def add_settings(parser: argparse.ArgumentParser) -> None:
  """Defines the settings that `demo` also has."""
  options.add_preset(parser)
  options.add_weights(parser)
  parser.add_argument(
    "--frames", type=int, help="frames that a longer clip is resampled to"
  )
  parser.add_argument(
    "--quality",
    metavar="NAME",
    help="sampler by name: draft, fast or quality",
  )
  parser.add_argument("--steps", type=int, help="steps of the sampler")
  parser.add_argument("--seed", type=int, help="another seed, another result")
  parser.add_argument(
    "--resolution", type=int, help="cells of the surface's grid along an axis"
  )
  parser.add_argument("--faces", type=int, help="faces of a mesh at most")
  parser.add_argument(
    "--formats", metavar="NAME,...", help=exporters.help_text()
  )


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from sculpt4d_jax import api
  from sculpt4d_jax.inference import cutout_preview
  from sculpt4d_jax.inference import outputs

  formats = exporters.parse(args.formats) if args.formats else None
  config = options.read_preset(args)
  output = paths.of(args.output)
  if not args.preview_cutout:
    outputs.check_writable(output)
    exits.log_platform()
  # The clip first, so that its errors are found before weights are loaded.
  clip = api.read_clip(
    args.clip,
    config,
    num_frames=args.frames,
    matte=args.matte,
    start=args.start,
    end=args.end,
    progress=options.progress(args),
  )
  if args.preview_cutout:
    print(f"Look at {cutout_preview.write(output, clip)}.")
    return
  model = api.load(config, args.weights, progress=options.progress(args))
  result = model.generate(
    clip,
    num_frames=args.frames,
    quality=args.quality,
    num_steps=args.steps,
    seed=args.seed,
    resolution=args.resolution,
    max_faces=args.faces,
    progress=options.progress(args),
  )
  files = result.save(output, formats=formats, progress=options.progress(args))
  logging.info("Wrote %d files to %s.", len(files), output)
  print(options.opened_with(output / outputs.VIEWER))
