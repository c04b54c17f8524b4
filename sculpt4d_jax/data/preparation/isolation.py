"""Runs work on untrusted files in a subprocess with limits.

A library may crash, hang or exhaust memory on a malformed mesh. Each piece of
work therefore runs in a separate process with limits of memory and time; the
caller always gets an `Outcome`.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import multiprocessing
import multiprocessing.connection
import os
import pickle
import resource
import signal
import sys
import threading
import time
import types
from typing import Any

_PRELOAD = "sculpt4d_jax.data.preparation.unit_work"
_GRACE_SECONDS = 5.0
_running: set[Any] = set()
_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Outcome:
  """Outcome of a piece of work.

  Attributes:
    value: The function's result; None if it failed.
    error: Reason of the failure, one sentence; "" if it succeeded.
    seconds: Wall time.
    cpu_seconds: Processor time of all threads (s); 0 if it died.
    peak_bytes: Peak memory; 0 if it died.
  """

  value: Any
  error: str
  seconds: float
  cpu_seconds: float
  peak_bytes: int


def run(
  function: Callable[..., Any],
  *args: Any,
  memory_bytes: int,
  seconds: float,
  threads: int = 1,
) -> Outcome:
  """Runs `function(*args)` in a subprocess with limits.

  Args:
    function: A function of a module, so that it can be pickled.
    *args: Arguments that can be pickled.
    memory_bytes: Limit of its address space; above it, it gets a MemoryError.
    seconds: Time after which it is killed.
    threads: Number of threads that libraries may use.

  Returns:
    The outcome. Its error is the text of a ValueError or MemoryError, or type
    and text of another exception.
  """
  # fork would copy a process with threads (jax's), spawn would import
  # everything again for each unit.
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload([_PRELOAD])
  receiver, sender = context.Pipe(duplex=False)
  process = context.Process(
    target=_work, args=(sender, memory_bytes, threads, function, args)
  )
  start = time.monotonic()
  with _lock:
    with _hidden_main():
      process.start()
    _running.add(process)
  sender.close()
  patience = 0.0  # In case this is interrupted.
  try:
    answer = _receive(receiver, seconds)
    took = time.monotonic() - start
    patience = _GRACE_SECONDS if took < seconds else 0.0
  finally:
    _end(process, patience)
    receiver.close()
  if answer is not None:
    return dataclasses.replace(answer, seconds=took)
  if took >= seconds:
    error = f"it took longer than {seconds:g} seconds and was ended"
  else:
    error = f"it crashed ({_exit_name(process.exitcode)})"
  return Outcome(None, error, took, 0.0, 0)


@contextlib.contextmanager
def _hidden_main() -> Iterator[None]:
  """Keeps a new process from importing the program that runs.

  multiprocessing would let it do so for objects of `__main__`, of which there are
  none here, and a program imports much more than its work needs.
  """
  main = sys.modules["__main__"]
  sys.modules["__main__"] = types.ModuleType("__main__")
  try:
    yield
  finally:
    sys.modules["__main__"] = main


def end_all() -> None:
  """Kills all running work of all threads, when the program stops."""
  with _lock:
    for process in _running:
      process.kill()


def _receive(
  receiver: multiprocessing.connection.Connection, seconds: float
) -> Outcome | None:
  try:
    if receiver.poll(seconds):
      return pickle.loads(receiver.recv_bytes())
  except (EOFError, OSError):
    pass  # It died before it answered.
  return None


def _end(process: multiprocessing.process.BaseProcess, patience: float) -> None:
  process.join(patience)
  if process.is_alive():
    process.kill()
  process.join()
  with _lock:
    _running.discard(process)


def _exit_name(code: int | None) -> str:
  if code is not None and code < 0:
    return signal.Signals(-code).name
  return f"exit code {code}"


def _work(
  sender: multiprocessing.connection.Connection,
  memory_bytes: int,
  threads: int,
  function: Callable[..., Any],
  args: tuple[Any, ...],
) -> None:
  # Ctrl-C in a terminal reaches the whole process group; the parent ends this.
  signal.signal(signal.SIGINT, signal.SIG_IGN)
  os.environ["IGL_NUM_THREADS"] = str(threads)
  _, hard = resource.getrlimit(resource.RLIMIT_AS)
  limit = memory_bytes if hard < 0 else min(memory_bytes, hard)
  resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
  value, error = None, ""
  try:
    value = function(*args)
  except MemoryError:
    error = f"it needs more than {memory_bytes:,} bytes of memory"
  except ValueError as problem:
    error = str(problem)
  except Exception as problem:
    error = f"{type(problem).__name__}: {str(problem)[:300]}"
  used = resource.getrusage(resource.RUSAGE_SELF)
  peak = used.ru_maxrss * (1 if os.uname().sysname == "Darwin" else 1024)
  outcome = Outcome(value, error, 0.0, used.ru_utime + used.ru_stime, peak)
  sender.send_bytes(pickle.dumps(outcome))
  sender.close()
