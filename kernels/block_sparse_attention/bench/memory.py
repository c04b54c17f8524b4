"""Memory of forward and backward: by the compiler's analysis, and measured.

Both are compared with the arrays that every method needs: query, key, value and
the cotangent of the output; output, log-sum-exp and three gradients. The
measurement, on Linux with JAX on the CPU, is the increase of the process's
resident memory beyond the inputs while the compiled function runs.
"""

from collections.abc import Callable
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
    temporary: Everything else, by the compiler's analysis.
    measured: Measured peak; None if it cannot be measured.
  """

  fixed: int
  temporary: int
  measured: int | None = None

  @property
  def analysed(self) -> int:
    """Peak by the compiler's analysis."""
    return self.fixed + self.temporary


def return_freed_memory() -> None:
  """Makes glibc return large blocks to the system when they are freed.

  Cached blocks would hide increases that are measured later. Only for processes
  that do nothing else, because allocation becomes slower.
  """
  if _can_measure():
    ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 16)


def measure(
  attend: Callable[..., tuple[jax.Array, jax.Array]],
  array: jax.ShapeDtypeStruct,
) -> Memory:
  """Memory of a run of attention, forward and backward; see `analyse`."""
  memory, compiled = _compile(attend, array)
  if not _can_measure():
    return memory
  inputs = shapes.random_inputs(array.shape, array.dtype)
  inputs = jax.block_until_ready((*inputs, jnp.ones_like(inputs[0])))
  rise = _rise(functools.partial(compiled, *inputs))
  measured = sum(x.nbytes for x in inputs) + rise
  return dataclasses.replace(memory, measured=measured)


def analyse(
  attend: Callable[..., tuple[jax.Array, jax.Array]],
  array: jax.ShapeDtypeStruct,
) -> Memory:
  """Memory of attention, forward and backward, in one compiled function.

  Args:
    attend: Function of query, key, value that returns output and log-sum-exp.
    array: Shape and dtype of each input.
  """
  return _compile(attend, array)[0]


def _compile(
  attend: Callable[..., tuple[jax.Array, jax.Array]],
  array: jax.ShapeDtypeStruct,
) -> tuple[Memory, jax.stages.Compiled]:
  def run(
    query: jax.Array, key: jax.Array, value: jax.Array, output_bar: jax.Array
  ) -> tuple[
    tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array, jax.Array]
  ]:
    results, vjp = jax.vjp(attend, query, key, value)
    return results, vjp((output_bar, jnp.zeros_like(results[1])))

  compiled = jax.jit(run).lower(*[array] * 4).compile()
  analysis = compiled.memory_analysis()
  fixed = analysis.argument_size_in_bytes + analysis.output_size_in_bytes
  return Memory(fixed, analysis.temp_size_in_bytes), compiled


def _can_measure() -> bool:
  is_linux = platform.libc_ver()[0] == "glibc" and _PROC.is_dir()
  return is_linux and jax.default_backend() == "cpu"


def _rise(run: Callable[[], object]) -> int:
  """Increase of resident memory in a run, bytes.

  A run before it starts threads and loads code, which remain.
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
