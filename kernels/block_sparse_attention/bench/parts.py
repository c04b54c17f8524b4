"""Time of a compiled function on a CPU by kind of operation, by the profiler.

Every instruction that XLA runs is assigned to the first matching kind below.
Times of all threads are added. With other load on the machine the times are too
long, but the shares are still useful.
"""

import collections
from collections.abc import Callable
import glob
import gzip
import json
import os
import re
import tempfile

import jax

# Kind, and operations that an instruction must all contain.
_KINDS = (
  ("scores: product, maximum, exponential", ("dot", "exponential")),
  ("products", ("dot",)),
  ("exponentials", ("exponential",)),
  ("sums and maxima", ("reduce",)),
  ("other arithmetic", ("multiply",)),
  ("other arithmetic", ("divide",)),
  ("other arithmetic", ("subtract",)),
)
_COPIES = "copies, gathers and sums of gradients"
_CONTROL = ("while", "call", "conditional", "tuple", "parameter", "constant")


def measure(
  run: Callable[[], object], hlo: str
) -> dict[str, tuple[float, int]]:
  """Milliseconds of all threads, and number of instructions run, by kind.

  Args:
    run: Calls the compiled function and waits for it.
    hlo: Its text, `compiled.as_text()`.
  """
  kinds = _instruction_kinds(hlo)
  parts = collections.defaultdict(lambda: (0.0, 0))
  for event in _events(run):
    kind = kinds.get(event["name"])
    if kind is not None:
      milliseconds, count = parts[kind]
      parts[kind] = (milliseconds + event["dur"] / 1e3, count + 1)
  return dict(sorted(parts.items(), key=lambda item: -item[1][0]))


def _events(run: Callable[[], object]) -> list[dict]:
  """Profiler events of one call, after an unprofiled one."""
  run()
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder):
      run()
    pattern = os.path.join(folder, "**", "*.trace.json.gz")
    events = []
    for path in glob.glob(pattern, recursive=True):
      with gzip.open(path, "rt") as file:
        events += json.load(file)["traceEvents"]
  return [event for event in events if event.get("ph") == "X"]


def _instruction_kinds(hlo: str) -> dict[str, str]:
  """Kind of every instruction that is executed separately."""
  computations = {}
  for text in re.split(r"\n(?=%|ENTRY)", hlo):
    name = re.match(r"(?:ENTRY )?%([\w.-]+)", text)
    if name:
      computations[name[1]] = text
  kinds = {}
  pattern = r"%([\w.-]+) = [^\n]*? ([a-z][\w-]*)\(([^\n]*)"
  for text in computations.values():
    for name, operation, rest in re.findall(pattern, text):
      called = re.search(r"calls=%([\w.-]+)", rest)
      body = computations.get(called[1], "") if called else f" {operation}("
      if operation not in _CONTROL:
        kinds[name] = _kind(body)
  return kinds


def _kind(body: str) -> str:
  has = lambda operation: re.search(rf" {operation}\(", body)
  return next(
    (kind for kind, operations in _KINDS if all(map(has, operations))),
    _COPIES,
  )
