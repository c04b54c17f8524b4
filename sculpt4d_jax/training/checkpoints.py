"""Checkpoints of a run: complete states, newest last.

On a file system they are Orbax checkpoints, in a store those of
`store_checkpoints`. Every process writes its own shards, and any mesh can read
them back.
"""

from collections.abc import Mapping
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
  """A checkpoint cannot be written; the message names the complete ones."""


class Checkpoints:
  """Saves states in the background, keeps the newest few, restores them.

  A checkpoint appears under its name only when it is complete; an interrupted
  one is ignored.
  """

  def __init__(self, folder: paths.PathLike, max_to_keep: int | None = 2):
    self._folder = paths.of(folder).absolute()
    self._is_remote = paths.is_remote(self._folder)
    if self._is_remote:
      self._manager = store_checkpoints.Manager(self._folder, max_to_keep)
      return
    # Two are kept by default: should the newest be damaged, one is left.
    self._manager = ocp.CheckpointManager(
      self._folder,
      # Needed to query the shapes in a checkpoint.
      item_handlers=ocp.StandardCheckpointHandler(),
      options=ocp.CheckpointManagerOptions(
        max_to_keep=max_to_keep,
        create=True,
        # A killed save leaves its folder, as large as a checkpoint.
        cleanup_tmp_directories=True,
      ),
    )

  def latest_step(self) -> int | None:
    """Step of the newest complete checkpoint, if any."""
    return self._manager.latest_step()

  def steps(self) -> list[int]:
    """Steps of the complete checkpoints."""
    return sorted(self._manager.all_steps())

  def reload(self) -> None:
    """Lists the complete checkpoints again, for all processes alike."""
    self._manager.reload()

  def delete(self, step: int) -> None:
    """Removes a checkpoint."""
    self._manager.delete(step)

  def save(self, state: state_lib.TrainState) -> None:
    """Starts to save; waits only for a save that is still in progress.

    Raises:
      CheckpointError: This save, or the one in progress, failed.
    """
    step = int(state.step)
    # Orbax raises an error for a step that exists.
    if step in self._manager.all_steps():
      return
    # Fixed parameters never change and are made or read again at the start.
    saved = dataclasses.replace(state, fixed={})
    with self._writing():
      # Forced, since the loop decides which steps are saved.
      self._manager.save(
        step, args=ocp.args.StandardSave(_plain(saved)), force=True
      )

  @contextlib.contextmanager
  def _writing(self):
    """Turns errors of a save into a one-line CheckpointError."""
    try:
      yield
    except store_checkpoints.TakenOverError as error:
      raise CheckpointError(str(error)) from error
    except (OSError, ValueError) as error:
      # TensorStore raises ValueErrors for file errors.
      raise CheckpointError(
        f"A checkpoint cannot be written to {self._folder}:"
        f" {_reason(error)}. {self._what_is_left()}"
      ) from error

  def _what_is_left(self):
    # Not the manager's list, which includes the failed one.
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

    An unreadable one is moved to the folder "unreadable", and the previous one
    is tried.

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
    # Newest first.
    for step in steps:
      try:
        restored = self._read(step, wanted)
      except _ForeignError as error:
        # Complete, and perhaps all that is left of another run: not put aside.
        raise UserError(str(error)) from None
      except Exception as error:
        # A damaged file makes Orbax raise many kinds of errors.
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
    """The state of one step; see `restore_newest`.

    Raises:
      ValueError: The checkpoint is of another model.
    """
    try:
      restored = self._read(step, _wanted(abstract, shardings))
    except _ForeignError as error:
      raise UserError(str(error)) from None
    return _state(restored, abstract)

  def _read(self, step: int, wanted: Any):
    # Compared before reading, for an error that names the parameter.
    saved = self._manager.item_metadata(step)
    saved = getattr(saved, "tree", saved)
    if saved:
      self._check_model(step, saved, wanted)
    return self._manager.restore(step, args=ocp.args.StandardRestore(wanted))

  def _check_model(
    self, step: int, saved: Mapping[str, Any], wanted: Mapping[str, Any]
  ):
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

  def _put_aside(self, step: int) -> None:
    if self._is_remote:
      self._manager.put_aside(step)
      return
    if jax.process_index() == 0:
      aside = self._folder.with_name(f"{self._folder.name}_{_UNREADABLE}")
      aside.mkdir(exist_ok=True)
      number = len(list(aside.iterdir()))
      # Numbered, as the same step may fail again after it was written anew.
      (self._folder / str(step)).rename(aside / f"{step}_{number}")
    # All processes list the folder only after the move.
    _wait_for_all(f"put aside {step}")
    self._manager.reload()

  def reached_preemption(self, step: int) -> bool:
    """Whether the run is preempted; all processes agree on the step."""
    if not jax.distributed.is_initialized():
      return False
    return self._manager.reached_preemption(step)

  def settle(self) -> None:
    """Waits until a store has the last save, which may take minutes.

    Only for a store: a disk is as fast as ever, and `save` waits for it.
    """
    if self._is_remote:
      self._manager.settle()

  def wait_for_all(self) -> None:
    """Waits until the last save of every process has ended.

    Launchers kill the other processes when the first one ends.
    """
    self.wait()
    _wait_for_all("saved")

  def wait(self) -> None:
    """Waits for the last save; raises CheckpointError if it failed."""
    with self._writing():
      self._manager.wait_until_finished()

  def close(self) -> None:
    """Waits for the last save; raises CheckpointError if it failed."""
    self.wait()
    self._manager.close()


def _reason(error: Exception) -> str:
  """The system's reason in an error of a library."""
  lines = str(error).strip().splitlines() or [type(error).__name__]
  reason = getattr(error, "strerror", None) or lines[0]
  if "RESOURCE_EXHAUSTED" in reason:
    reason = "no space left on the device, or of a quota"
  return reason[:300]


class _ForeignError(Exception):
  """The checkpoint is complete, but of another model."""


def _wait_for_all(name: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def _wanted(abstract: Any, shardings: Any) -> dict[str, Any]:
  """Shapes, dtypes and shardings of the arrays to read."""
  parts = [
    _plain(dataclasses.replace(tree, fixed={}))
    for tree in (abstract, shardings)
  ]
  return jax.tree.map(
    lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where),
    *parts,
  )


def _state(restored: dict[str, Any], abstract: Any) -> state_lib.TrainState:
  """The state with the given plain leaves; the fixed part is empty."""
  leaves = [restored[key] for key in sorted(restored)]
  structure = jax.tree.structure(dataclasses.replace(abstract, fixed={}))
  return jax.tree.unflatten(structure, leaves)


def _plain(state: Any) -> dict[str, Any]:
  """Leaves by their path, so that a checkpoint needs none of our classes."""
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  return {
    # Numbered, so that sorting by name gives the order of the leaves.
    f"{index:05d}{jax.tree_util.keystr(path)}": leaf
    for index, (path, leaf) in enumerate(leaves)
  }
