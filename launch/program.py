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
import dis
import importlib.metadata
import logging as python_logging
import multiprocessing
import os
import pathlib
import platform
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
from launch import host_memory
from launch import interrupts

_ROOT = pathlib.Path(__file__).resolve().parents[1]
_OWN_FOLDERS = tuple(
  f"{_ROOT / name}{os.sep}"
  for name in ("configs", "kernels", "launch", "sculpt4d_jax")
)
_REPORTED_VERSIONS = ("jax", "jaxlib", "flax", "numpy")
_ENDING = threading.Lock()
_INTERRUPTS: list[int] = []
_SOON = 0.05  # Seconds: out of a finalizer by then.
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
  _quieten_libraries()
  signal.signal(signal.SIGTERM, _exit_on_sigterm)
  sys.unraisablehook = _note_dropped_error
  interrupts.watch(
    {
      signal.SIGINT: _interrupt,
      signal.SIGTERM: _exit_on_sigterm,
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
  except _Terminated:
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


def end_at_once(code: int) -> NoReturn:
  """Ends the process with what it has said, but not as Python ends otherwise.

  A signal often comes while jax compiles. Its thread would go on while Python
  takes down what it works with, and crash; and in a run of several processes
  jax would wait for the others.
  """
  for child in multiprocessing.active_children():
    child.terminate()
  logging.flush()
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except OSError:  # Nobody reads it any more.
      pass
  os._exit(code)


def user_message(error: BaseException) -> str | None:
  """The message for the user, or None if the error is a bug to be traced."""
  if isinstance(error, OSError):
    return _os_error_message(error)
  if isinstance(error, MemoryError):
    return f"Not enough memory: {error}" if str(error) else "Not enough memory."
  if isinstance(error, (ValueError, NotImplementedError, ImportError)):
    if _raised_by_own_code(error):
      return str(error)
  return None


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


def log_platform() -> None:
  """Logs the versions and devices that a run depends on; starts JAX."""
  import jax  # --help needs none of it.

  logging.info(
    "Python %s, %s",
    platform.python_version(),
    ", ".join(f"{name} {_version(name)}" for name in _REPORTED_VERSIONS),
  )
  devices = jax.devices()
  logging.info(
    "Devices: %d × %s (%s), process %d of %d",
    len(devices),
    devices[0].device_kind,
    devices[0].platform,
    jax.process_index(),
    jax.process_count(),
  )


def _os_error_message(error: OSError) -> str:
  """`file: reason`, in place of Python's `[Errno 2] reason: 'file'`."""
  if error.strerror and error.filename is not None:
    names = [str(error.filename)]
    if error.filename2 is not None:
      names.append(str(error.filename2))
    return f"{' -> '.join(names)}: {error.strerror}"
  return error.strerror or str(error) or type(error).__name__


def _raised_by_own_code(error: BaseException) -> bool:
  """Whether a `raise` in this project's code, not a library, threw it."""
  trace = error.__traceback__
  if trace is None:
    return False
  while trace.tb_next is not None:
    trace = trace.tb_next
  code = trace.tb_frame.f_code
  if not os.path.abspath(code.co_filename).startswith(_OWN_FOLDERS):
    return False
  # An error of a function written in C leaves no frame of its own: the
  # innermost frame is ours, but stands at a call instead of a raise.
  return dis.opname[code.co_code[trace.tb_lasti]] == "RAISE_VARARGS"


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


class _Terminated(SystemExit):
  """SIGTERM came."""


def _exit_on_sigterm(signum, unused_frame) -> NoReturn:
  raise _Terminated(128 + signum)


def _note_dropped_error(unraisable: Any) -> None:
  """Repeats a signal whose exception came where Python can only drop it.

  Finalizers and callbacks of the garbage collector are such places, and a
  program that computes is often in one. What a library's thread has to tell
  an event loop that has ended with an earlier error is nobody's any more.
  """
  signals = {_Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}
  again = signals.get(unraisable.exc_type)
  if again is None:
    too_late = str(unraisable.exc_value) == "Event loop is closed"
    if not too_late or logging.get_verbosity() >= logging.DEBUG:
      sys.__unraisablehook__(unraisable)
    return
  timer = threading.Timer(_SOON, os.kill, (os.getpid(), again))
  timer.daemon = True
  timer.start()


def _quieten_libraries() -> None:
  """Keeps INFO lines of this project; libraries speak from WARNING up."""
  logging.use_absl_handler()
  logging.get_absl_handler().addFilter(_keeps_record)
  threading.excepthook = _note_thread_error


def _note_thread_error(failure: threading.ExceptHookArgs) -> None:
  """One line for what ended a thread; who waits for it reports the rest."""
  name = failure.thread.name if failure.thread else "a thread"
  error = f"{failure.exc_type.__name__}: {failure.exc_value}"
  logging.error("%s ended: %s", name, error.split("\n")[0][:300])
  logging.debug(
    "%s",
    "".join(
      traceback.format_exception(
        failure.exc_type, failure.exc_value, failure.exc_traceback
      )
    ),
  )


def _keeps_record(record: python_logging.LogRecord) -> bool:
  if os.path.abspath(record.pathname).startswith(_OWN_FOLDERS):
    return True
  if logging.get_verbosity() < logging.DEBUG:
    # A library's line is enough; who called it says what it means.
    record.exc_info = record.exc_text = None
    if "exception was never retrieved" in str(record.msg):
      # By asyncio: of what fails together, only the first failure is waited
      # for, and it is told by who waits.
      return False
  return record.levelno >= python_logging.WARNING


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return "not installed"
