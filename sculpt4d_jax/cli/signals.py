"""Signals (SIGINT, SIGTERM) that reach a program while a library works.

Python runs signal handlers between two bytecode instructions. A compiler
that works for minutes inside one call keeps them waiting. A thread learns of
the signal at once, gives the program a few seconds to unwind, so that its
temporary files are removed, and then ends it.
"""

from collections.abc import Callable
import os
import signal
import threading
import time
from typing import NoReturn

GRACE = 4.0  # Time in which the program may end normally (s).
_HARD_END = 2.0  # Time for the last message (s).


def end_now(name: str, signum: int) -> NoReturn:
  """Ends a process that has nothing to clean up, with one line."""
  os.write(2, f"{name}: Interrupted.\n".encode())
  os._exit(128 + signum)


def watch(
  own_handlers: dict[int, object],
  end: Callable[[int], NoReturn],
  say: Callable[[str], None],
) -> None:
  """Starts the thread; call it in the main thread.

  Args:
    own_handlers: Signal -> the handler under which the thread may end the
      process. Under other handlers (training saves first) the thread only
      reports that the signal arrived.
    end: Ends the process because of a signal.
    say: Writes a line for the user.
  """
  reader, writer = os.pipe()
  os.set_blocking(writer, False)
  signal.set_wakeup_fd(writer, warn_on_full_buffer=False)

  def run() -> None:
    while True:
      for signum in os.read(reader, 64):
        if signum not in own_handlers:
          continue
        if signal.getsignal(signum) is own_handlers[signum]:
          late = threading.Thread(
            target=_end_late, args=(signum, end), daemon=True
          )
          late.start()
        elif signal.getsignal(signum) != signal.SIG_IGN:
          name = signal.Signals(signum).name
          say(f"{name} came; ending after what is being computed now.")

  threading.Thread(target=run, daemon=True).start()


def _end_late(signum: int, end: Callable[[int], NoReturn]) -> None:
  time.sleep(GRACE)
  last = threading.Timer(_HARD_END, os._exit, (128 + signum,))
  last.daemon = True
  last.start()
  end(signum)
