"""Arguments that several commands have."""

import argparse
from typing import TYPE_CHECKING

from sculpt4d_jax.io import paths

if TYPE_CHECKING:
  import ml_collections


DEFAULT_PRESET = "small"


def add_preset(
  parser: argparse.ArgumentParser, default: str = DEFAULT_PRESET
) -> None:
  """Adds --preset and --set.

  Commands that train, sample or score have one default, so that the results of
  one fit the others; those about the released model have its preset.
  """
  parser.add_argument(
    "--preset",
    default=default,
    metavar="NAME",
    help="preset by name (small, tiny, pods:v5p-64, ...) or a .py file; default:"
    f" {default}",
  )
  parser.add_argument(
    "--set",
    dest="changes",
    action="append",
    default=[],
    metavar="FIELD=VALUE",
    help="change a field of the preset, as --set sampling.guidance_scale=3;"
    " repeat it for more",
  )


def add_weights(parser: argparse.ArgumentParser) -> None:
  """Adds --weights."""
  parser.add_argument(
    "--weights",
    metavar="FOLDER",
    help="folder of weights; default: those that the preset names",
  )


def add_num_sequences(parser: argparse.ArgumentParser) -> None:
  """Adds --num_sequences, of commands that score a model."""
  parser.add_argument(
    "--num_sequences",
    type=int,
    default=20,
    help="held-out clips; default: 20",
  )


def read_preset(args: argparse.Namespace) -> "ml_collections.ConfigDict":
  """The preset that the arguments name, with their changes."""
  from sculpt4d_jax import preset_files

  config = preset_files.read(args.preset)
  changes = preset_files.parse_changes(args.changes)
  return preset_files.change(config, changes)


def progress(args: argparse.Namespace) -> bool:
  """Whether bars are shown."""
  return not args.quiet


def opened_with(page: paths.PathLike) -> str:
  """The last line of a run that made a page."""
  if paths.is_remote(page):
    return f"Copy {page} to this machine and open it in a browser."
  return f"Open {page} in a browser."
