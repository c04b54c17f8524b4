"""Joins the processes of a run: on a TPU pod, GKE, SLURM, or by flags.

--distributed=auto   uses the environment, in which TPU pods, GKE, SLURM and
                       Open MPI name the processes
--distributed=flags  --coordinator=HOST:PORT --num_processes=N --process_id=I
--distributed=off    one process (the default)
"""

import sys
from typing import NoReturn

from absl import flags
from absl import logging

from launch import program
from sculpt4d_jax.errors import UserError

_DISTRIBUTED = flags.DEFINE_enum(
  "distributed",
  "off",
  ["off", "auto", "flags"],
  "Way in which the processes of a run find each other.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator", None, "HOST:PORT of process 0, for --distributed=flags."
)
_NUM_PROCESSES = flags.DEFINE_integer(
  "num_processes",
  None,
  "Number of processes of the run, for --distributed=flags.",
)
_PROCESS_ID = flags.DEFINE_integer(
  "process_id", None, "Index of this process, for --distributed=flags."
)
_HEARTBEAT = flags.DEFINE_integer(
  "heartbeat_seconds",
  50,
  "Seconds of silence after which a process counts as dead and the others"
  " stop.",
  lower_bound=5,
)


def initialize() -> None:
  """Joins the other processes; must be called before a device is used.

  Raises:
    ValueError: Flags are missing, or the environment does not name the
      processes.
  """
  if _DISTRIBUTED.value == "off":
    return
  # Not needed for --help.
  import jax
  from jax.experimental import multihost_utils

  options = dict(heartbeat_timeout_seconds=_HEARTBEAT.value)
  if _DISTRIBUTED.value == "flags":
    given = dict(
      coordinator_address=_COORDINATOR.value,
      num_processes=_NUM_PROCESSES.value,
      process_id=_PROCESS_ID.value,
    )
    missing = [name for name, value in given.items() if value is None]
    if missing:
      raise UserError(
        "--distributed=flags needs --coordinator, --num_processes and"
        f" --process_id; missing: {', '.join(missing)}."
      )
    options |= given
  try:
    jax.distributed.initialize(**options)
  except ValueError as error:
    raise UserError(
      f"--distributed={_DISTRIBUTED.value} does not find the other processes:"
      f" {error}. Where the environment does not name them, use"
      " --distributed=flags."
    ) from error
  # On CPUs the first process to arrive gives up soon; now all have arrived.
  multihost_utils.sync_global_devices("joined")
  logging.info("Process %d of %d.", jax.process_index(), jax.process_count())


# Lets a cluster's script distinguish it from an error that would recur.
EXIT_AFTER_LOSS = 75  # The same as in `training/watchdog.py`.


def leave(message: object) -> NoReturn:
  """Ends this process at once after a peer process has died.

  An ordinary exit would wait for the peer until the heartbeat times out, and
  then be aborted by jax.
  """
  print(f"train: {message}", file=sys.stderr, flush=True)
  program.end_at_once(EXIT_AFTER_LOSS)
