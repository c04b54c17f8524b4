"""Processes of a mesh connect before anything that takes long."""

import itertools

import jax
from jax import lax
from jax.experimental import multihost_utils

from sculpt4d_jax import partitioning


def connect(mesh: partitioning.Mesh) -> None:
  """Lets every group of devices along a mesh's axes talk once, on CPUs.

  On CPUs, the processes of a group connect at the first collective between
  them, and the first to come gives up after 30 seconds (Gloo's own limit, which
  no option moves). That first collective would be in the training step, which
  each process compiles for itself: on a busy machine they come further apart
  than that, and more so where the first process, the only one to have a
  compilation cache, need not compile at all. Once connected, they wait for each
  other half an hour. Other devices connect by themselves, and need none of this.

  Args:
    mesh: All devices of the run; every process calls this with the same one.
  """
  if jax.process_count() == 1 or mesh.devices.flat[0].platform != "cpu":
    return
  axes = [name for name in mesh.axis_names if mesh.shape[name] > 1]
  for count in range(len(axes), 0, -1):
    for group in itertools.combinations(axes, count):
      meet = jax.shard_map(
        lambda group=group: lax.psum(lax.axis_index(group), group),
        mesh=mesh,
        in_specs=(),
        out_specs=partitioning.Spec(),
        check_vma=False,
      )
      multihost_utils.sync_global_devices(f"connect {group}")
      jax.block_until_ready(jax.jit(meet)())
