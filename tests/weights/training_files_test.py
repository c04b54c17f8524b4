"""Files as trainers leave them: the same weights, or a sentence."""

import numpy as np
import pytest
import safetensors.numpy

from sculpt4d_jax.weights import conversion
from sculpt4d_jax.weights import model_folders
from sculpt4d_jax.weights.tensor_files import tensor_file
from tests.weights import hunyuan_checkpoints as checkpoints
from tests.weights import pretrained_test as sizes

CONFIGS = {"dit": sizes.CONFIGS["dit"]}


def dit_tensors(seed=0):
  shapes = checkpoints.dit_shapes(sizes.DIT)
  return checkpoints.state(shapes, seed, "float32")


def write(path, tensors):
  """A safetensors file, or PyTorch's with dots as nesting."""
  if path.suffix == ".safetensors":
    safetensors.numpy.save_file(tensors, path)
    return path
  shapes = {name: array.shape for name, array in tensors.items()}
  nested = {name.partition(".")[0] for name in tensors if "." in name}
  checkpoints.write_torch(
    path, shapes, tensors.items(), dtype="float32", nested=nested
  )
  return path


def plan(*sources, **options):
  return conversion.plan(
    list(map(str, sources)), CONFIGS, parts=["dit"], **options
  )


def converted(folder, *sources, **options):
  """The DiT's arrays after a conversion, and the conversion."""
  made = plan(*sources, **options)
  conversion.write(made, folder, sources=["test"], dtype="float32")
  part = model_folders.open_parts(folder)["dit"]
  return {name: part.read(name) for name in part.shapes}, made


def assert_same(actual, expected):
  assert actual.keys() == expected.keys()
  for name, array in expected.items():
    np.testing.assert_array_equal(actual[name], array, err_msg=name)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
  """The plain checkpoint's arrays after its conversion."""
  folder = tmp_path_factory.mktemp("plain")
  path = write(folder / "dit.safetensors", dit_tensors())
  return converted(folder / "out", path)[0]


@pytest.mark.parametrize(
  "change",
  [
    lambda n: n.replace("blocks.0.", "blocks.0._orig_mod."),
    lambda n: n.replace("blocks.1.", "blocks.1._checkpoint_wrapped_module."),
    lambda n: n.replace("attn1.", "_fsdp_wrapped_module.attn1."),
    lambda n: "module." + n.replace("blocks.2.", "blocks.2.module."),
    lambda n: "_forward_module._orig_mod.model." + n,
    lambda n: "module.model._fsdp_wrapped_module._orig_mod." + n,
  ],
  ids=["compile", "checkpoint", "fsdp", "ddp", "lightning", "several"],
)
def test_wrappers_words_drop_out_of_names(tmp_path, plain, change):
  tensors = {change(name): array for name, array in dit_tensors().items()}
  assert any(name not in dit_tensors() for name in tensors)
  path = write(tmp_path / "dit.safetensors", tensors)
  arrays, made = converted(tmp_path / "out", path)
  assert_same(arrays, plain)
  # A dry run shows the names of the file.
  lines = "\n".join(made.describe())
  assert all(name in lines for name in tensors)


def test_a_wrapped_and_a_plain_copy_are_told_apart(tmp_path):
  tensors = dit_tensors()
  tensors |= {"module." + n: a for n, a in dit_tensors(1).items()}
  path = write(tmp_path / "dit.safetensors", tensors)
  with pytest.raises(tensor_file.CheckpointError, match="2 copies of the dit"):
    plan(path)


def test_the_state_of_a_run_is_left_out_in_one_line(tmp_path, plain):
  moment = np.zeros((3,), np.float32)
  tensors = {"state_dict.model." + n: a for n, a in dit_tensors().items()}
  for i in range(40):
    tensors[f"optimizer_states.0.state.{i}.exp_avg"] = moment
    tensors[f"optimizer_states.0.state.{i}.exp_avg_sq"] = moment
  tensors["callbacks.ModelCheckpoint.best_model_score"] = moment
  path = write(tmp_path / "run.ckpt", tensors)
  arrays, made = converted(tmp_path / "out", path)
  assert_same(arrays, plain)
  (note,) = made.notes
  assert "81 tensors" in note
  assert "optimizer_states (80), callbacks (1)" in note
  assert list(made.summary())[-1] == f"Note: {note}."


def test_files_of_an_optimizer_in_the_folder_are_not_opened(tmp_path, plain):
  write(tmp_path / "pytorch_model.bin", dit_tensors())
  write(tmp_path / "optimizer.bin", {"state.0.exp_avg": np.zeros(2)})
  (tmp_path / "rng_state_0.pth").write_bytes(b"no checkpoint")
  assert_same(converted(tmp_path / "out", tmp_path)[0], plain)


def test_unknown_names_are_listed_shortly(tmp_path):
  tensors = {"state_dict." + n: a for n, a in dit_tensors().items()}
  tensors |= {f"other.{i}": np.zeros((1,), np.float32) for i in range(500)}
  path = write(tmp_path / "a.ckpt", tensors)
  with pytest.raises(ValueError, match="and 476 more") as error:
    plan(path)
  assert len(str(error.value).splitlines()) < 30


@pytest.mark.parametrize("name", ["weights.pt", None])
def test_zero3_is_refused_with_the_tool_that_joins_it(tmp_path, name):
  """By what is in the file, and by DeepSpeed's names of files."""
  shapes = checkpoints.dit_shapes(sizes.DIT)
  empty = {f"module.{n}": np.zeros((0,), np.float32) for n in shapes}
  path = tmp_path / (name or "zero_pp_rank_0_mp_rank_00_model_states.pt")
  write(path, empty)
  source = path
  if name is None:
    flat = {"optimizer_state_dict.fp32_flat_groups.0": np.zeros(9)}
    write(tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt", flat)
    source = tmp_path
  with pytest.raises(tensor_file.CheckpointError) as error:
    plan(source)
  assert "zero_to_fp32.py" in str(error.value)
  assert len(str(error.value).splitlines()) == 1


def test_other_sharded_files_are_refused_with_a_way_out(tmp_path):
  path = write(tmp_path / "a.safetensors", {"x._flat_param": np.zeros(3)})
  with pytest.raises(tensor_file.CheckpointError, match="FULL_STATE_DICT"):
    plan(path)
  path.unlink()
  (tmp_path / "__0_0.distcp").write_bytes(b"x")
  with pytest.raises(tensor_file.CheckpointError, match="dcp_to_torch"):
    plan(tmp_path)
