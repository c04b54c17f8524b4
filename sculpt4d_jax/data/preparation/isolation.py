"""Work on strangers' files, in a process that may die.

A library that is fed a malformed mesh may crash, loop or ask for all memory
there is. Each piece of work runs in a separate process, with a limit of
memory and of time; whatever happens to it, the caller gets an `Outcome`.
"""

from collections.abc import Callable
import dataclasses
import multiprocessing
import os
import pickle
import resource
import signal
import threading
import time
from typing import Any

_PRELOAD = "sculpt4d_jax.data.preparation.unit_work"
_GRACE_SECONDS = 5.0
_running: set[Any] = set()
_lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Outcome:
  """What came of a piece of work.

  Attributes:
    value: The function's result; None if it failed.
    error: Why it failed, one sentence; "" if it did not.
    seconds: It took.
    cpu_seconds: Processor time of all threads (s); 0 if it died.
    peak_bytes: The most memory that it held; 0 if it died.
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
    *args: Can be pickled.
    memory_bytes: Address space it may take; more is a MemoryError in it.
    seconds: It is ended after so long.
    threads: Number of threads that libraries may use.

  Returns:
    The outcome. ValueErrors and MemoryErrors of the function are its error;
    other exceptions are too, with their type.
  """
  context = multiprocessing.get_context("forkserver")
  context.set_forkserver_preload([_PRELOAD])
  receiver, sender = context.Pipe(duplex=False)
  process = context.Process(
    target=_work, args=(sender, memory_bytes, threads, function, args)
  )
  start = time.monotonic()
  with _lock:
    process.start()
    _running.add(process)
  sender.close()
  patience = 0.0  # If it is interrupted here.
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


def end_all() -> None:
  """Ends all work that runs, of all threads: the program is to stop."""
  with _lock:
    for process in _running:
      process.kill()


def _receive(receiver, seconds) -> Outcome | None:
  try:
    if receiver.poll(seconds):
      return pickle.loads(receiver.recv_bytes())
  except (EOFError, OSError):
    pass  # It died before it answered.
  return None


def _end(process, patience: float) -> None:
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


def _work(sender, memory_bytes, threads, function, args) -> None:
  # The parent ends it; Ctrl-C in a terminal goes to the whole group.
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
