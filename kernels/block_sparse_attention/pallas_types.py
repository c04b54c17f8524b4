"""Names for the types inside Pallas kernels, whose classes are private in jax.

Attributes:
  Ref: A Pallas reference to memory, or to barriers or semaphores: `x[i]` reads,
    `x[i] = y` writes, `x.at[i]` is a reference to a part.
  Scratch: A description of memory that a kernel is given, from which Pallas
    makes a reference: `pltpu.VMEM(...)`, `plgpu.SMEM(...)`.
  Copy: An asynchronous copy, with `start()` and `wait()`.
  Index: A whole number known when the kernel is traced, or when it runs.
"""

from typing import Any

import jax

Ref = Any
Scratch = Any
Copy = Any
Index = int | jax.Array
