"""Memory of forward and backward: by the compiler's analysis, and measured.

Both are compared with what any method holds: query, key, value, the cotangent
of the output; output, log-sum-exp and three gradients. Measured is, on Linux
and where jax computes on the CPU, how far the process's resident memory rises
while the compiled function runs, beyond its inputs.
"""

import ctypes
import dataclasses
import functools
import gc
import pathlib
import platform

import jax
import jax.numpy as jnp

from .. import shapes

_PROC = pathlib.Path("/proc/self")
_RESET_PEAK = (
  "5"  # proc(5), clear_refs: the high-water mark of resident memory.
)
_M_MMAP_THRESHOLD = -3  # A parameter of mallopt(3).


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes of one call.

  Attributes:
    fixed: Inputs, cotangent and results.
    temporary: All the rest, by the compiler's analysis.
    measured: Peak as the process had it; None where it cannot be told.
  """

  fixed: int
  temporary: int
  measured: int | None = None

  @property
  def analysed(self) -> int:
    """Peak by the compiler's analysis."""
    return self.fixed + self.temporary


def return_freed_memory() -> None:
  """Tells glibc to give all large blocks back to the system as they are freed.

  Kept, they would hide as much of what is measured later. For a process that
  does nothing else: to ask for them anew takes time.
  """
  if _can_measure():
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 16)


def measure(attend, array: jax.ShapeDtypeStruct) -> Memory:
  """Memory of a run of attention, forward and backward; see `analyse`."""
  memory, compiled = _compile(attend, array)
  if not _can_measure():
    return memory
  inputs = shapes.random_inputs(array.shape, array.dtype)
  inputs = jax.block_until_ready((*inputs, jnp.ones_like(inputs[0])))
  rise = _rise(functools.partial(compiled, *inputs))
  measured = sum(x.nbytes for x in inputs) + rise
  return dataclasses.replace(memory, measured=measured)


def analyse(attend, array: jax.ShapeDtypeStruct) -> Memory:
  """Memory of attention, forward and backward, in one compiled function.

  Args:
    attend: Takes query, key, value and returns the output and log-sum-exp.
    array: Shape and dtype of each input.
  """
  return _compile(attend, array)[0]


def _compile(attend, array):
  def run(query, key, value, output_bar):
    results, vjp = jax.vjp(attend, query, key, value)
    return results, vjp((output_bar, jnp.zeros_like(results[1])))

  compiled = jax.jit(run).lower(*[array] * 4).compile()
  analysis = compiled.memory_analysis()
  fixed = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
  return Memory(fixed, analysis.temp_size_in_bytes), compiled


def _can_measure() -> bool:
  is_linux = platform.libc_ver()[0] == "glibc" and _PROC.is_dir()
  return is_linux and jax.default_backend() == "cpu"


def _rise(run) -> int:
  """How far resident memory rises in a run, in bytes.

  A run before it starts threads and loads code, which stay.
  """
  jax.block_until_ready(run())
  gc.collect()
  ctypes.CDLL(None).malloc_trim(0)
  before = _status("VmRSS")
  (_PROC / "clear_refs").write_text(_RESET_PEAK)
  jax.block_until_ready(run())
  return _status("VmHWM") - before


def _status(name: str) -> int:
  """A figure of the process's memory, in bytes."""
  lines = (_PROC / "status").read_text().splitlines()
  line = next(x for x in lines if x.startswith(f"{name}:"))
  return int(line.split()[1]) * 1024
