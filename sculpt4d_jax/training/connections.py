"""Connects the processes of a mesh before slow work."""

import itertools

import jax
from jax import lax
from jax.experimental import multihost_utils

from sculpt4d_jax import partitioning


def connect(mesh: partitioning.Mesh) -> None:
  """Runs a collective in every group of devices along a mesh's axes, on CPUs.

  On CPUs, the processes of a group connect at their first collective, and the
  first one to arrive gives up after 30 seconds (a fixed limit of Gloo). That
  collective would be in the training step, which each process compiles
  separately: on a busy machine they arrive more than 30 seconds apart, the more
  so if the first process, the only one with a compilation cache, need not
  compile. Connected processes wait for each other half an hour. Other devices
  do not need this.

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
