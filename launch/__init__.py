"""Programs: `python -m launch.NAME`.

Most of a short run is the import of libraries, in which Ctrl-C would be lost or
end in a traceback. This file is imported before all others: until
`program.run` takes over, Ctrl-C ends the process with one line.
"""

import _signal  # `signal` imports others first, for milliseconds.
import gc
import os
import sys

INTERRUPTED = 130


def end_now(signum: int, frame: object) -> None:
  """A handler of SIGINT for times at which there is nothing to clean up."""
  del signum, frame
  module = getattr(sys, "orig_argv", sys.argv)
  names = [name for name in module if name.startswith("launch.")]
  name = names[0].removeprefix("launch.") if names else "launch"
  os.write(2, f"{name}: Interrupted.\n".encode())
  os._exit(INTERRUPTED)


# "-m" stands for the program's path while Python looks for it. A process that
# ignores Ctrl-C (nohup, a job in the background) keeps ignoring it.
if sys.argv[:1] == ["-m"]:
  # Imports leave no garbage; `exits.set_up` lets the collector begin.
  gc.disable()
  if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    _signal.signal(_signal.SIGINT, end_now)
