"""Arguments that several commands have."""

import argparse
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
  import ml_collections


DEFAULT_PRESET = "small"


def add_preset(parser: argparse.ArgumentParser) -> None:
  """Adds --preset and --set.

  All commands have one default, so that what one makes fits the others.
  """
  parser.add_argument(
    "--preset",
    default=DEFAULT_PRESET,
    metavar="NAME",
    help="preset by name (small, tiny, pods:v5p-64, ...) or a .py file; default:"
    f" {DEFAULT_PRESET}",
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


def read_preset(args: argparse.Namespace) -> "ml_collections.ConfigDict":
  """The preset that the arguments name, with their changes."""
  from sculpt4d_jax import preset_files

  config = preset_files.read(args.preset)
  changes = preset_files.parse_changes(args.changes)
  return preset_files.change(config, changes)


def progress(args: argparse.Namespace) -> bool:
  """Whether bars are shown."""
  return not args.quiet


def opened_with(page: os.PathLike) -> str:
  """The last line of a run that made a page."""
  return f"Open {os.fspath(page)} in a browser."
