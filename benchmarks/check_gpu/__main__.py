r"""Checks a GPU: one command, ten minutes, one folder of results.

  launch/check_gpu.sh                     # or: make check-gpu
  python -m benchmarks.check_gpu --output=out/gpu
  python -m benchmarks.check_gpu --output=out/dry --dry    # on a CPU, small

Every step is a process with a time limit. Its output and status are files in
its folder, and summary.md summarises them. A step that fails or hangs is
reported, and the others still run. The same command resumes without repeating
finished steps. No network connection is needed. The exit code is 0 if every
step succeeded, else 1.
"""

from collections.abc import Sequence
import pathlib

from absl import flags

from benchmarks.check_gpu import run as run_lib
from benchmarks.check_gpu import steps as steps_lib
from launch import program
from sculpt4d_jax.errors import UserError

_OUTPUT = flags.DEFINE_string("output", "out/check_gpu", "Folder of results.")
_DRY = flags.DEFINE_bool("dry", False, "The same on a CPU, with tiny sizes.")
_SECONDS = flags.DEFINE_float(
  "seconds", 600.0, "Time for everything; what is left goes to training."
)
_ONLY = flags.DEFINE_list("only", [], "Names of the steps to run; default all.")


def main(unused_argv: Sequence[str]) -> int:
  """Runs the program."""
  output = pathlib.Path(_OUTPUT.value)
  steps = steps_lib.dry() if _DRY.value else steps_lib.of_gpu()
  unknown = set(_ONLY.value) - {step.name for step in steps}
  if unknown:
    raise UserError(
      f"--only={sorted(unknown)}: choose among {[s.name for s in steps]}."
    )
  if _ONLY.value:
    steps = [step for step in steps if step.name in _ONLY.value]
  results = run_lib.run_all(steps, output, _SECONDS.value)
  print(f"Wrote {output / 'summary.md'}.")
  return 0 if all(r["status"] == "done" for r in results.values()) else 1


if __name__ == "__main__":
  program.run(main)
