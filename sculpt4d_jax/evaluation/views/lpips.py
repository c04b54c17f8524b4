"""LPIPS with the VGG16 trunk, in JAX, in both forms used by papers.

  scalar   the sum over five layers of the mean of the weighted squared
           difference of unit features (torchmetrics, Consistent4D)
  spatial  the mean of the map in which each layer's differences are resized to
  the picture (V2M4, Motion 3-to-4, MORPHOS); it weights edges differently

Source: Zhang et al., The Unreasonable Effectiveness of Deep Features as a
Perceptual Metric, 2018; package lpips 0.1.4, heads v0.1.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from sculpt4d_jax.errors import UserError
from sculpt4d_jax.weights.tensor_files import open_file
from sculpt4d_jax.weights.tensor_files import tensor_file

# Indices of the convolutions in torchvision's `features`, by stage.
_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
CHANNELS = (64, 128, 256, 512, 512)
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
_EPSILON = 1e-10
# Kernel and bias of the convolutions, by stage.
_Stages = Sequence[Sequence[tuple[jax.Array, jax.Array]]]
_BATCH = 4  # Pictures at a time: 160 GFLOP each at 512 x 512.


@dataclasses.dataclass(frozen=True)
class Scores:
  """LPIPS of pairs of pictures, float64 [N] each."""

  scalar: np.ndarray
  spatial: np.ndarray


class Lpips:
  """The network with its weights."""

  def __init__(
    self, trunk: Mapping[str, np.ndarray], heads: Mapping[str, np.ndarray]
  ):
    """Takes tensors by the names of torchvision and lpips.

    Raises:
      ValueError: A tensor is missing or has another shape.
    """
    self._convolutions, inputs = [], 3
    for stage, channels in zip(_STAGES, CHANNELS):
      layers = []
      for number in stage:
        kernel = _tensor(
          trunk, f"features.{number}.weight", (channels, inputs, 3, 3)
        )
        bias = _tensor(trunk, f"features.{number}.bias", (channels,))
        layers.append((kernel, bias))
        inputs = channels
      self._convolutions.append(layers)
    self._heads = [
      _tensor(heads, f"lin{i}.model.1.weight", (1, channels, 1, 1)).reshape(-1)
      for i, channels in enumerate(CHANNELS)
    ]

  @classmethod
  def load(cls, trunk: pathlib.Path, heads: pathlib.Path) -> "Lpips":
    """Reads both files without executing code in them."""
    return cls(_read(trunk, "features."), _read(heads, "lin"))

  def __call__(self, a: np.ndarray, b: np.ndarray) -> Scores:
    """Scores pairs of pictures, uint8 [N, H, W, 3]."""
    if a.shape != b.shape or a.ndim != 4 or a.shape[-1] != 3:
      raise UserError(
        f"expected two arrays [N, H, W, 3], got {a.shape} and {b.shape}."
      )
    found = [
      _scores(
        self._convolutions,
        self._heads,
        *(jnp.asarray(x[i : i + _BATCH]) for x in (a, b)),
      )
      for i in range(0, len(a), _BATCH)
    ]
    scalar, spatial = (np.concatenate(x) for x in zip(*found))
    return Scores(scalar.astype(np.float64), spatial.astype(np.float64))


@jax.jit
def _scores(
  convolutions: _Stages, heads: Sequence[jax.Array], a: jax.Array, b: jax.Array
) -> tuple[jax.Array, jax.Array]:
  size = a.shape[1:3]
  scalar, spatial = 0.0, 0.0
  for x, y, head in zip(
    _features(convolutions, a), _features(convolutions, b), heads
  ):
    x, y = (
      z / (jnp.linalg.norm(z, axis=-1, keepdims=True) + _EPSILON)
      for z in (x, y)
    )
    layer = jnp.square(x - y) @ head  # [N, h, w]
    scalar += layer.mean((1, 2))
    enlarged = jax.image.resize(layer, (len(layer), *size), "linear")
    spatial += enlarged.mean((1, 2))
  return scalar, spatial


def _features(convolutions: _Stages, pictures: jax.Array) -> list[jax.Array]:
  """Outputs of the five stages, [N, h, w, C]."""
  x = pictures.astype(jnp.float32) / 127.5 - 1.0
  x = (x - jnp.array(_SHIFT)) / jnp.array(_SCALE)
  outputs = []
  for number, stage in enumerate(convolutions):
    if number:
      x = jax.lax.reduce_window(
        x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID"
      )
    for kernel, bias in stage:
      x = jax.lax.conv_general_dilated(
        x,
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "OIHW", "NHWC"),
        precision=jax.lax.Precision.HIGHEST,
      )
      x = jax.nn.relu(x + bias)
    outputs.append(x)
  return outputs


def _read(path: pathlib.Path, prefix: str) -> dict[str, np.ndarray]:
  file = open_file.open_file(path)
  names = [name for name in file.tensors if name.startswith(prefix)]
  if not names:
    raise tensor_file.CheckpointError(
      f"{path} holds no tensor whose name begins with {prefix!r}."
    )
  return {name: file.read(name) for name in names}


def _tensor(
  tensors: Mapping[str, np.ndarray], name: str, shape: tuple[int, ...]
) -> np.ndarray:
  """A tensor of the expected shape as float32."""
  if name not in tensors or tensors[name].shape != shape:
    got = tensors[name].shape if name in tensors else "nothing"
    raise UserError(f"LPIPS needs {name} of shape {shape}, got {got}.")
  return np.asarray(tensors[name], np.float32)
