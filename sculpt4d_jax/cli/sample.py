r"""Makes an animated mesh of a clip of a moving object.

  sculpt4d sample my.mp4 -o out
  sculpt4d sample my.mp4 -o out --frames 16
  sculpt4d sample my.mp4 -o out --quality draft          fewer steps
  sculpt4d sample my.mp4 -o out --start 1.5 --end 3      a part of it
  sculpt4d sample pictures/ -o out --matte alpha
  sculpt4d sample my.mp4 -o out --register               one mesh that moves too
  sculpt4d sample long.mp4 -o out --all_frames           long clips, in windows
  sculpt4d sample clips/ -o out --batch                  all clips of a folder
  sculpt4d sample my.mp4 -o out --known 0:mesh.glb       the mesh is frame 0

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
import dataclasses

from sculpt4d_jax.cli import exits
from sculpt4d_jax.cli import options
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
  parser.add_argument(
    "--batch",
    action="store_true",
    help="CLIP is a folder of clips, each with a folder in the output; finished"
    " ones are skipped",
  )
  many = parser.add_argument_group("long clips")
  many.add_argument(
    "--all_frames",
    action="store_true",
    help="the video's own frames, in windows; the same command resumes",
  )
  many.add_argument(
    "--window",
    type=int,
    metavar="FRAMES",
    help="frames of a window; default: as many as the model was trained on",
  )
  many.add_argument(
    "--overlap",
    type=int,
    metavar="FRAMES",
    help="frames that windows share; default: half a window",
  )
  many.add_argument(
    "--windows",
    default="sequential",
    metavar="KIND",
    help="sequential, in the memory of one window, or averaged, with the"
    " smoothest seams; default: sequential",
  )
  frames = parser.add_argument_group("known frames")
  frames.add_argument(
    "--known",
    action="append",
    default=[],
    metavar="INDEX:FILE",
    help="a mesh that is that frame, or latents.npz@FRAME of an earlier run;"
    " repeat it for more",
  )
  frames.add_argument(
    "--save_latents",
    action="store_true",
    help="write latents.npz too, for --known of later runs",
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
  parser.add_argument(
    "--seed",
    type=int,
    help="another seed, another result, with noise (sampling.temperature)",
  )
  parser.add_argument(
    "--resolution", type=int, help="cells of the surface's grid along an axis"
  )
  parser.add_argument("--faces", type=int, help="faces of a mesh at most")
  parser.add_argument(
    "--formats", metavar="NAME,...", help=exporters.help_text()
  )
  parser.add_argument(
    "--register",
    action="store_true",
    help="also register the meshes to one that moves: registered.glb",
  )


def run(args: argparse.Namespace) -> int:
  """Runs the command."""
  from sculpt4d_jax.cli import sample_run
  from sculpt4d_jax.inference import sampling
  from sculpt4d_jax.training import preset

  config = options.read_preset(args)
  if args.quality:
    given = [change.partition("=")[0] for change in args.changes]
    sampling.apply_preset(config.sampling, args.quality, given)
  for section, name, value in (
    ("sampling", "num_frames", args.frames),
    ("sampling", "num_steps", args.steps),
    ("sampling", "seed", args.seed),
    ("surface", "resolution", args.resolution),
    ("surface", "max_faces", args.faces),
  ):
    if value is not None:
      config[section][name] = value
  # `demo` has some of the arguments only.
  names = {field.name for field in dataclasses.fields(sample_run.Options)}
  given = {name: value for name, value in vars(args).items() if name in names}
  chosen = sample_run.Options(
    args.clip, progress=options.progress(args), **given
  )
  if not chosen.preview_cutout:
    exits.log_platform()
  return sample_run.run(preset.from_config(config), chosen)
