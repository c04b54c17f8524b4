"""Starts a program many times without importing its modules again.

A template process imports the modules that a program imports, but neither runs
it nor starts JAX. Each run is a copy of it (`fork`) in a separate session,
which then executes the program's module as `__main__`.
"""

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import json
import os
import pathlib
import select
import signal
import subprocess
import sys

_TEMPLATE = """
import ast, importlib, json, os, runpy, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
module = sys.argv[1]
path = module.replace(".", "/") + ".py"
for node in ast.parse(open(path).read()).body:
  if isinstance(node, ast.Import):
    for name in node.names: importlib.import_module(name.name)
  elif isinstance(node, ast.ImportFrom):
    parent = importlib.import_module(node.module)
    for name in node.names:
      if not hasattr(parent, name.name):
        importlib.import_module(node.module + "." + name.name)
print("ready", flush=True)
for line in sys.stdin:
  order = json.loads(line)
  child = os.fork()
  if child == 0:
    break
  print(child, flush=True)
  _, status = os.waitpid(child, 0)
  print(os.waitstatus_to_exitcode(status), flush=True)
else:
  os._exit(0)
os.setsid()  # The handler of SIGINT is the one that the imports have set.
nothing = os.open(os.devnull, os.O_RDWR)
os.dup2(nothing, 0)
os.dup2(nothing, 1)
errors = os.open(order["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
os.dup2(errors, 2)
sys.argv = [path, *order["arguments"]]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""


class Run:
  """One run of the program, with the methods of `subprocess.Popen`.

  Attributes:
    pid: The process, and the group of its children.
    returncode: Exit code once it has ended; negative for a signal.
  """

  def __init__(
    self, pid: int, template: subprocess.Popen, errors: pathlib.Path
  ):
    self.pid = pid
    self.returncode: int | None = None
    self._template = template
    self._errors = errors

  def poll(self, seconds: float = 0.0) -> int | None:
    """Exit code, or None if it runs for longer than `seconds`."""
    output = self._template.stdout
    if self.returncode is None and select.select([output], [], [], seconds)[0]:
      self.returncode = int(output.readline())
    return self.returncode

  def send_signal(self, number: int) -> None:
    """Sends a signal, unless it has ended."""
    if self.poll() is None:
      os.kill(self.pid, number)

  def communicate(self, timeout: float) -> tuple[None, str]:
    """Waits for the end; returns None and the text that it wrote to stderr.

    Raises:
      TimeoutExpired: It runs for longer than `timeout` seconds.
    """
    if self.poll(timeout) is None:
      raise subprocess.TimeoutExpired(str(self.pid), timeout)
    return None, self._errors.read_text(errors="replace")


class Template:
  """A process that has imported what a program imports."""

  def __init__(
    self, module: str, root: pathlib.Path, environment: Mapping[str, str]
  ):
    """Starts it.

    Args:
      module: The program, such as "launch.sample".
      root: Its working folder, in which the module lies.
      environment: Variables; TMPDIR must be a folder.
    """
    self._errors = pathlib.Path(environment["TMPDIR"]).with_name("errors.txt")
    self._process = subprocess.Popen(
      [sys.executable, "-c", _TEMPLATE, module],
      cwd=root,
      env=dict(environment),
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      bufsize=0,
      start_new_session=True,
    )
    if self._process.stdout.readline().strip() != b"ready":
      raise RuntimeError(f"{module} cannot be imported.")

  @contextlib.contextmanager
  def started(self, arguments: Sequence[str]) -> Iterator[Run]:
    """Starts a run, and kills it at the end of the block.

    The block begins when the run has written to stderr, or has ended.
    """
    self._errors.unlink(missing_ok=True)
    order = {"arguments": list(arguments), "errors": str(self._errors)}
    self._process.stdin.write(json.dumps(order).encode() + b"\n")
    run = Run(int(self._process.stdout.readline()), self._process, self._errors)
    _wait_for_first_line(run, self._errors)
    try:
      yield run
    finally:
      run.send_signal(signal.SIGKILL)
      run.poll(60.0)

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait()


def _wait_for_first_line(run: Run, errors: pathlib.Path) -> None:
  """Waits until a program has set its handlers, and says so on stderr.

  Before, a signal would fall into the start of the copy, which no user meets.
  """
  while run.poll(0.001) is None:
    with contextlib.suppress(OSError):
      if errors.stat().st_size:
        return
