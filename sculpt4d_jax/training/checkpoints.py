"""Checkpoints of a run: whole states, newest last.

On a file system they are Orbax's, in a store those of `store_checkpoints`. All
processes of a run write their own shards, and any mesh can read them back.
"""

import contextlib
import dataclasses
from typing import Any

from absl import logging
import jax
from jax.experimental import multihost_utils
import orbax.checkpoint as ocp

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.io import paths
from sculpt4d_jax.training import state as state_lib
from sculpt4d_jax.training import store_checkpoints

_UNREADABLE = "unreadable"


class CheckpointError(UserError):
  """A checkpoint cannot be written; the message says what is left."""


class Checkpoints:
  """Saves states in the background, keeps the newest few, restores them.

  A checkpoint appears under its name only when it is whole; one that was
  interrupted is ignored.
  """

  def __init__(self, folder: paths.PathLike, max_to_keep: int | None = 2):
    self._folder = paths.of(folder).absolute()
    self._is_remote = paths.is_remote(self._folder)
    if self._is_remote:
      self._manager = store_checkpoints.Manager(self._folder, max_to_keep)
      return
    self._manager = ocp.CheckpointManager(
      self._folder,
      # Without it the shapes of a checkpoint cannot be asked for.
      item_handlers=ocp.StandardCheckpointHandler(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep,
        create=True,
        cleanup_tmp_directories=True,
      ),
    )

  def latest_step(self) -> int | None:
    """Step of the newest whole checkpoint, if there is one."""
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    """Steps of the whole checkpoints."""
    return sorted(self._manager.all_steps())

  def delete(self, step: int) -> None:
    """Removes a checkpoint."""
    self._manager.delete(step)

  def save(self, state: state_lib.TrainState) -> None:
    """Starts to save; waits only for a save that is still going on.

    Raises:
      CheckpointError: This one, or the one that was going on, cannot be
        written.
    """
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    saved = dataclasses.replace(state, fixed={})
    with self._writing():
      self._manager.save(
        step, args=ocp.args.StandardSave(_plain(saved)), force=True
      )

  @contextlib.contextmanager
  def _writing(self):
    """Tells in a line what keeps a checkpoint from being written."""
    try:
      yield
    except (OSError, ValueError) as error:
      # TensorStore's errors of a file are ValueErrors.
      raise CheckpointError(
        f"A checkpoint cannot be written to {self._folder}:"
        f" {_reason(error)}. {self._what_is_left()}"
      ) from error

  def _what_is_left(self):
    # Not the manager's list, which has the one that failed.
    if self._is_remote:
      whole = self.steps()
    else:
      whole = sorted(
        int(p.name) for p in self._folder.iterdir() if p.name.isdigit()
      )
    if not whole:
      return "There is none before it; make room and start again."
    return (
      f"Those of steps {', '.join(map(str, whole))} are whole; make room, and"
      " the same command resumes from the newest."
    )

  def restore(self, state: state_lib.TrainState) -> state_lib.TrainState:
    """The newest state, in the structure and shardings of `state`.

    Raises:
      ValueError: There is no checkpoint, or it is of another model.
    """
    return self.restore_newest(state, jax.tree.map(lambda x: x.sharding, state))

  def restore_newest(
    self,
    abstract: state_lib.TrainState,
    shardings: Any,
    *,
    missing_ok: bool = False,
  ) -> state_lib.TrainState | None:
    """The newest state that can be read.

    One that cannot is put aside, into the folder "unreadable", and the one
    before it is taken.

    Args:
      abstract: Shapes of the state.
      shardings: Shardings of the restored state; the mesh may differ from the
        one it was saved from.
      missing_ok: Returns None where there is no checkpoint.

    Raises:
      ValueError: There is no checkpoint, none that can be read, or it is of
        another model.
    """
    wanted = _wanted(abstract, shardings)
    steps = sorted(self._manager.all_steps(), reverse=True)
    if not steps and missing_ok:
      return None
    for step in steps:
      try:
        restored = self._read(step, wanted)
      except _ForeignError as error:
        raise UserError(str(error)) from None
      except Exception as error:
        # What a damaged file makes Orbax raise is not one kind of error.
        logging.error(
          "Checkpoint %d of %s cannot be read (%s: %s); trying the one before"
          " it.",
          step,
          self._folder,
          type(error).__name__,
          str(error).split("\n")[0][:300],
        )
        self._put_aside(step)
        continue
      logging.info("Restored step %d from %s.", step, self._folder)
      return _state(restored, abstract)
    raise UserError(
      f"{self._folder} holds no checkpoint"
      + (" that can be read" if steps else "")
      + "; remove the folder to start anew."
    )

  def restore_step(
    self, step: int, abstract: state_lib.TrainState, shardings: Any
  ) -> state_lib.TrainState:
    """The state of one step, as `restore_newest` gives the newest.

    Raises:
      ValueError: It is of another model.
    """
    try:
      restored = self._read(step, _wanted(abstract, shardings))
    except _ForeignError as error:
      raise UserError(str(error)) from None
    return _state(restored, abstract)

  def _read(self, step, wanted):
    saved = self._manager.item_metadata(step)
    saved = getattr(saved, "tree", saved)
    if saved:
      self._check_model(step, saved, wanted)
    return self._manager.restore(step, args=ocp.args.StandardRestore(wanted))

  def _check_model(self, step, saved, wanted):
    for name in sorted({*saved, *wanted}):
      there, here = (
        tuple(tree[name].shape) if name in tree else "nothing"
        for tree in (saved, wanted)
      )
      if there != here:
        raise _ForeignError(
          f"Checkpoint {step} of {self._folder} is of another model or"
          f" optimizer: it has {there} at {name}, the preset {here}. Take the"
          " preset it was trained with, or another --workdir."
        )

  def _put_aside(self, step):
    if self._is_remote:
      self._manager.put_aside(step)
      return
    if jax.process_index() == 0:
      aside = self._folder.with_name(f"{self._folder.name}_{_UNREADABLE}")
      aside.mkdir(exist_ok=True)
      number = len(list(aside.iterdir()))
      (self._folder / str(step)).rename(aside / f"{step}_{number}")
    _wait_for_all(f"put aside {step}")
    self._manager.reload()

  def reached_preemption(self, step: int) -> bool:
    """Whether the machine is to be taken away; all processes agree on it."""
    if not jax.distributed.is_initialized():
      return False
    return self._manager.reached_preemption(step)

  def wait(self) -> None:
    """Waits for the last save; raises CheckpointError if it failed."""
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last save; raises CheckpointError if it failed."""
    self.wait()
    self._manager.close()


def _reason(error: Exception) -> str:
  """The system's reason, out of what a library makes of it."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  reason = getattr(error, "strerror", None) or lines[0]
  if "RESOURCE_EXHAUSTED" in reason:
    reason = "no space left on the device, or of a quota"
  return reason[:300]


class _ForeignError(Exception):
  """The checkpoint is whole, but not of this model."""


def _wait_for_all(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _wanted(abstract: Any, shardings: Any) -> dict[str, Any]:
  """What is to be read, and where it is to lie."""
  parts = [
    _plain(dataclasses.replace(tree, fixed={}))
    for tree in (abstract, shardings)
  ]
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    *parts,
  )


def _state(restored: dict[str, Any], abstract: Any) -> state_lib.TrainState:
  """The state that plain leaves are of; what is fixed is not among them."""
  leaves = [restored[key] for key in sorted(restored)]
  structure = jax.tree.structure(dataclasses.replace(abstract, fixed={}))
  return jax.tree.unflatten(structure, leaves)


def _plain(state: Any) -> dict[str, Any]:
  """Leaves by their path: a checkpoint that needs none of our classes."""
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  return {
    f"{index:05d}{jax.tree_util.keystr(path)}": leaf
    for index, (path, leaf) in enumerate(leaves)
  }
