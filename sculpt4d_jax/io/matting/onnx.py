"""Background removal by a saliency or matting network in an ONNX file.

Any network works that takes one picture and whose first output is one map:
U2-Net and u2netp, IS-Net, BiRefNet and similar ones. They run in onnxruntime,
which is part of the optional extra "matting".

`--matte=onnx:FILE` also takes an npm package of networks in pieces (`.tgz`) and
joins the pieces itself; `networks.py` lists files that are known to work.

Input: float32 [1, 3, h, w] RGB, size from the model itself; a model that leaves
its size open gets 320x320. Normalisation: ImageNet's mean and deviation of
values in [0, 1], as U2-Net and BiRefNet were trained; a file with "isnet" in
its name gets (value - 0.5), as IS-Net was. Output: a map of any size; logits
are recognised by their range. One scale for the whole clip instead of one per
frame, so that the map does not flicker.
"""

import os
import types

from absl import logging
import numpy as np
from PIL import Image

from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.io import local_copies
from sculpt4d_jax.io.matting import cutout
from sculpt4d_jax.io.matting import networks
from sculpt4d_jax.io.video.frames import InputError
from sculpt4d_jax.io.video.frames import VideoFrames

_CONFIDENCE = 0.9
_OPEN_SIZE = 320
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_ISNET = ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))


def cut_out(video: VideoFrames, argument: str) -> cutout.Cutout:
  """See `methods.py`; the argument is the path of the network."""
  if not argument:
    raise InputError(
      "--matte=onnx needs a file: --matte=onnx:FILE; sculpt4d matting lists"
      " networks that are known to work."
    )
  alpha = OnnxMatting(argument).alpha(video.frames[..., :3])
  return cutout.from_alpha(video, alpha, _CONFIDENCE)


class OnnxMatting:
  """A matting network, loaded once and run frame by frame on the CPU."""

  def __init__(self, path: str | os.PathLike):
    """Loads the network.

    Raises:
      InputError: The file is missing or is not such a network.
      ImportError: onnxruntime is not installed.
    """
    path = local_copies.fetch(path).expanduser()
    if not path.is_file():
      raise InputError(
        f"The matting network {path} does not exist; give the path of an"
        " ONNX file. `sculpt4d matting` lists networks that are known to work"
        " and downloads them."
      )
    runtime = _import_onnxruntime()
    is_package = networks.is_package(path)
    content = networks.join_package(path) if is_package else os.fspath(path)
    try:
      self._session = runtime.InferenceSession(
        content, providers=["CPUExecutionProvider"]
      )
    except Exception as error:  # The runtime's own error types are private.
      raise InputError(
        f"{path} does not load as an ONNX network: {error}"
      ) from error
    inputs = self._session.get_inputs()
    shape = inputs[0].shape if inputs else []
    if len(inputs) != 1 or len(shape) != 4 or shape[1] not in (3, None, "c"):
      raise InputError(
        f"{path} takes {[(i.name, i.shape) for i in inputs]}; expected one"
        " picture [1, 3, height, width]."
      )
    self._name = inputs[0].name
    self._size = tuple(
      side if isinstance(side, int) else _OPEN_SIZE for side in shape[2:]
    )
    is_isnet = is_package or "isnet" in path.name.lower()
    mean, deviation = _ISNET if is_isnet else _IMAGENET
    self._mean = np.array(mean, np.float32)
    self._deviation = np.array(deviation, np.float32)

  def alpha(self, rgb: np.ndarray) -> np.ndarray:
    """Alpha uint8 [F, height, width] of uint8 [F, height, width, 3]."""
    height, width = rgb.shape[1:3]
    maps = []
    for index, frame in enumerate(rgb):
      logging.log_every_n_seconds(
        logging.INFO, "Matting frame %d of %d.", 5, index + 1, len(rgb)
      )
      maps.append(self._run(frame))
    stacked = np.stack(maps)
    if stacked.min() < -0.01 or stacked.max() > 1.01:  # Logits.
      stacked = 1 / (1 + np.exp(-np.clip(stacked, -30, 30)))
    # U2-Net's maps seldom reach 1, even where it is sure.
    peak = np.percentile(stacked, 99.9)
    stacked = np.clip(stacked / peak, 0, 1) if peak > 0.5 else stacked
    resized = [
      Image.fromarray(map_.astype(np.float32)).resize(
        (width, height), Image.Resampling.BILINEAR
      )
      for map_ in stacked
    ]
    alpha = np.stack([np.asarray(picture) for picture in resized])
    return np.rint(255 * np.clip(alpha, 0, 1)).astype(np.uint8)

  def _run(self, frame: np.ndarray) -> np.ndarray:
    height, width = self._size
    resized = Image.fromarray(frame).resize(
      (width, height), Image.Resampling.BILINEAR
    )
    pixels = np.asarray(resized, np.float32) / 255
    pixels = (pixels - self._mean) / self._deviation
    outputs = self._session.run(
      None, {self._name: pixels.transpose(2, 0, 1)[None]}
    )
    result = np.squeeze(outputs[0])
    if result.ndim != 2:
      raise InputError(
        "The matting network's first output has shape"
        f" {list(outputs[0].shape)}; expected one map [1, 1, height, width]."
      )
    return result.astype(np.float32)


def _import_onnxruntime() -> types.ModuleType:
  try:
    import onnxruntime
  except ImportError as error:
    raise MissingPackageError(
      "--matte onnx:PATH needs the package onnxruntime; install the extra"
      ' "matting": pip install "sculpt4d-jax[matting]".'
    ) from error
  return onnxruntime
