"""Converts released checkpoints into a folder of weights.

Look first, then convert Hunyuan3D 2.1, whose file holds all three networks:

  sculpt4d convert tencent/Hunyuan3D-2.1
  sculpt4d convert tencent/Hunyuan3D-2.1 -o weights/hunyuan3d

A source is a file (.safetensors, .ckpt, .pt, .pth, .bin, or the .index.json of
shards), a folder of such files, or a repository of Hugging Face, OWNER/NAME
(extra "hub"). Each network is taken from the first source that has it. Without
-o nothing is written: every name is listed with its destination.

Some networks:    --parts dit vae
Sculpt4D:         sculpt4d convert TencentARC/Sculpt4D tencent/Hunyuan3D-2.1 ...
Adapters (LoRA):  sculpt4d convert WEIGHTS ADAPTERS -o FOLDER
Other names:      --rules FILE

Pickles are read as lists of tensors; one that asks for anything else is
refused, and nothing in it is run. The licences of released weights are their
owners'; those of Hunyuan3D 2.1 and Sculpt4D are not valid in the European
Union, the United Kingdom and South Korea.
"""

import argparse

from sculpt4d_jax.cli import options

_PARTS = ("dit", "vae", "image_encoder")


def add_arguments(parser: argparse.ArgumentParser) -> None:
  """Defines the command's arguments."""
  parser.add_argument(
    "source", nargs="+", help="file, folder or repository", metavar="SOURCE"
  )
  parser.add_argument(
    "-o", "--output", metavar="FOLDER", help="new folder of weights"
  )
  options.add_preset(parser, "sculpt4d")
  parser.add_argument(
    "--parts",
    nargs="+",
    choices=_PARTS,
    default=list(_PARTS),
    help="networks that are wanted; default: all",
  )
  parser.add_argument(
    "--dtype",
    choices=("bfloat16", "float32"),
    default="bfloat16",
    help="type of the stored numbers; default: bfloat16",
  )
  parser.add_argument("--rules", help="JSON or TOML file of rules for names")
  parser.add_argument(
    "--temporal_heads",
    help="layout of the heads of temporal attention, where it is asked for",
  )
  parser.add_argument(
    "--adapter_alpha",
    type=float,
    help="alpha of LoRA adapters, where no file says it",
  )
  parser.add_argument(
    "--overwrite", action="store_true", help="replace an earlier conversion"
  )
  parser.add_argument("--revision", help="branch, tag or commit")
  parser.add_argument("--cache", help="folder of downloads")
  parser.add_argument(
    "--offline", action="store_true", help="use earlier downloads alone"
  )


def run(args: argparse.Namespace) -> None:
  """Runs the command."""
  from sculpt4d_jax import api

  conversion = api.convert_weights(
    args.source,
    args.output,
    preset=options.read_preset(args),
    parts=args.parts,
    dtype=args.dtype,
    overwrite=args.overwrite,
    progress=options.progress(args),
    rules=args.rules,
    temporal_heads=args.temporal_heads,
    adapter_alpha=args.adapter_alpha,
    revision=args.revision,
    cache=args.cache,
    offline=args.offline,
  )
  lines = conversion.summary() if args.output else conversion.describe()
  print("\n".join(lines))
  if args.output:
    print(f"Wrote {args.output}; use it with --weights {args.output}.")
