"""PyTorch's archives: what is read, and what is refused and why."""

import os
import pickle
import zipfile

import numpy as np
import pytest

from sculpt4d_jax.weights.tensor_files import open_file
from sculpt4d_jax.weights.tensor_files import tensor_file
from sculpt4d_jax.weights.tensor_files import torch_file
from sculpt4d_jax.weights.tensor_files import torch_pickle
from tests.weights import hunyuan_checkpoints as checkpoints

SHAPES = {"model.a": (2, 3), "model.b.c": (4,), "other": (1,)}


def write(path, dtype="float16"):
  tensors = checkpoints.state(SHAPES, 0, dtype)
  checkpoints.write_torch(path, SHAPES, tensors.items(), dtype=dtype)
  return tensors


def rewrite(path, content=None, keep=lambda name: True, **entries):
  """Writes an archive anew with another data.pkl or without some entries."""
  with zipfile.ZipFile(path) as archive:
    old = {n: archive.read(n) for n in archive.namelist() if keep(n)}
  if content is not None:
    old["archive/data.pkl"] = content
  old |= entries
  with zipfile.ZipFile(path, "w") as archive:
    for name, data in old.items():
      archive.writestr(name, data)


def refused(path, match):
  with pytest.raises(tensor_file.CheckpointError, match=match) as error:
    open_file.open_file(path)
  return str(error.value)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_reads_names_shapes_and_numbers(tmp_path, dtype):
  import ml_dtypes

  kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype
  tensors = checkpoints.state(SHAPES, 0, kind)
  path = tmp_path / "a.pt"
  checkpoints.write_torch(path, SHAPES, tensors.items(), dtype=dtype)
  file = open_file.open_file(path)
  assert {n: i.shape for n, i in file.tensors.items()} == SHAPES
  for name, tensor in tensors.items():
    array = file.read(name)
    assert array.dtype == tensor.dtype
    np.testing.assert_array_equal(array, tensor)


def test_reads_what_torch_saves(tmp_path):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  base = torch.arange(24.0).reshape(4, 6)
  module = torch.nn.Linear(3, 2)
  content = {
    "model": module.state_dict(),  # An OrderedDict with an attribute.
    "parameter": torch.nn.Parameter(base.half()),
    "views": [base[1:3, ::2], base.T, base[0, 0]],  # One storage, strides.
    "empty": torch.zeros(0, 3),
    "step": 7,
    "name": "x",
    "size": base.shape,
    "brain": base.bfloat16(),
    "device": torch.device("cpu"),
    "dtype": torch.float16,
  }
  path = tmp_path / "a.pt"
  torch.save(content, path)
  file = open_file.open_file(path)
  expected = {
    "model.weight": module.weight.detach(),
    "model.bias": module.bias.detach(),
    "parameter": base.half(),
    "views.0": base[1:3, ::2],
    "views.1": base.T,
    "views.2": base[0, 0],
    "empty": content["empty"],
    "brain": base,
  }
  assert file.tensors.keys() == expected.keys()
  for name, tensor in expected.items():
    array = file.read(name).astype(np.float32)
    np.testing.assert_array_equal(array, tensor.float().numpy(), name)


def test_reads_archives_without_check_sums(tmp_path):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  if not hasattr(torch.serialization, "set_crc32_options"):
    pytest.skip("this PyTorch always writes check sums")
  path = tmp_path / "a.pt"
  torch.serialization.set_crc32_options(False)
  try:
    torch.save({"a": torch.arange(5.0)}, path)
  finally:
    torch.serialization.set_crc32_options(True)
  np.testing.assert_array_equal(
    open_file.open_file(path).read("a"), np.arange(5)
  )


def test_torch_reads_what_the_tests_write(tmp_path):
  torch = pytest.importorskip("torch", reason="PyTorch is not installed")
  tensors = write(tmp_path / "a.pt")
  loaded = torch.load(tmp_path / "a.pt", weights_only=True)
  np.testing.assert_array_equal(
    loaded["model"]["b.c"].numpy(), tensors["model.b.c"]
  )


class _Evil:
  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4, 5])
def test_code_is_refused_and_not_run(tmp_path, protocol):
  path, witness = tmp_path / "a.pt", tmp_path / "was_here"
  write(path)
  content = pickle.dumps({"model": _Evil(witness)}, protocol)
  rewrite(path, content)
  message = refused(path, "was refused")
  assert "system" in message and "safetensors" in message
  assert not witness.exists()


@pytest.mark.parametrize(
  "content, reason",
  [
    (b"\x80\x02cos\nsystem\n.", "os.system"),
    (b"\x80\x02cbuiltins\neval\n(X\x01\x00\x00\x001tR.", "builtins.eval"),
    (b"(ios\nsystem\n.", "INST"),
    (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "NEWOBJ"),
    (b"\x80\x02cbuiltins\ngetattr\n.", "builtins.getattr"),
    (b"\x80\x02ctorch\nload\n.", "torch.load"),
    (
      b"\x80\x02ctorch._utils\n_rebuild_tensor_v2.__globals__\n.",
      "__globals__",
    ),
    # An attribute set on something that is no dictionary.
    (b"\x80\x02ctorch\nHalfStorage\n}b.", "sets attributes"),
    (b"\x80\x02ctorch\nHalfStorage\n)R.", "calls"),
    (b"\x80\x02K\x01K\x02\x86.", "no tensors"),
    (b"\x80\x02}X\x01\x00", "damaged"),
    (b"hello", "damaged"),
    (b"\x80\x02h\x05.", "damaged"),  # A memo that was never written.
    (b"\x80\x02t.", "damaged"),  # A tuple without a mark.
    (b"\x80\x02}}s.", "damaged"),  # Too few things to set.
  ],
)
def test_other_pickles_are_refused(tmp_path, content, reason):
  path = tmp_path / "a.pt"
  write(path)
  rewrite(path, content)
  refused(path, reason)


def test_a_dictionary_that_holds_itself_is_refused(tmp_path):
  path = tmp_path / "a.pt"
  write(path)
  rewrite(path, b"\x80\x02}q\x00X\x01\x00\x00\x00ah\x00s.")
  refused(path, "deeper")


def test_a_view_beyond_its_storage_is_refused():
  machine_input = checkpoints.pickle({"a": (0, (2, 3))}, "float16")
  # The storage promises 6 numbers; ask for a thousand rows.
  columns = b"J\x03\x00\x00\x00t("
  widened = machine_input.replace(
    b"(J\x02\x00\x00\x00" + columns, b"(J\xe8\x03\x00\x00" + columns
  )
  assert widened != machine_input
  with pytest.raises(tensor_file.CheckpointError, match="beyond"):
    torch_pickle.load(widened, "a.pt")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9, 0.999])
def test_truncated(tmp_path, keep):
  path = tmp_path / "a.ckpt"
  write(path)
  content = path.read_bytes()
  path.write_bytes(content[: int(keep * len(content))])
  refused(path, "truncated|empty|Download")


def test_missing_numbers(tmp_path):
  path = tmp_path / "a.ckpt"
  write(path)
  rewrite(path, keep=lambda name: not name.endswith("data/1"))
  refused(path, "numbers of 'model.b.c' are missing")
  write(path)
  rewrite(path, **{"archive/data/1": b"1234"})
  refused(path, "4 bytes instead of 8")


def test_flipped_bits_are_found_by_the_check_sum(tmp_path):
  path = tmp_path / "a.ckpt"
  tensors = write(path)
  content = bytearray(path.read_bytes())
  at = content.find(tensors["model.a"].tobytes())
  content[at + 1] ^= 4
  path.write_bytes(content)
  with pytest.raises(tensor_file.CheckpointError, match="check sum"):
    open_file.open_file(path).read("model.a")


@pytest.mark.parametrize(
  "content, reason",
  [
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    (b"<html>not found</html>", "no PyTorch checkpoint"),
    (pickle.dumps({"a": 1}), "plain pickle"),
    (torch_file._LEGACY + b"more", "before 1.6"),
  ],
)
def test_foreign_files(tmp_path, content, reason):
  path = tmp_path / "a.bin"
  path.write_bytes(content)
  refused(path, reason)


def test_archives_that_are_no_checkpoints(tmp_path):
  path = tmp_path / "a.pt"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("readme.txt", b"hello")
  refused(path, "data.pkl")
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("m/data.pkl", b".")
    archive.writestr("m/constants.pkl", b".")
  refused(path, "TorchScript")
