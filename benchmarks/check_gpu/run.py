"""Runs the steps of a check, each in a process with a time limit."""

from collections.abc import Sequence
import json
import os
import pathlib
import signal
import subprocess
import time
from typing import Any

from absl import logging

from benchmarks.check_gpu import steps as steps_lib
from sculpt4d_jax.io import atomic

_STATUS = "status.json"
_LAST_LINES = 12  # Lines of a failed step in the summary.
_GRACE = 10.0  # Seconds between SIGTERM and SIGKILL.


def run_all(
  steps: Sequence[steps_lib.Step], output: pathlib.Path, seconds: float
) -> dict[str, dict[str, Any]]:
  """Runs unfinished steps; returns the status of each.

  Args:
    steps: The steps, in order.
    output: Folder of results.
    seconds: Time limit for all steps together.
  """
  end = time.monotonic() + seconds
  results = {}
  for step in steps:
    folder = output / step.name
    result = _done(folder)
    if result is None:
      left = max(end - time.monotonic(), 0.0)
      limit = left if step.seconds is None else min(step.seconds, left)
      result = run(step, folder, output, limit)
    results[step.name] = result
    logging.info("%s: %s", step.name, result["status"])
    atomic.write_bytes(
      output / "summary.md", summary(steps, results, output).encode()
    )
  return results


def run(
  step: steps_lib.Step,
  folder: pathlib.Path,
  output: pathlib.Path,
  limit: float,
) -> dict[str, Any]:
  """Runs one step and records its outcome.

  Args:
    step: The step.
    folder: Folder for its files.
    output: Replaces OUTPUT in its arguments.
    limit: Seconds after which it is ended. This is not a failure for a step
      that takes the remaining time.
  """
  folder.mkdir(parents=True, exist_ok=True)
  command = [
    word.replace("OUTPUT", str(output.absolute())) for word in step.command()
  ]
  start = time.monotonic()
  status, code = "done", None
  if limit < 1:
    status = "no time left"
  else:
    with open(folder / "output.txt", "wb") as log:
      process = subprocess.Popen(
        command,
        stdout=log,
        stderr=subprocess.STDOUT,
        env=os.environ | {"CHECK_GPU_FOLDER": str(folder.absolute())},
        start_new_session=True,
      )
      try:
        code = process.wait(limit)
      except subprocess.TimeoutExpired:
        code = _end(process)
        status = "done" if step.seconds is None else "too slow"
      else:
        status = "done" if code == 0 else "failed"
  result = {
    "status": status,
    "exit_code": code,
    "seconds": round(time.monotonic() - start, 1),
    "limit": round(limit, 1),
    "command": " ".join(command),
  }
  atomic.write_bytes(folder / _STATUS, json.dumps(result, indent=1).encode())
  return result


def _end(process: subprocess.Popen) -> int:
  """Terminates a step and its children, and kills them if necessary."""
  os.killpg(process.pid, signal.SIGTERM)
  try:
    return process.wait(_GRACE)
  except subprocess.TimeoutExpired:
    os.killpg(process.pid, signal.SIGKILL)
    return process.wait()


def _done(folder: pathlib.Path) -> dict[str, Any] | None:
  """The result of a step that an earlier call finished."""
  try:
    result = json.loads((folder / _STATUS).read_text())
  except (OSError, json.JSONDecodeError):
    return None
  return result if result.get("status") == "done" else None


def summary(
  steps: Sequence[steps_lib.Step],
  results: dict[str, dict[str, Any]],
  output: pathlib.Path,
) -> str:
  """All results so far as Markdown."""
  lines = ["# Check of a GPU", "", "| step | | seconds |", "|---|---|---|"]
  for step in steps:
    result = results.get(step.name, {"status": "not yet", "seconds": ""})
    lines.append(f"| {step.name} | {result['status']} | {result['seconds']} |")
  for step in steps:
    if step.name not in results:
      continue
    result = results[step.name]
    lines += ["", f"## {step.name}: {step.question}", ""]
    path = output / step.name / "output.txt"
    text = path.read_text(errors="replace") if path.is_file() else ""
    shown = [x for x in text.splitlines() if x.strip()]
    if result["status"] == "done":
      # Results are in Markdown tables and "name: value" lines.
      shown = [x for x in shown if not x.startswith(("I0", "I1", "W0", "W1"))]
      lines += shown[-60:]
    else:
      lines += [
        f"{result['status']}; exit code {result['exit_code']} after"
        f" {result['seconds']} of {result['limit']} s:",
        "",
        "```",
        *shown[-_LAST_LINES:],
        "```",
        "",
        f"`{result['command']}`",
      ]
  return "\n".join(lines) + "\n"
