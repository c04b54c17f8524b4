r"""One of two processes with two devices each, the second of which is late.

  python -m tests.training.late_process PORT INDEX SECONDS

It is delayed before the first collective between all four devices; JAX's
barriers are between one device of each process.
"""

import os
import sys
import time
import traceback

import jax
from jax import lax
from jax.experimental import multihost_utils

from sculpt4d_jax import partitioning
from sculpt4d_jax.training import connections


def main(port, index, seconds):
  jax.distributed.initialize(f"127.0.0.1:{port}", 2, int(index))
  multihost_utils.sync_global_devices("joined")
  mesh = partitioning.make_mesh(partitioning.MeshConfig(fsdp=2, context=2))
  connections.connect(mesh)
  if int(index) == 1:
    time.sleep(float(seconds))
  axes = ("fsdp", "context")
  total = jax.shard_map(
    lambda: lax.psum(1 + lax.axis_index(axes), axes),
    mesh=mesh,
    in_specs=(),
    out_specs=partitioning.Spec(),
    check_vma=False,
  )
  print("sum", jax.jit(total)(), flush=True)


if __name__ == "__main__":
  try:
    main(*sys.argv[1:])
  except BaseException:  # Not to wait at jax's exit for the other one.
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)
