"""What every program shares: how it starts, explains itself and ends.

A program is a module with a teaching docstring, absl flags and a `main(argv)`,
closed by `program.run(main)`. This file gives all of them the same manners:

  exit code 0    The work is done.
  exit code 1    A bug or a crash: the traceback is shown.
  exit code 2    The request cannot be served (a missing file, a foreign
                 checkpoint, a misspelt flag, a full disk): one clear message on
                 stderr and no traceback. `--verbosity=1` shows it as well.
  exit code 130  Interrupted with Ctrl-C; 143 after SIGTERM. Both unwind the
                 program, so that its temporary files are removed, and end it
                 without waiting for threads of libraries; after some seconds
                 even from inside a library's call (`interrupts.py`).

A ValueError that a `raise` of this project's own code throws is such a message,
because that is how its boundaries speak. One that comes out of a library is a
bug of ours that nobody has explained yet, and keeps its traceback. Errors of
the operating system are messages wherever they come from.
"""

from collections.abc import Callable, Sequence
import os
import pathlib
import signal
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Any, NoReturn

from absl import app
from absl import flags
from absl import logging

import launch
from launch import interrupts
from sculpt4d_jax.cli import host_memory
from sculpt4d_jax.cli import manners

end_at_once = manners.end_at_once
log_platform = manners.log_platform
user_message = manners.user_message

_ENDING = threading.Lock()
_INTERRUPTS: list[int] = []
_HELP_FLAGS = frozenset({"--help", "-help", "-h", "--helpshort"})


def run(
  main: Callable[[Sequence[str]], Any], *, positional: bool = False
) -> NoReturn:
  """Parses the flags, runs `main(argv)` and exits.

  Args:
    main: The program; an integer that it returns is the exit code.
    positional: Whether arguments that are no flags are allowed. If not, they
      are refused, as they mostly are a flag with its dashes forgotten.
  """

  def guarded_main(argv: Sequence[str]) -> int:
    try:
      return main(argv) or 0
    except app.UsageError as error:
      return _refuse(f"{error}\n{_help_hint()}")
    except Exception as error:
      if _INTERRUPTS:
        # Some libraries turn an interrupt into an error of their own.
        raise KeyboardInterrupt from error
      message = user_message(error)
      if message is None:
        raise
      logging.debug("%s", traceback.format_exc())
      return _refuse(message)

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

  host_memory.keep_freed_memory()
  manners.quieten_libraries()
  signal.signal(signal.SIGTERM, manners.exit_on_sigterm)
  sys.unraisablehook = manners.note_dropped_error
  interrupts.watch(
    {
      signal.SIGINT: _interrupt,
      signal.SIGTERM: manners.exit_on_sigterm,
    },
    _end_by_signal,
    _say,
  )
  try:
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
      signal.signal(signal.SIGINT, _interrupt)
    app.run(guarded_main, flags_parser=parse_flags)
  except KeyboardInterrupt:
    _end_by_signal(signal.SIGINT)
  except manners.Terminated:
    _end_by_signal(signal.SIGTERM)
  except SystemExit:
    # What is left is Python's own end, which an interrupt would disturb.
    if signal.getsignal(signal.SIGINT) is _interrupt:
      signal.signal(signal.SIGINT, launch.end_now)
    raise
  raise AssertionError("app.run returned.")


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
  """Raises KeyboardInterrupt, and notes it: libraries may swallow it."""
  del frame
  _INTERRUPTS.append(signum)
  raise KeyboardInterrupt


def _end_by_signal(signum: int) -> NoReturn:
  """Says why, once, and ends the process; called by two threads."""
  if not _ENDING.acquire(blocking=False):
    time.sleep(60)  # The other one ends the process.
  if threading.current_thread() is threading.main_thread():
    for each in (signal.SIGINT, signal.SIGTERM):
      signal.signal(each, signal.SIG_IGN)
  if signum == signal.SIGINT:
    _say("Interrupted.")
  end_at_once(128 + signum)


def help_text() -> str:
  """The program's docstring and its own flags, those of libraries left out."""
  main_module = sys.modules["__main__"]
  own_flags = flags.FLAGS.main_module_help().split("\n")
  # The first lines are blank and the path of the file.
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
  """Whether all that the error says is the name that was not found."""
  return isinstance(error, (AttributeError, KeyError)) and " " not in str(error)


def _check_configs_loaded() -> None:
  """Reports a config file that failed now, not at its first use."""
  for name in flags.FLAGS:
    value = flags.FLAGS[name].value
    try:
      getattr(value, "lock", None)  # Any access raises what loading raised.
    except OSError as error:
      reason = str(error).rpartition("failure to load: ")[2]
      raise app.UsageError(f"--{name} cannot be used: {reason}") from error


def _refuse(message: str) -> int:
  _say(message)
  return 2


def _say(message: str) -> None:
  print(f"{_program_name()}: {message}", file=sys.stderr, flush=True)


def _program_name() -> str:
  return pathlib.Path(sys.argv[0]).stem


def _help_hint() -> str:
  return f"Run python -m launch.{_program_name()} --help for all flags."
