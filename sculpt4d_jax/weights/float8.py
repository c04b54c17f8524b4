"""Weights stored in eight bits, multiplied by the scales next to them.

Three layouts are in use: a factor a tensor or an output channel
(`NAME.weight_scale`, compressed-tensors; `NAME.scale_weight`, ComfyUI), and a
factor for each block of 128 x 128 (`NAME.weight_scale_inv`, DeepSeek, a factor
in spite of its name). Without a scale the numbers are taken as they are: such
files were made by a plain cast.
"""

from collections.abc import Iterable
import math

import numpy as np

from sculpt4d_jax.weights.tensor_files import tensor_file
from sculpt4d_jax.weights.tensor_files import views

DTYPES = tensor_file.FLOAT8
BLOCK = 128

_SCALES = ("weight_scale", "scale_weight", "weight_scale_inv")
# Scales of activations, and the marker tensor of ComfyUI: nothing is scaled by
# them.
_UNUSED = ("input_scale", "scale_input", "output_scale", "scaled_fp8")


def widen(
  file: tensor_file.TensorFile,
) -> tuple[tensor_file.TensorFile, list[str]]:
  """The file with float32 in place of float8.

  Returns:
    The file, and what was done, a sentence each.

  Raises:
    CheckpointError: A scale does not fit its weight.
  """
  eights = {n for n, info in file.tensors.items() if info.dtype in DTYPES}
  if not eights:
    return file, []
  scales, spent = {}, set()
  for name in file.tensors:
    stem, _, last = name.rpartition(".")
    weight = f"{stem}.weight" if stem else "weight"
    if last in _SCALES and weight in eights:
      scales[weight] = name
      spent.add(name)
    elif last in _UNUSED:
      spent.add(name)
  for weight, scale in scales.items():
    _check(file, weight, scale)
  entries = {}
  for name, info in file.tensors.items():
    if name in spent:
      continue
    if name in eights:
      change = _widened(file, scales.get(name))
      info = tensor_file.TensorInfo(info.shape, "float32")
      entries[name] = views.Entry(name, info, change)
    else:
      entries[name] = views.Entry(name, info)
  note = (
    f"{len(eights)} tensors in {file.path} are float8: {len(scales)} are"
    f" multiplied by their scales, {len(eights) - len(scales)} have none and"
    " are taken as they are"
  )
  return views.View(file, entries), [note]


def _widened(file: tensor_file.TensorFile, scale: str | None) -> views.Change:
  def change(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    if scale is None:
      return array
    factor = file.read(scale).astype(np.float32)
    return array * _spread(factor, array.shape)

  return change


def _check(file: tensor_file.TensorFile, weight: str, scale: str) -> None:
  shape, factor = file.tensors[weight].shape, file.tensors[scale].shape
  if _layout(factor, shape) is None:
    raise tensor_file.CheckpointError(
      f"{file.path}: {scale!r} has the shape {factor}, which is no scale of"
      f" {weight!r} with the shape {shape}: expected one number, one an output"
      f" channel, or one for each block of {BLOCK} x {BLOCK}."
    )


def _layout(factor: Iterable[int], shape: tuple[int, ...]) -> str | None:
  factor = tuple(factor)
  if math.prod(factor) == 1:
    return "tensor"
  if factor in ((shape[0],), (shape[0],) + (1,) * (len(shape) - 1)):
    return "channel"
  if len(shape) == 2 and factor == tuple(-(-n // BLOCK) for n in shape):
    return "block"
  return None


def _spread(factor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
  layout = _layout(factor.shape, shape)
  if layout == "tensor":
    return factor.reshape(())
  if layout == "channel":
    return factor.reshape((-1,) + (1,) * (len(shape) - 1))
  rows, columns = (np.arange(n) // BLOCK for n in shape)
  return factor[np.ix_(rows, columns)]
