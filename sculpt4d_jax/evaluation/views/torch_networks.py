"""Networks that exist only in PyTorch, which is imported when needed.

I3D        the torchscript file of StyleGAN-V's evaluation, called with
           (x, rescale, resize, return_features); `torch.jit.load` only runs the
stored graph
bigG-14    CLIP by the package open_clip_torch
DreamSim   by the package dreamsim
"""

import pathlib
import types
import zipfile

import numpy as np
from PIL import Image

from sculpt4d_jax.errors import MissingPackageError
from sculpt4d_jax.errors import UserError

I3D_SIZE = 224
I3D_FEATURES = 400


def import_torch() -> types.ModuleType:
  """PyTorch.

  Raises:
    ImportError: It is not installed; the message names the extra.
  """
  try:
    import torch
  except ImportError as error:
    raise MissingPackageError(
      "this network needs PyTorch: pip install 'sculpt4d-jax[views]'."
    ) from error
  return torch


class I3d:
  """I3D's 400 logits of a video, before the softmax."""

  def __init__(self, path: pathlib.Path):
    """Loads a torchscript file.

    Raises:
      ValueError: The file is something else.
      ImportError: PyTorch is not installed.
    """
    if not _is_torchscript(path):
      raise UserError(
        f"{path} is not a torchscript file (a zip with constants.pkl and code);"
        " a state dictionary or another pickle is not read."
      )
    self._torch = import_torch()
    try:
      self._module = self._torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
      first = str(error).strip().splitlines()[0][:200]
      raise UserError(f"{path} cannot be loaded: {first}.") from error

  def __call__(self, videos: np.ndarray) -> np.ndarray:
    """Features [N, 400] of videos, uint8 [N, F, H, W, 3].

    Raises:
      ValueError: The module returns another shape or rejects this call.
    """
    torch, features = self._torch, []
    for video in videos:
      frames = np.stack([_square(frame, I3D_SIZE) for frame in video])
      values = torch.from_numpy(frames.astype(np.float32) / 127.5 - 1.0)
      values = values.permute(3, 0, 1, 2)[None]  # [1, 3, F, H, W]
      try:
        with torch.no_grad():
          found = self._module(
            values, rescale=False, resize=False, return_features=True
          )
      except RuntimeError as error:
        last = str(error).strip().splitlines()[-1][:200]
        raise UserError(
          f"the I3D file does not take a video of {tuple(values.shape)} as"
          f" StyleGAN-V's does: {last}"
        ) from error
      if tuple(found.shape) != (1, I3D_FEATURES):
        raise UserError(
          f"the I3D file gives {tuple(found.shape)} for one video; expected"
          f" (1, {I3D_FEATURES})."
        )
      features.append(found[0].double().numpy())
    return np.stack(features)


class OpenClip:
  """Embeddings of CLIP ViT-bigG-14 by open_clip."""

  def __init__(self, path: pathlib.Path):
    """Loads a checkpoint file.

    Raises:
      ImportError: A package is not installed.
    """
    self._torch = import_torch()
    try:
      import open_clip
    except ImportError as error:
      raise MissingPackageError(
        "needs open_clip_torch, of the extra `views-large`"
      ) from error
    self._model, _, self._transform = open_clip.create_model_and_transforms(
      "ViT-bigG-14", pretrained=str(path)
    )
    self._model.eval()

  def __call__(self, pictures: np.ndarray) -> np.ndarray:
    """Unit embeddings [N, P] of pictures, uint8 [N, H, W, 3]."""
    found = []
    with self._torch.no_grad():
      for picture in pictures:
        image = self._transform(Image.fromarray(picture))[None]
        found.append(self._model.encode_image(image)[0].double().numpy())
    found = np.stack(found)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


class DreamSim:
  """DreamSim's distance by its package."""

  def __init__(self, folder: pathlib.Path):
    """Loads the ensemble from a folder.

    Raises:
      ImportError: A package is not installed.
    """
    self._torch = import_torch()
    try:
      import dreamsim
    except ImportError as error:
      raise MissingPackageError(
        "needs dreamsim, of the extra `views-large`"
      ) from error
    self._model, self._transform = dreamsim.dreamsim(
      pretrained=True, cache_dir=str(folder), device="cpu"
    )

  def __call__(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Distances [N] of pairs of pictures, uint8 [N, H, W, 3]."""
    with self._torch.no_grad():
      return np.array(
        [
          float(
            self._model(*(self._transform(Image.fromarray(p)) for p in pair))
          )
          for pair in zip(a, b)
        ]
      )


def pieces(video: np.ndarray, length: int = 32) -> np.ndarray:
  """A video [F, ...] in pieces [N, length, ...].

  Frames after the last complete piece are dropped; a video shorter than one
  piece is padded by playing it back and forth.

  Source: Motion 3-to-4 and MORPHOS.
  """
  count = len(video) // length
  if count:
    return video[: count * length].reshape(count, length, *video.shape[1:])
  there_and_back = np.concatenate([video, video[-2:0:-1]])
  order = np.arange(length) % max(len(there_and_back), 1)
  return there_and_back[order][None]


def _square(picture: np.ndarray, size: int) -> np.ndarray:
  """Resizes the shorter side to `size` bilinearly and crops the centre."""
  height, width = picture.shape[:2]
  short = min(height, width)
  shape = (round(size * width / short), round(size * height / short))
  image = Image.fromarray(picture).resize(shape, Image.Resampling.BILINEAR)
  left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
  return np.asarray(image.crop((left, top, left + size, top + size)))


def _is_torchscript(path: pathlib.Path) -> bool:
  if not zipfile.is_zipfile(path):
    return False
  with zipfile.ZipFile(path) as archive:
    names = [name.partition("/")[2] for name in archive.namelist()]
  return "constants.pkl" in names and any(n.startswith("code/") for n in names)
