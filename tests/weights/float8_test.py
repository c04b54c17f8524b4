"""Eight-bit weights and their scales, against the product worked by hand."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest

from sculpt4d_jax.weights import float8
from sculpt4d_jax.weights.tensor_files import open_file
from sculpt4d_jax.weights.tensor_files import tensor_file
from tests.weights import training_files_test as files

_CODES = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2"}
E4M3 = ml_dtypes.float8_e4m3fn


def save(path, tensors):
  """A safetensors file; its library has no float8 for NumPy."""
  header, content = {}, b""
  for name, array in tensors.items():
    array = np.asarray(array)
    code = _CODES.get(array.dtype.name, "F32")
    if code == "F32":
      array = array.astype(np.float32)
    begin, content = len(content), content + array.tobytes()
    header[name] = {
      "dtype": code,
      "shape": list(array.shape),
      "data_offsets": [begin, len(content)],
    }
  text = json.dumps(header).encode()
  path.write_bytes(struct.pack("<Q", len(text)) + text + content)
  return path


def widened(path):
  return float8.widen(open_file.open_file(path))


@pytest.mark.parametrize("dtype", _CODES)
def test_numbers_without_scales_are_taken_as_they_are(tmp_path, dtype):
  values = np.array([[0.5, -1.75], [2, 0]]).astype(getattr(ml_dtypes, dtype))
  file, (note,) = widened(
    save(tmp_path / "a.safetensors", {"a.weight": values})
  )
  assert file.tensors["a.weight"].dtype == "float32"
  np.testing.assert_array_equal(file.read("a.weight"), [[0.5, -1.75], [2, 0]])
  assert "1 have none" in note


@pytest.mark.parametrize(
  "name, scale, expected",
  [
    ("weight_scale", np.float32(3), [[3, 6], [12, 24]]),
    ("scale_weight", np.full((1,), 0.5), [[0.5, 1], [2, 4]]),
    ("weight_scale", np.array([[2], [10]]), [[2, 4], [40, 80]]),
    ("weight_scale", np.array([2, 10]), [[2, 4], [40, 80]]),
  ],
)
def test_scales_of_tensors_and_channels(tmp_path, name, scale, expected):
  tensors = {
    "a.weight": np.array([[1, 2], [4, 8]]).astype(E4M3),
    f"a.{name}": scale,
    "a.input_scale": np.float32(7),
    "scaled_fp8": np.zeros((0,), E4M3),
    "a.bias": np.ones(2),
  }
  file, (note,) = widened(save(tmp_path / "a.safetensors", tensors))
  assert set(file.tensors) == {"a.weight", "a.bias"}
  np.testing.assert_array_equal(file.read("a.weight"), expected)
  assert "1 are multiplied" in note


def test_scales_of_blocks(tmp_path):
  scale = np.array([[1, 2], [3, 4]])
  tensors = {
    "a.weight": np.ones((130, 200)).astype(E4M3),
    "a.weight_scale_inv": scale,
  }
  array = widened(save(tmp_path / "a.safetensors", tensors))[0].read("a.weight")
  assert array[0, 0] == array[127, 127] == 1
  assert array[0, 128] == 2 and array[128, 0] == 3 and array[129, 199] == 4


def test_a_scale_of_no_known_layout_is_refused(tmp_path):
  tensors = {
    "a.weight": np.ones((4, 4)).astype(E4M3),
    "a.weight_scale": np.ones((2, 2)),
  }
  with pytest.raises(
    tensor_file.CheckpointError, match="no scale of 'a.weight"
  ):
    widened(save(tmp_path / "a.safetensors", tensors))


def test_a_network_in_float8_with_scales_converts(tmp_path):
  """As close to the plain weights as eight bits allow: 2^-4 of each number."""
  tensors, made = files.dit_tensors(), {}
  for name, array in tensors.items():
    if name.endswith(".weight") and array.ndim == 2:
      scale = np.abs(array).max() / 448
      made[name] = (array / scale).astype(E4M3)
      made[name.removesuffix("weight") + "weight_scale"] = scale
    else:
      made[name] = array
  path = save(tmp_path / "dit8.safetensors", made)
  arrays, _ = files.converted(tmp_path / "out", path)
  plain, _ = files.converted(
    tmp_path / "plain", files.write(tmp_path / "dit.safetensors", tensors)
  )
  for name, array in plain.items():
    step = np.abs(array).max() * 2.0**-15
    error = np.abs(arrays[name] - array)
    assert (error <= np.abs(array) / 16 + step).all(), name
