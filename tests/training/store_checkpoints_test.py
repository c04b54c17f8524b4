"""Checkpoints in emulated stores of which one request in ten goes wrong."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sculpt4d_jax.training import best_checkpoints
from sculpt4d_jax.training import checkpoints
from sculpt4d_jax.training import schedule
from sculpt4d_jax.training import state as state_lib
from sculpt4d_jax.training import store_checkpoints
from tests.io import emulated


@pytest.fixture(scope="module", params=["gs", "s3"])
def store(request):
  with emulated.store(request.param, one_in=10) as bucket:
    yield bucket / "checkpoints"


def _state(step: int, width: int = 5) -> state_lib.TrainState:
  rng = np.random.default_rng(step)
  params = {
    "kernel": jnp.asarray(rng.normal(size=(width, 3)), jnp.float32),
    "bias": jnp.asarray([0.0, -0.0, np.pi], jnp.bfloat16),
  }
  state = state_lib.create(params, optax.adam(1e-3))
  return state_lib.TrainState(
    jnp.int32(step), state.params, state.ema, state.optimizer
  )


def _assert_equal(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    assert x.dtype == y.dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def test_the_newest_state_comes_back_bit_for_bit(store):
  folder = store / "newest"
  saved = checkpoints.Checkpoints(folder, max_to_keep=2)
  for step in (1, 2, 3):
    saved.save(_state(step))
  saved.close()
  found = checkpoints.Checkpoints(folder)
  assert found.steps() == [2, 3]
  assert found.latest_step() == 3
  _assert_equal(found.restore(_state(0)), _state(3))
  # The one before them is gone, not only forgotten.
  assert not [p for p in folder.iterdir() if p.name.startswith("1.")]
  found.close()


def test_what_is_not_whole_is_not_there(store):
  folder = store / "partial"
  saved = checkpoints.Checkpoints(folder)
  saved.save(_state(1))
  saved.wait()
  saved.save(_state(2))
  saved.close()
  [commit] = [p for p in (folder / "commits").iterdir() if p.name[0] == "2"]
  commit.unlink()
  found = checkpoints.Checkpoints(folder)
  assert found.steps() == [1]
  assert not [p for p in folder.iterdir() if p.name.startswith("2.")]
  # The step is taken again.
  found.save(_state(2))
  found.close()
  _assert_equal(checkpoints.Checkpoints(folder).restore(_state(0)), _state(2))


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_put_aside(store, damage):
  folder = store / f"damaged_{damage}"
  saved = checkpoints.Checkpoints(folder)
  for step in (1, 2):
    saved.save(_state(step))
  saved.close()
  [newest] = [p for p in folder.iterdir() if p.name.startswith("2.")]
  chunk = max(
    (p for p, _ in newest.walk() if "/c/" in str(p)),
    key=lambda p: p.stat().st_size,
  )
  if damage == "gone":
    chunk.unlink()
  else:
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(bytes(content))
  found = checkpoints.Checkpoints(folder)
  _assert_equal(found.restore(_state(0)), _state(1))
  assert found.steps() == [1]
  found.close()


def test_a_checkpoint_of_another_model_is_refused(store):
  folder = store / "foreign"
  saved = checkpoints.Checkpoints(folder)
  saved.save(_state(1))
  saved.close()
  with pytest.raises(ValueError, match="of another model"):
    checkpoints.Checkpoints(folder).restore(_state(0, width=6))


def test_the_newest_start_of_a_run_takes_its_folder_over(store):
  folder = store / "owners"
  old = checkpoints.Checkpoints(folder)
  old.save(_state(1))
  old.wait()
  new = checkpoints.Checkpoints(folder)
  old.save(_state(2))  # It cannot know yet.
  with pytest.raises(checkpoints.CheckpointError, match="took over"):
    old.save(_state(3))
  assert new.steps() == [1]
  new.save(_state(2))
  new.close()
  assert checkpoints.Checkpoints(folder).steps() == [1, 2]


def test_a_best_checkpoint_that_is_lost_does_not_end_the_run(
  store, monkeypatch
):
  rules = schedule.Schedule(keep_best=2, best_metric="eval/loss")
  keeper = best_checkpoints.Best(store / "best", rules)
  keeper.offer(_state(1), {"eval/loss": 3.0})

  def fail(*unused):
    raise OSError("the store is away")

  with monkeypatch.context() as patch:
    patch.setattr(store_checkpoints.Manager, "_write_arrays", fail)
    keeper.offer(_state(2), {"eval/loss": 1.0})
  assert keeper.best_step() == 2
  shardings = jax.tree.map(lambda x: x.sharding, _state(0))
  _assert_equal(keeper.restore(_state(0), shardings), _state(1))
  keeper.close()


_BROADCAST = """
import pathlib, sys
import jax, numpy as np
from sculpt4d_jax import partitioning
from sculpt4d_jax.training import store_checkpoints as store

mesh = partitioning.make_mesh(partitioning.MeshConfig(data=2, fsdp=2))
spec = jax.sharding.PartitionSpec("fsdp")
sharding = jax.sharding.NamedSharding(mesh, spec)
rng = np.random.default_rng(0)
for dtype in ("float32", "bfloat16", "int32"):
  numbers = rng.normal(size=(4, 3)).astype(jax.numpy.dtype(dtype))
  if dtype != "int32":
    numbers[0] = [-0.0, np.nan, -np.inf]
  entry = dict(number=0, shape=(4, 3), dtype=dtype, chunk=(2, 3))
  data = pathlib.Path(FOLDER) / dtype
  array = store._open(data, entry).result()
  array.write(numbers).result()
  wanted = jax.ShapeDtypeStruct((4, 3), numbers.dtype, sharding=sharding)
  store._replica_axis = lambda sharding: "data"
  reader = store._Reader(array, wanted)
  found = reader.array()
  assert found.sharding == sharding and len(reader._begun) == 2
  for shard in found.addressable_shards:  # Both copies, to the bit.
    expected = numbers[shard.index]
    assert np.asarray(shard.data).tobytes() == expected.tobytes(), dtype
print("equal")
"""


def test_one_copy_is_read_and_broadcast_to_the_bit(run_on_devices, tmp_path):
  code = _BROADCAST.replace("FOLDER", repr(str(tmp_path)))
  assert run_on_devices(4, code) == "equal\n"
