"""How programs end, and what they say on the way.

The programs of `launch/` and the command `sculpt4d` share these exits:

  exit code 0    The work is done.
  exit code 1    A bug or a crash: the traceback is shown.
  exit code 2    The request cannot be served (a missing file, a foreign
                 checkpoint, a misspelt flag, a full disk): one clear message on
                 stderr and no traceback.
  exit code 130  Interrupted with Ctrl-C; 143 after SIGTERM. Both unwind the
                 program, so that its temporary files are removed, and end it
                 without waiting for threads of libraries; after some seconds
                 even from inside a library's call (`signals.py`).

A `UserError` (`sculpt4d_jax/errors.py`) is such a message, and so is an error
of the operating system. Any other exception is a bug that was not explained
yet, and keeps its traceback.
"""

from collections.abc import Callable
import gc
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

from absl import logging

from sculpt4d_jax.cli import compile_cache
from sculpt4d_jax.cli import host_memory
from sculpt4d_jax.cli import signals

_PACKAGE = pathlib.Path(__file__).resolve().parents[1]
# In a checkout, other folders contain code of this project too.
_OWN_FOLDERS = (
  f"{_PACKAGE}{os.sep}",
  *(
    f"{_PACKAGE.parent / name}{os.sep}"
    for name in ("configs", "kernels", "launch")
    if (_PACKAGE.parent / "launch" / "program.py").is_file()
  ),
)
_REPORTED_VERSIONS = ("jax", "jaxlib", "flax", "numpy")
_SOON = 0.05  # Delay before re-sending, so that the finalizer has returned (s).


class Terminated(SystemExit):
  """SIGTERM was received."""


# Decides which of the two threads that may end the process does so.
_ENDING = threading.Lock()
_INTERRUPTS: list[int] = []


def set_up(name: str) -> None:
  """Prepares the process of a program: memory, logs, signals.

  Args:
    name: Name of the program, for messages.
  """
  host_memory.keep_freed_memory()
  _pass_over_imports()
  quieten_libraries()
  signal.signal(signal.SIGTERM, exit_on_sigterm)
  sys.unraisablehook = note_dropped_error
  signals.watch(
    {signal.SIGINT: _interrupt, signal.SIGTERM: exit_on_sigterm},
    lambda signum: _end_by_signal(signum, name),
    lambda message: say(name, message),
  )


def guard(work: Callable[[], Any], name: str) -> NoReturn:
  """Runs a program's work and exits as described in the module.

  Args:
    work: The program; an integer that it returns is the exit code.
    name: Name of the program, for messages.
  """
  try:
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
      signal.signal(signal.SIGINT, _interrupt)
    code = _run(work, name)
    _expect_exit(name)
  except KeyboardInterrupt:
    _end_by_signal(signal.SIGINT, name)
  except Terminated:
    _end_by_signal(signal.SIGTERM, name)
  except SystemExit as end:
    code = end.code
    _expect_exit(name)
  sys.exit(code or 0)


def _expect_exit(name: str) -> None:
  """Lets Ctrl-C end the process at once: only Python's own exit remains."""
  if signal.getsignal(signal.SIGINT) is _interrupt:
    # The thread that watches would announce a computation that is over.
    signal.set_wakeup_fd(-1)
    signal.signal(
      signal.SIGINT, lambda *_: signals.end_now(name, signal.SIGINT)
    )


def _run(work: Callable[[], Any], name: str) -> int | str | None:
  """The program's exit code, or 2 for an error that the user can fix."""
  try:
    return work()
  except Exception as error:
    if _INTERRUPTS:
      # Some libraries turn an interrupt into another error.
      raise KeyboardInterrupt from error
    message = user_message(error)
    if message is None:
      raise
    logging.debug("%s", traceback.format_exc())
    say(name, message)
    return 2


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
  """Raises KeyboardInterrupt, and records it: libraries may swallow it."""
  del frame
  _INTERRUPTS.append(signum)
  raise KeyboardInterrupt


def _end_by_signal(signum: int, name: str) -> NoReturn:
  """Prints the reason once and ends the process; called by two threads."""
  if not _ENDING.acquire(blocking=False):
    time.sleep(60)  # The other thread ends the process.
  if threading.current_thread() is threading.main_thread():
    for each in (signal.SIGINT, signal.SIGTERM):
      signal.signal(each, signal.SIG_IGN)
  if _has_open_bars():  # Nobody closes them any more.
    print(file=sys.stderr)
  if signum == signal.SIGINT:
    say(name, "Interrupted.")
  staged = sys.modules.get("sculpt4d_jax.io.staged")
  if staged is not None:
    staged.discard_open()
  end_at_once(128 + signum)


def _has_open_bars() -> bool:
  """Whether the last line on the screen is a progress bar."""
  bars = getattr(sys.modules.get("tqdm"), "tqdm", None)
  return bool(getattr(bars, "_instances", ()))


def say(name: str, message: str) -> None:
  """Prints a program's message on stderr."""
  print(f"{name}: {message}", file=sys.stderr, flush=True)


def end_at_once(code: int) -> NoReturn:
  """Ends the process at once, after flushing its output.

  A signal often arrives while jax compiles. During Python's ordinary exit jax's
  thread would keep running while its data is destroyed, and crash; and in a run
  of several processes jax would wait for the others.
  """
  for child in multiprocessing.active_children():
    child.terminate()
  logging.flush()
  for stream in (sys.stdout, sys.stderr):
    try:
      stream.flush()
    except OSError:  # The pipe is closed.
      pass
  os._exit(code)


def user_message(error: BaseException) -> str | None:
  """The message for the user, or None if the error is a bug."""
  if isinstance(error, OSError):
    return _os_error_message(error)
  if isinstance(error, MemoryError):
    return f"Not enough memory: {error}" if str(error) else "Not enough memory."
  if getattr(error, "is_for_user", False):
    return str(error)
  return None


def log_platform() -> None:
  """Logs the versions and devices that a run depends on.

  This starts JAX, which keeps what it compiles; see `compile_cache.py`.
  """
  import jax  # Not needed for --help.

  _pass_over_imports()  # Of commands that import late.
  compile_cache.use_default()
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


def _pass_over_imports() -> None:
  """Lets Python's collector of garbage begin, with what comes from now on.

  What was imported stays until the end. To look through it for garbage, each
  time and at the exit, takes as long as a tenth of a short run.
  """
  gc.freeze()
  gc.enable()


def _os_error_message(error: OSError) -> str:
  """`file: reason`, instead of Python's `[Errno 2] reason: 'file'`."""
  if error.strerror and error.filename is not None:
    names = [str(error.filename)]
    if error.filename2 is not None:
      names.append(str(error.filename2))
    return f"{' -> '.join(names)}: {error.strerror}"
  return error.strerror or str(error) or type(error).__name__


def exit_on_sigterm(signum: int, frame: FrameType | None) -> NoReturn:
  """Handles SIGTERM: unwinds the program with `Terminated`."""
  del frame
  raise Terminated(128 + signum)


def note_dropped_error(unraisable: Any) -> None:
  """Repeats a signal whose exception was raised where Python drops it.

  Finalizers and callbacks of the garbage collector are such places, and a
  computing program is often in one. Errors of a library's thread for an event
  loop that has already ended are ignored.
  """
  numbers = {Terminated: signal.SIGTERM, KeyboardInterrupt: signal.SIGINT}
  again = numbers.get(unraisable.exc_type)
  if again is None:
    too_late = str(unraisable.exc_value) == "Event loop is closed"
    if not too_late or logging.get_verbosity() >= logging.DEBUG:
      sys.__unraisablehook__(unraisable)
    return
  timer = threading.Timer(_SOON, os.kill, (os.getpid(), again))
  timer.daemon = True
  timer.start()


def quieten_libraries() -> None:
  """Shows INFO lines of this project; of libraries only warnings and errors."""
  logging.use_absl_handler()
  logging.get_absl_handler().addFilter(_keeps_record)
  threading.excepthook = _note_thread_error


def _note_thread_error(failure: threading.ExceptHookArgs) -> None:
  """Logs one line for an error that ended a thread; the waiter reports it."""
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
    # The library's line is enough; its caller reports the meaning.
    record.exc_info = record.exc_text = None
    if "exception was never retrieved" in str(record.msg):
      # By asyncio: if several tasks fail, only the first one is awaited, and
      # its waiter reports it.
      return False
  return record.levelno >= python_logging.WARNING


def _version(name: str) -> str:
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return "not installed"
