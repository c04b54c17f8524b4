"""Checkpoints of a run: whole states, written by Orbax, newest last."""

import pathlib

from absl import logging
import jax
import orbax.checkpoint as ocp

from sculpt4d_jax.training import state as state_lib


class Checkpoints:
  """Saves states in the background, keeps the newest few, restores them.

  A checkpoint appears under its name only when it is whole; one that was
  interrupted is ignored.
  """

  def __init__(self, folder: str | pathlib.Path, max_to_keep: int = 2):
    self._manager = ocp.CheckpointManager(
        pathlib.Path(folder).absolute(),
        options=ocp.CheckpointManagerOptions(
            max_to_keep=max_to_keep,
            create=True,
            cleanup_tmp_directories=True,
        ),
    )

  def latest_step(self) -> int | None:
    """Step of the newest whole checkpoint, if there is one."""
    return self._manager.latest_step()

  def save(self, state: state_lib.TrainState) -> None:
    """Starts to save; waits only for a save that is still going on."""
    step = int(state.step)
    if step in self._manager.all_steps():
      return
    self._manager.save(step, args=ocp.args.StandardSave(_plain(state)))

  def restore(self, state: state_lib.TrainState) -> state_lib.TrainState:
    """The newest state, in the structure and shardings of `state`.

    Raises:
      ValueError: There is no checkpoint, or it is of another model.
    """
    step = self.latest_step()
    if step is None:
      raise ValueError(f"{self._manager.directory} holds no checkpoint.")
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, _plain(state))
    restored = self._manager.restore(
        step, args=ocp.args.StandardRestore(abstract)
    )
    logging.info("Restored step %d from %s.", step, self._manager.directory)
    leaves = [restored[key] for key in sorted(restored)]
    return jax.tree.unflatten(jax.tree.structure(state), leaves)

  def close(self) -> None:
    """Waits for the last save."""
    self._manager.wait_until_finished()
    self._manager.close()


def _plain(state: state_lib.TrainState) -> dict[str, jax.Array]:
  """Leaves by their path: a checkpoint that needs none of our classes."""
  leaves = jax.tree_util.tree_flatten_with_path(state)[0]
  return {
      f"{index:05d}{jax.tree_util.keystr(path)}": leaf
      for index, (path, leaf) in enumerate(leaves)
  }
