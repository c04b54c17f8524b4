"""Checkpoints that are damaged, foreign, or of another mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sculpt4d_jax.training import checkpoints
from sculpt4d_jax.training import state


def _state(step, width=4):
  params = {"kernel": jnp.full((width,), float(step))}
  return state.TrainState(jnp.array(step), params, params, {"m": params})


def _saved(folder, *steps):
  store = checkpoints.Checkpoints(folder)
  for step in steps:
    store.save(_state(step))
  store.close()


def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(
  tmp_path, caplog
):
  _saved(tmp_path / "c", 1, 2)
  for path in (tmp_path / "c" / "2").rglob("*"):
    if path.is_file() and path.stat().st_size and "ocdbt" in str(path):
      path.write_bytes(b"\0" * path.stat().st_size)
  store = checkpoints.Checkpoints(tmp_path / "c")
  restored = store.restore(_state(0))
  np.testing.assert_array_equal(restored.params["kernel"], np.full(4, 1.0))
  assert "Checkpoint 2" in caplog.text and "cannot be read" in caplog.text
  # The step can be saved again, and what could not be read is still there.
  store.save(_state(2))
  store.close()
  assert checkpoints.Checkpoints(tmp_path / "c").latest_step() == 2
  assert list((tmp_path / "c_unreadable").iterdir())


def test_another_model_is_refused_and_nothing_is_put_aside(tmp_path):
  _saved(tmp_path / "c", 3)
  store = checkpoints.Checkpoints(tmp_path / "c")
  with pytest.raises(ValueError, match="another model or optimizer"):
    store.restore(_state(0, width=5))
  assert store.latest_step() == 3
  store.close()


def test_no_checkpoint_is_said(tmp_path):
  store = checkpoints.Checkpoints(tmp_path / "c")
  with pytest.raises(ValueError, match="holds no checkpoint"):
    store.restore(_state(0))
  shardings = jax.tree.map(lambda x: x.sharding, _state(0))
  assert store.restore_newest(_state(0), shardings, missing_ok=True) is None
  store.close()
