"""The command `sculpt4d`: a subcommand for each thing that people do.

To add one, write a module in `cli/` with a docstring that teaches it, a
function `add_arguments(parser)` and a function `run(args)`, and name it in
COMMANDS. A module imports what computes in `run` alone, so that every help
text appears at once.
"""

import argparse
from collections.abc import Mapping, Sequence
import importlib
import os
import shlex
import sys
from typing import NoReturn

from absl import flags
from absl import logging

import sculpt4d_jax
from sculpt4d_jax.cli import exits

NAME = "sculpt4d"

# Command -> module in this package and its description.
COMMANDS: Mapping[str, tuple[str, str]] = {
  "demo": ("demo", "make meshes of the clip that is shipped"),
  "sample": ("sample", "make meshes of a clip of yours"),
  "register": ("register", "make one mesh that moves of a sequence"),
  "figure": ("figure", "draw sequences as a sheet of times by views"),
  "app": ("app", "serve a page to upload, look and play"),
  "matting": ("matting", "list and download cut-out networks"),
  "train": ("train", "train a model, on made clips or on records"),
  "evaluate": ("evaluate", "score mesh sequences, or a model"),
  "reproduce": ("reproduce", "reproduce the paper's tables"),
  "convert": ("convert", "convert released weights"),
  "plan": ("plan", "estimate the device memory that a model needs"),
  "info": ("info", "show versions, devices and optional packages"),
}

_DESCRIPTION = """\
Sculpt4D: a video of a moving object in, a mesh for every frame out.

Begin with:

  sculpt4d demo                      meshes of the shipped clip, in out/demo
  sculpt4d sample my.mp4 -o out      meshes of a clip of yours
  sculpt4d info                      whether your GPU or TPU is used
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
  """Runs the command.

  Args:
    argv: Arguments; None takes the process's.
  """
  arguments = list(sys.argv[1:] if argv is None else argv)
  name = NAME
  if arguments and arguments[0] in COMMANDS:
    name = f"{NAME} {arguments[0]}"
  exits.set_up(name)
  exits.guard(lambda: _run(arguments), name)


def _run(arguments: list[str]) -> int:
  parser = _parser(arguments[0] if arguments else "")
  try:
    args = parser.parse_args(arguments)
    if args.command is None:
      parser.print_help()
      return 2
  except BrokenPipeError:  # As in `... --help | head`.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0
  flags.FLAGS([NAME], known_only=True)  # Required by absl's logging.
  logging.set_verbosity(
    logging.WARNING if args.quiet else logging.INFO + args.verbose
  )
  args.command_line = shlex.join([NAME, *arguments])
  return args.run(args) or 0


def _parser(chosen: str) -> argparse.ArgumentParser:
  """The parser; imports only the chosen command's module."""
  parser = argparse.ArgumentParser(
    prog=NAME,
    description=_DESCRIPTION,
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.add_argument(
    "--version",
    action="version",
    version=f"{NAME} {sculpt4d_jax.__version__}",
  )
  commands = parser.add_subparsers(
    dest="command", metavar="COMMAND", title="commands"
  )
  for name, (module, summary) in COMMANDS.items():
    if name != chosen:
      commands.add_parser(name, help=summary)
      continue
    code = importlib.import_module(f"sculpt4d_jax.cli.{module}")
    command = commands.add_parser(
      name,
      help=summary,
      description=code.__doc__,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    code.add_arguments(command)
    output = command.add_argument_group("what is printed")
    output.add_argument(
      "-q", "--quiet", action="store_true", help="warnings and errors alone"
    )
    output.add_argument(
      "-v", "--verbose", action="count", default=0, help="more, for reports"
    )
    command.set_defaults(run=code.run)
  return parser
