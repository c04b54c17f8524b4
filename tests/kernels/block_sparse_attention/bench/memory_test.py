"""Peak memory of forward and backward, by the compiler and by the system."""

import os
import platform
import subprocess
import sys

import pytest

from tests import conftest

on_linux = pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="reads Linux's resident memory"
)


def _run(shape: str) -> list[float]:
  """Fixed and peak MiB, their ratio, measured MiB, its ratio."""
  command = ["-m", "kernels.block_sparse_attention.bench", "--memory"]
  printed = subprocess.run(
    [sys.executable, *command, "--shapes", shape, "--implementation", "xla"],
    cwd=conftest.ROOT,
    env=os.environ | {"JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=True,
  ).stdout
  row = next(x for x in printed.splitlines() if shape in x)
  return [float(x) for x in row.split()[2:]]


@on_linux
def test_what_is_measured_is_what_the_compiler_says():
  fixed, analysed, _, measured, _ = _run("quick_16f")
  # Query, key, value, cotangent, output and three gradients of 2 MiB each.
  assert fixed == pytest.approx(8 * 2, abs=0.1)
  # Libraries copy factors of products into separate memory.
  assert analysed - 1 < measured < analysed + 8


@on_linux
@pytest.mark.slow
def test_peak_is_within_one_and_a_half_of_what_any_method_holds():
  _, _, analysed, _, measured = _run("cpu_16f")
  assert max(analysed, measured) < 1.5
