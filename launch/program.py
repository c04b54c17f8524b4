"""Start, help and exit of every program.

A program is a module with a docstring of usage, absl flags and a `main(argv)`,
and ends with `program.run(main)`. `sculpt4d_jax/cli/exits.py`, which the
command `sculpt4d` uses too, defines exit codes and messages.
"""

from collections.abc import Callable, Sequence
import os
import pathlib
import sys
import traceback
from typing import Any, NoReturn

from absl import app
from absl import flags

from sculpt4d_jax.cli import exits

end_at_once = exits.end_at_once
log_platform = exits.log_platform
user_message = exits.user_message

_HELP_FLAGS = frozenset({"--help", "-help", "-h", "--helpshort"})


def run(
  main: Callable[[Sequence[str]], Any], *, positional: bool = False
) -> NoReturn:
  """Parses the flags, runs `main(argv)` and exits.

  Args:
    main: The program; an integer that it returns is the exit code.
    positional: Whether positional arguments are allowed. If not, they are
      refused, as they are usually flags without their dashes.
  """

  def checked_main(argv: Sequence[str]) -> int:
    try:
      return main(argv) or 0
    except app.UsageError as error:
      return _refuse(f"{error}\n{_help_hint()}")

  def parse_flags(argv: Sequence[str]) -> Sequence[str]:
    if _HELP_FLAGS.intersection(argv[1:]):
      try:
        print(help_text(), flush=True)
      except BrokenPipeError:  # As in `... --help | head`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
      sys.exit(0)
    try:
      remaining = flags.FLAGS(argv)
      _check_configs_loaded()
    except (flags.Error, app.UsageError) as error:
      sys.exit(_refuse(f"{error}\n{_help_hint()}"))
    except Exception as error:
      if not _raised_by_config_flags(error):
        raise
      reason = f"it has no field {error}" if _is_lookup(error) else error
      sys.exit(_refuse(f"--config cannot be used: {reason}\n{_help_hint()}"))
    if len(remaining) > 1 and not positional:
      unexpected = ", ".join(map(repr, remaining[1:]))
      sys.exit(
        _refuse(
          f"Expected flags only, got {unexpected}; write --name=value.\n"
          + _help_hint()
        )
      )
    return remaining

  name = _program_name()
  exits.set_up(name)
  exits.guard(lambda: app.run(checked_main, flags_parser=parse_flags), name)


def help_text() -> str:
  """The program's docstring and its own flags, without those of libraries."""
  main_module = sys.modules["__main__"]
  own_flags = flags.FLAGS.main_module_help().split("\n")
  # absl's first lines are blank and the path of the file.
  own_flags = [line for line in own_flags if not line.endswith(".py:")]
  return "\n".join(
    [
      (main_module.__doc__ or _program_name()).strip(),
      "",
      "Flags:",
      "\n".join(own_flags).strip("\n"),
      "",
      "--helpfull lists the flags of every library as well.",
    ]
  )


def _raised_by_config_flags(error: BaseException) -> bool:
  """Whether loading or overriding a config failed."""
  return any(
    "config_flags" in frame.filename
    for frame in traceback.extract_tb(error.__traceback__)
  )


def _is_lookup(error: BaseException) -> bool:
  """Whether the error's text is only the name that was not found."""
  return isinstance(error, (AttributeError, KeyError)) and " " not in str(error)


def _check_configs_loaded() -> None:
  """Reports a config file that failed now, instead of at its first use."""
  for name in flags.FLAGS:
    value = flags.FLAGS[name].value
    try:
      getattr(value, "lock", None)  # Any access repeats the error of loading.
    except OSError as error:
      reason = str(error).rpartition("failure to load: ")[2]
      raise app.UsageError(f"--{name} cannot be used: {reason}") from error


def _refuse(message: str) -> int:
  _say(message)
  return 2


def _say(message: str) -> None:
  print(f"{_program_name()}: {message}", file=sys.stderr, flush=True)


def _program_name() -> str:
  path = pathlib.Path(sys.argv[0])
  # A folder with a __main__.py is called by the folder's name.
  return path.parent.name if path.stem == "__main__" else path.stem


def _help_hint() -> str:
  spec = sys.modules["__main__"].__spec__
  module = spec.name.removesuffix(".__main__") if spec else ""
  if not module.startswith(("benchmarks.", "kernels.")):
    module = f"launch.{_program_name()}"
  return f"Run python -m {module} --help for all flags."
