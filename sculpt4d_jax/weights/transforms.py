"""Reversible changes of layout between PyTorch's arrays and ours.

A Linear's weight is [out, in] there and [in, ...out] here; fused projections
hold the parts of several heads. Every transform has an inverse, so that a table
of rules serves import and export alike. Transforms only move numbers, so they
apply to gradients as well as to weights.
"""

from collections.abc import Callable, Sequence
import math
from typing import NamedTuple

import numpy as np

from sculpt4d_jax.errors import UserError

Arrays = tuple[np.ndarray, ...]
Shapes = tuple[tuple[int, ...], ...]


class Transform(NamedTuple):
  """A reversible change of layout.

  `forward` takes the checkpoint's arrays and the shapes ours must have;
  `inverse` takes our arrays. `forward` raises ValueError for arrays that cannot
  have those shapes. `name` is for people who read a dry run.
  """

  forward: Callable[[Arrays, Shapes], Sequence[np.ndarray]]
  inverse: Callable[[Arrays], Sequence[np.ndarray]]
  name: str = "own"


def identity() -> Transform:
  """Leaves arrays unchanged."""
  return Transform(
    lambda arrays, shapes: arrays, lambda arrays: arrays, "unchanged"
  )


def linear(num_in_axes: int = 1) -> Transform:
  """Weights [out, in] to kernels whose first `num_in_axes` axes are inputs."""

  def forward(arrays: Arrays, shapes: Shapes) -> Arrays:
    (weight,), (shape,) = arrays, shapes
    matrix = _matrix_shape(shape, num_in_axes)
    if weight.shape != matrix[::-1]:
      hint = ", the transposed one" if weight.shape == matrix else ""
      raise UserError(f"expected {matrix[::-1]}, got {weight.shape}{hint}")
    return (weight.T.reshape(shape),)

  def inverse(arrays: Arrays) -> Sequence[np.ndarray]:
    (kernel,) = arrays
    return (kernel.reshape(_matrix_shape(kernel.shape, num_in_axes)).T,)

  name = "transpose" if num_in_axes == 1 else "transpose, split the inputs"
  return Transform(forward, inverse, name)


def flat() -> Transform:
  """Vectors to any shape of as many numbers: the bias of a [D, H, K] kernel."""

  def forward(arrays: Arrays, shapes: Shapes) -> Arrays:
    for array, shape in zip(arrays, shapes, strict=True):
      if array.shape != (math.prod(shape),):
        raise UserError(f"expected {(math.prod(shape),)}, got {array.shape}")
    return tuple(a.reshape(s) for a, s in zip(arrays, shapes))

  def inverse(arrays: Arrays) -> Sequence[np.ndarray]:
    return tuple(array.reshape(-1) for array in arrays)

  return Transform(forward, inverse, "split into heads")


def interleaved_heads(num_sources: int = 1) -> Transform:
  """Fused projections whose rows run head by head, parts within a head.

  The sources' rows, one source after the other, are H groups of P * K rows: in
  a group the first K rows are that head's part 0, the next K its part 1, and so
  on. They become P kernels [in, H, K], or P biases [H, K]. Hunyuan3D 2.1 cuts
  query, key and value in this way: its VAE stores them fused, its DiT apart.
  """

  def forward(arrays: Arrays, shapes: Shapes) -> Arrays:
    fused = np.concatenate(arrays, axis=0)
    heads, head_dim = shapes[0][-2:]
    rows = (heads * len(shapes) * head_dim,)
    expected = rows + tuple(shapes[0][:-2])
    if fused.shape != expected:
      raise UserError(f"expected {expected} in all, got {fused.shape}")
    fused = fused.reshape(heads, len(shapes), head_dim, *fused.shape[1:])
    parts = (fused[:, part] for part in range(len(shapes)))  # [H, K, in]
    return tuple(np.moveaxis(part, (0, 1), (-2, -1)) for part in parts)

  def inverse(arrays: Arrays) -> Sequence[np.ndarray]:
    parts = [np.moveaxis(array, (-2, -1), (0, 1)) for array in arrays]
    fused = np.stack(parts, axis=1)  # [H, P, K, in]
    fused = fused.reshape(math.prod(fused.shape[:3]), *fused.shape[3:])
    return np.split(fused, num_sources)

  return Transform(forward, inverse, "regroup rows head by head")


def stacked_heads(num_sources: int = 1) -> Transform:
  """Fused projections whose rows run part by part, heads within a part.

  The sources' rows, one source after the other, are P groups of H * K rows.
  Otherwise as `interleaved_heads`; with one head the two are the same.
  """

  def forward(arrays: Arrays, shapes: Shapes) -> Arrays:
    fused = np.concatenate(arrays, axis=0)
    heads, head_dim = shapes[0][-2:]
    expected = (len(shapes) * heads * head_dim,) + tuple(shapes[0][:-2])
    if fused.shape != expected:
      raise UserError(f"expected {expected} in all, got {fused.shape}")
    fused = fused.reshape(len(shapes), heads, head_dim, *fused.shape[1:])
    return tuple(np.moveaxis(part, (0, 1), (-2, -1)) for part in fused)

  def inverse(arrays: Arrays) -> Sequence[np.ndarray]:
    parts = [np.moveaxis(array, (-2, -1), (0, 1)) for array in arrays]
    fused = np.stack(parts)  # [P, H, K, in]
    fused = fused.reshape(math.prod(fused.shape[:3]), *fused.shape[3:])
    return np.split(fused, num_sources)

  return Transform(forward, inverse, "split parts, then heads")


def convolution() -> Transform:
  """[out, colour, row, column] to [row, column, colour, out]."""
  return Transform(
    lambda arrays, shapes: (np.transpose(arrays[0], (2, 3, 1, 0)),),
    lambda arrays: (np.transpose(arrays[0], (3, 2, 0, 1)),),
    "convolution to patches",
  )


def squeezed() -> Transform:
  """[1, 1, D] to [D], and [1, I, D] to [I, D]."""

  def forward(arrays: Arrays, shapes: Shapes) -> Arrays:
    (array,), (shape,) = arrays, shapes
    # The batch axis must be 1: other sizes are a different table.
    expected = (1,) * (3 - len(shape)) + shape
    if array.shape != expected:
      raise UserError(f"expected {expected}, got {array.shape}")
    return (array.reshape(shape),)

  def inverse(arrays: Arrays) -> Sequence[np.ndarray]:
    (array,) = arrays
    return (array.reshape((1,) * (3 - array.ndim) + array.shape),)

  return Transform(forward, inverse, "drop the batch axis")


# By the names that rule files use.
BY_NAME = {
  "identity": identity,
  "linear": linear,
  "linear_out": lambda: linear(num_in_axes=2),
  "flat": flat,
  "interleaved_heads": interleaved_heads,
  "stacked_heads": stacked_heads,
  "convolution": convolution,
  "squeezed": squeezed,
}


def _matrix_shape(shape: tuple[int, ...], num_in_axes: int) -> tuple[int, int]:
  return math.prod(shape[:num_in_axes]), math.prod(shape[num_in_axes:])
