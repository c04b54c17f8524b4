import os
import platform
import subprocess
import sys

import pytest

_COUNT_FAULTS = """
import resource
import numpy as np
from sculpt4d_jax.cli import host_memory

assert host_memory.keep_freed_memory() is {expected}

def faults():
  before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
  np.ones(64 << 20, np.uint8)  # 16384 pages.
  return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(faults())
"""


def page_faults(platforms, expected):
  """Page faults of taking 64 MiB a second time, in a separate process."""
  result = subprocess.run(
    [sys.executable, "-c", _COUNT_FAULTS.format(expected=expected)],
    env=os.environ | {"JAX_PLATFORMS": platforms},
    capture_output=True,
    text=True,
    check=True,
  )
  return int(result.stdout)


@pytest.mark.skipif(
  platform.libc_ver()[0] != "glibc", reason="needs the GNU C library"
)
def test_freed_memory_is_taken_again_without_page_faults():
  assert page_faults("cpu", True) < 100
  # Huge pages, where the system gives them, are few.
  assert page_faults("cuda", False) > 4 * page_faults("cpu", True)
